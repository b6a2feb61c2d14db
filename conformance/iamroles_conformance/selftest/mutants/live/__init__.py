"""Mutants of live streams."""
