"""How soon one worker serves, and its memory then: `python tests/agent/bench_start.py`.

Time from the process's start to its ready line, the best of some (a busy machine only adds to it), and the
resident memory at that moment. Targets: 0.5 s, 60 MB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench_agent import agent, world

RUNS = 7
SECONDS, MEGABYTES = 0.5, 60.0


def resident(pid: int) -> float:
    """Resident megabytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise ProcessLookupError(pid)


def main() -> int:
    """Print both; 1 if a target is missed."""
    times, sizes = [], []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = world("http://127.0.0.1:9", directory)
        for _ in range(RUNS):
            start = time.perf_counter()
            with agent(config, directory) as ready:
                times.append(time.perf_counter() - start)
                sizes.append(resident(ready["pid"]))
    sys.stdout.write(f"ready after {min(times):.2f} s (target {SECONDS:g}), ")
    sys.stdout.write(f"{max(sizes):.0f} MB resident (target {MEGABYTES:g})\n")
    return int(min(times) > SECONDS or max(sizes) > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
