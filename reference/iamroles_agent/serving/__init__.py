"""The gate and its listeners: SPOP connections, the decision, metrics."""
