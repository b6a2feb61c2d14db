"""What is renewed under traffic and is too rich for a timeline of data (`data/scenarios/fire-*.toml`)."""
