"""Commands of the scenarios package."""
