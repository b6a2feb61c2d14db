"""Commands of the conformance package."""
