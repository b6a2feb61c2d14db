"""Mutants of the proxy family: an agent or a configuration that HAProxy's own workings bring down."""
