"""Two workers beside one, asked straight, in turn: `python -m benchmarks.cores`.

The generator needs a core of its own, and two cores are all that many hosts have. So what counts is what a
frame costs: two workers on two cores of their own take twice the frames of a single worker, less by what a
frame costs more when two are at it. Printed are that ratio, at least 1.7, and how the work is spread over
the two, by CPU time: they have as many connections each (`accepting`), but a busy host may run one less than
the other.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from running_agent import agent, good_token, question
from tokens_support import EC_KEY, public_jwk, serving

from benchmarks.agent import cpu_of, family, load, world
from benchmarks.start import proportional

TARGET = 1.7
ROUNDS = 7
CONNECTIONS, FLIGHT = 16, 16


def spread(before: dict[int, float], after: dict[int, float]) -> float:
    """The busiest worker's share of the work, 0.5 where two share it evenly."""
    worked = [after[pid] - before[pid] for pid in after]
    return max(worked) / sum(worked)


def workers_of(ready: dict[str, Any]) -> dict[int, float]:
    """CPU seconds of each process but the parent."""
    return {pid: cpu_of(pid) for pid in family(ready["pid"])[1:]}


def main() -> int:
    """Print both; 1 if the target is missed."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name,
        serving() as issuer,
    ):
        issuer.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1", "ES256")]})
        check = question(good_token(issuer.url))
        ratios, shares, sizes = [], [], []
        configs = []
        for count in (1, 2):
            directory = Path(name, str(count))
            directory.mkdir()
            config = world(issuer.url, directory)
            config["agent"]["workers"] = count
            configs.append((config, directory))
        with agent(*configs[0]) as one, agent(*configs[1]) as two:
            for turn in range(ROUNDS):
                cost = {}
                for ready in (one, two) if turn % 2 else (two, one):
                    before = workers_of(ready)
                    _, cost[ready["pid"]] = uvloop.run(load(ready, check, CONNECTIONS, FLIGHT))
                    if ready is two:
                        shares.append(spread(before, workers_of(two)))
                ratios.append(2 * cost[one["pid"]] / cost[two["pid"]])
            sizes = [proportional(ready["pid"]) for ready in (one, two)]
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
