"""Faults that a walk through the agent's source gave: `python -m benchmarks.faults`."""
