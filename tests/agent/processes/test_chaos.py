"""A short day of chaos; the long one is `python -m benchmarks.chaos`."""

import pytest
from programs import module


@pytest.mark.parametrize("workers", ["1", "4"])
def test_no_verdict_that_the_version_in_force_does_not_give(workers):
    """The seed is in what it prints."""
    sizes = {"--questions": "2000", "--reloads": "6", "--faults": "6", "--minutes": "3", "--pause": "0.5"}
    options = ["--workers", workers, "--stop-early", *(word for size in sizes.items() for word in size)]
    done = module("benchmarks.chaos", *options, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong verdicts" in done.stdout
