"""Two workers beside one, asked straight, in turn: `python -m benchmarks.cores`.

The generator needs a core of its own, and two cores are all that many hosts have. So what counts is what a
frame costs: two workers on two cores of their own take twice the frames of a single worker, less by what a
frame costs more when two are at it. Printed are that ratio, at least 1.7, and how the work is spread over
the two, by CPU time: they have as many connections each (`accepting`), but a busy host may run one less than
the other.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from running_agent import good_token, question

from benchmarks.agent import load, running
from benchmarks.start import proportional
from iamroles_loadtests.asking.cpu import cpu_seconds
from iamroles_loadtests.bench.agent import MEMORY
from iamroles_loadtests.measuring.conductor import in_turn
from iamroles_scenarios.base.family import children_of

TARGET = 1.7
ROUNDS = 7
CONNECTIONS, FLIGHT = 16, 16


def spread(before: dict[int, float], after: dict[int, float]) -> float:
    """The busiest worker's share of the work, 0.5 where two share it evenly."""
    worked = [after[pid] - before[pid] for pid in after]
    return max(worked) / sum(worked)


def workers_of(ready: dict[str, Any]) -> dict[int, float]:
    """CPU seconds of each process but the parent."""
    return {pid: cpu_seconds(pid) for pid in children_of(ready["pid"])}


def main() -> int:
    """Print both; 1 if the target is missed."""
    costs, shares = [{}, {}], []
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as first,
        tempfile.TemporaryDirectory(dir=MEMORY) as second,
        running(Path(first), agent={"listen": "127.0.0.1:0", "workers": 1}) as one,
        running(Path(second), agent={"listen": "127.0.0.1:0", "workers": 2}) as two,
    ):
        checks = [question(good_token(issuer.url)) for _, issuer in (one, two)]
        for turn, at in in_turn((0, 1), ROUNDS):
            ready, _ = (one, two)[at]
            before = workers_of(ready)
            _, costs[at][turn] = uvloop.run(load(ready, checks[at], CONNECTIONS, FLIGHT))
            if at:
                shares.append(spread(before, workers_of(ready)))
        sizes = [proportional(ready["pid"]) for ready, _ in (one, two)]
    ratios = [2 * costs[0][turn] / costs[1][turn] for turn in range(ROUNDS)]
    ratio = statistics.median(ratios)
    sys.stdout.write(
        f"two workers over one, by what a frame costs: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"target {TARGET}\nthe busier worker's share of {CONNECTIONS} connections' work: "
        f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})\n"
        f"memory: {sizes[0]:.0f} and {sizes[1]:.0f} MB\n"
    )
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
