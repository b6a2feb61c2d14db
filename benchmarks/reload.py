"""Measure what a reload of a large policy costs its callers: `python -m benchmarks.reload`.

An agent with 4 workers and 10,000 grants; on each worker one connection asks remembered questions, one after
the other, a thousand a second. Printed: how long a reload takes from SIGHUP to its line, and the longest wait
for an answer while reloads go on, beside the longest wait in the same time without one. Targets: 2 s, 50 ms.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from programs import running
from running_agent import good_token, question
from spop_transcript import hello
from tokens_support import EC_KEY, ROLE, Server, public_jwk, serving

from benchmarks.agent import frames, world

GRANTS, WORKERS, RELOADS = 10_000, 4, 5
SECONDS, LONGEST = 2.0, 0.050


def policy(issuer: str, directory: Path, mark: int) -> dict[str, object]:
    """A world with many grants; `mark` makes it another version."""
    made = world(issuer, directory)
    made["agent"] = {"listen": "127.0.0.1:0", "workers": WORKERS}
    made["audit"] = {"path": "none"}
    roles = [{"name": f"r{n}", "arn": f"{ROLE}-{n}"} for n in range(1000)]
    made["roles"] = [*made["roles"], *roles]
    made["grants"] = [
        *made["grants"],
        *(
            {"id": f"G{n}", "roles": [f"r{n % 1000}"], "methods": ["GET", "POST"], "path": f"/s{n % 97}/a{n}",
             "backend": "orders-ro", **({"hosts": ["a.example.com"]} if n == mark else {})}
            for n in range(GRANTS)
        ),
    ]  # fmt: skip
    return made


class AskingThread(threading.Thread):
    """One connection that asks a thousand times a second, and keeps its waits with their times."""

    def __init__(self, address: str, batch: bytes) -> None:
        super().__init__(daemon=True)
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.sendall(hello())
        self.sock.recv(4096)
        self.batch, self.waits, self.ending = batch, [], False

    def run(self) -> None:
        while not self.ending:
            start = time.perf_counter()
            self.sock.sendall(self.batch)
            assert self.sock.recv(65536)
            self.waits.append((start, time.perf_counter() - start))
            time.sleep(0.001)


def longest(askers: list[AskingThread], start: float, end: float) -> float:
    """The longest wait of anybody in a span."""
    return max(wait for asker in askers for at, wait in asker.waits if start <= at < end)


def run(server: Server, directory: Path) -> int:
    """Measure; 1 if a target is missed."""
    server.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1")]})
    path = directory / "world.json"
    # Made before: what this process does meanwhile would be waited for as well.
    texts = [json.dumps(policy(server.url, directory, mark)) for mark in range(RELOADS + 1)]
    with running(directory, json.loads(texts[0]), popen=subprocess.Popen) as agent:
        batch = frames(question(good_token(server.url)), 1)
        askers = [AskingThread(agent.ready["address"], batch) for _ in range(4 * WORKERS)]
        for asker in askers:
            asker.start()
        time.sleep(2.0)
        quiet_from = time.perf_counter()
        time.sleep(3.0)
        quiet = longest(askers, quiet_from, time.perf_counter())
        times, busy_from = [], time.perf_counter()
        for text in texts[1:]:
            path.write_text(text)
            start = time.perf_counter()
            outcome = agent.reload()
            times.append(time.perf_counter() - start)
            assert outcome["confirmed"] == WORKERS, outcome
        time.sleep(0.5)
        busy = longest(askers, busy_from, time.perf_counter())
        for asker in askers:
            asker.ending = True
        for asker in askers:
            asker.join()
    sys.stdout.write(
        f"{GRANTS} grants, {WORKERS} workers: a reload takes {min(times):.2f} to {max(times):.2f} s "
        f"(target {SECONDS:g}); longest wait {busy * 1e3:.0f} ms during reloads, {quiet * 1e3:.0f} without "
        f"(target {LONGEST * 1e3:.0f})\n"
    )
    return int(min(times) > SECONDS or busy > LONGEST + quiet)


def main() -> int:
    """Measure on a directory of its own."""
    with tempfile.TemporaryDirectory() as name, serving() as server:
        return run(server, Path(name))


if __name__ == "__main__":
    sys.exit(main())
