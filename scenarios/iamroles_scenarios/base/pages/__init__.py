"""HTML pages with their charts, and Markdown: what the reports of a run, a soak and a load test share."""
