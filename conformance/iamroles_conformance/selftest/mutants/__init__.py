"""Overrides of the reference agent, by family: the only code of the suite that imports it."""
