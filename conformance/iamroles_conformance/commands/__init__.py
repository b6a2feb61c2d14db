"""Commands of the conformance package: one module each, joined in `conformance`; `trace` stands alone."""
