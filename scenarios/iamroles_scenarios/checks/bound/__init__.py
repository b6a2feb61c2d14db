"""Tokens that are bound to a key or certificate (SPEC.md section 12), over SPOP and through HAProxy."""
