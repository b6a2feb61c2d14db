"""Inspect and mint tokens."""
