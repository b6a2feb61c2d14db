"""What the standards permit and no check forbids: switches of the tolerant twin."""
