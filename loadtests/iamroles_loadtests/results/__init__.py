"""Results, objectives, reports and comparisons."""
