"""Mutants of the identity family: tokens, claims, key sets, callers of STS."""
