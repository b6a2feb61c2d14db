"""Checks of the proxy family."""
