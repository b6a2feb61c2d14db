"""What is asked, of whom: plans, questions, targets and the gate's configuration."""
