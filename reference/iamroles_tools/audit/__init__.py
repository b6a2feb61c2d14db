"""Read, verify, query and prove the audit log."""
