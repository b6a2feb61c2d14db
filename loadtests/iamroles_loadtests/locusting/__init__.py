"""The same loop as a locust user, with a master and workers."""
