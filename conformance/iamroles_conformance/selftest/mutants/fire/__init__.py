"""Mutants of what happens under traffic."""
