"""The reference SPOE agent: verifies a credential, maps its role to a route, answers HAProxy."""

__version__ = "0.1.0"
