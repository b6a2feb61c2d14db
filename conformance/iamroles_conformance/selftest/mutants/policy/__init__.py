"""Mutants of the policy family: rules, loading, and what the proxy makes of them."""
