"""How soon one worker serves, and its memory then: `python -m benchmarks.start`.

Time from the process's start to its ready line, the best of some (a busy machine only adds to it), and the
memory of all its processes at that moment: parent, fetcher, worker. Targets: 0.5 s, 60 MB.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from programs import running

from benchmarks.agent import world
from iamroles_scenarios.base.family import family

RUNS = 7
SECONDS, MEGABYTES = 0.5, 60.0


def proportional(pid: int) -> float:
    """Megabytes of an agent: of each page that its processes share, each has its part (PSS)."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1000


def main() -> int:
    """Print both; 1 if a target is missed."""
    times, sizes = [], []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = world("http://127.0.0.1:9", directory)
        for _ in range(RUNS):
            start = time.perf_counter()
            with running(directory, config, popen=subprocess.Popen) as agent:
                times.append(time.perf_counter() - start)
                sizes.append(proportional(agent.process.pid))
    sys.stdout.write(f"ready after {min(times):.2f} s (target {SECONDS:g}), ")
    sys.stdout.write(f"{max(sizes):.0f} MB in all (target {MEGABYTES:g})\n")
    return int(min(times) > SECONDS or max(sizes) > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
