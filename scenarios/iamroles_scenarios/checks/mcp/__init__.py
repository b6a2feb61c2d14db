"""Checks of MCP servers behind the gate, SPEC.md section 14."""
