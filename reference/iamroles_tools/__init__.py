"""Help people beside the agent: lint, diff and explain policies, read the audit log, mint tokens."""
