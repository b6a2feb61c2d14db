"""Credentials: JWS and claims, JWKS cache, STS verifier."""
