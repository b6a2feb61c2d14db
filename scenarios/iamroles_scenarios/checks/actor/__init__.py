"""Delegation (SPEC.md section 13): the rows of data/derived/actors.toml, and streams."""
