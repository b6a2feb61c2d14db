"""The load and its targets: plans, questions, targets and the gate's configuration."""
