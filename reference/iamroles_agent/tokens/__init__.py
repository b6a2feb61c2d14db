"""Credentials: JWS and claims, JWKS cache, STS verifier."""

from iamroles_agent.tokens.authenticator import Authenticator

__all__ = ["Authenticator"]
