"""A short day of chaos; the long one is `python -m benchmarks.chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", ["1", "4"])
def test_no_verdict_that_the_version_in_force_does_not_give(workers):
    """The seed is in what it prints."""
    sizes = {"--questions": "2000", "--reloads": "6", "--faults": "6", "--minutes": "3", "--pause": "0.5"}
    options = ["--workers", workers, "--stop-early", *(word for size in sizes.items() for word in size)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong verdicts" in done.stdout
