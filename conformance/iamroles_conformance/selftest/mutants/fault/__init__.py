"""Mutants of what breaks around the agent."""
