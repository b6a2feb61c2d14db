"""Lint, compare, explain and enumerate policies."""
