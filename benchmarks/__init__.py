"""Benchmarks and long plays: `python -m benchmarks.NAME`. They share the supports of the tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))
