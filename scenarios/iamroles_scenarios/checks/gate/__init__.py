"""Checks of the gate family."""
