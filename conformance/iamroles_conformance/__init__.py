"""The judge: pytest plugin, verdicts, reports, self-test."""
