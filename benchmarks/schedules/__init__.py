"""Play random orders of events in one agent: `python -m benchmarks.schedules`."""
