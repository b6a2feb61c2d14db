"""Commands of the load tests."""
