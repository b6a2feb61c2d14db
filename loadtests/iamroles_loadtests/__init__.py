"""The meter: locust users, histograms, SLOs, load report."""
