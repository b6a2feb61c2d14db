"""Overrides of the reference agent, a folder for each family: the only code of the suite that imports it."""
