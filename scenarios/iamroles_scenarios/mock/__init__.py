"""The mock cloud, the mock OIDC issuer and the echo backends, each its own process."""
