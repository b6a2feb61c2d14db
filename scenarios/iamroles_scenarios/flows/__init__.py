"""Checks that are too rich for scenario files, as functions: the wire, key sets, STS, the oracle, reloads."""
