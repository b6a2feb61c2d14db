"""Declarations: requirements, scenarios, checks and their results."""
