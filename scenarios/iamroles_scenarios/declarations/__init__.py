"""What is declared as data: requirements, scenarios, checks and their results."""
