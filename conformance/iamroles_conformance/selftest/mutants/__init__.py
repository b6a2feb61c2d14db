"""Overrides of the reference agent, one module for each lane: the only code of the suite that imports it."""
