"""The audit log: one line for each decision, chained by hash, verified and queried."""
