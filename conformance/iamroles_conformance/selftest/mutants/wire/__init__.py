"""Mutants of the wire family."""
