"""The agent's hot path, all switched on, over its real socket: `python -m benchmarks.agent`.

First the agent as it is run (`iamroles agent run`: policy, keys of a local issuer, audit to a file, metrics)
answers one question again and again: frames a second, and the CPU time that a frame costs the agent's
process. Every answer is compared with the one expected, byte for byte. Then its parts, in this process and
in turn: the same frames through the protocol alone (a dictionary for a gate), through the gate without an
audit, and with it. What is left to the whole is the socket and the event loop.

The audit file is in memory (/dev/shm) where there is such a place: at these rates it grows by 100 MB a
second and more. Many disks do not take that, and then the agent refuses, as it must. `--directory` puts it
elsewhere.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import uvloop
from programs import running as launched
from running_agent import good_token, question
from spop_client import Client
from spop_transcript import context_message, hello, notify
from tokens_support import AUDIENCE, EC_KEY, ROLE, Server, public_jwk, serving

from iamroles_agent.audit.log import Audit
from iamroles_agent.base.config import AuditSettings, Config, MetricsSettings
from iamroles_agent.policy import Policy
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.metrics import Metrics
from iamroles_agent.spop import actions
from iamroles_agent.spop.connection import CheckRequested, Connection
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens import Authenticator
from iamroles_agent.tokens.keys import KeySet
from iamroles_loadtests.asking.cpu import cpu_seconds
from iamroles_loadtests.bench.agent import MEMORY
from iamroles_scenarios.base.family import family

SECONDS = 2.0
SHAPES = ((4, 16), (16, 1))
"""Connections, and frames that each has in flight."""
ROUNDS, PER_ROUND = 60, 20
"""Rounds for each part, and reads of 16 frames in each round."""


def world(issuer: str, directory: Path) -> dict[str, Any]:
    """A configuration with everything on."""
    return {
        "version": 1,
        "agent": {"listen": "127.0.0.1:0"},
        "audit": {"path": str(directory / "audit.log")},
        "metrics": {"listen": "127.0.0.1:0"},
        "issuers": [
            {"name": "corp", "issuer": issuer, "jwks_uri": f"{issuer}/jwks", "insecure_http": True,
             "audiences": [AUDIENCE], "algorithms": ["ES256"]}
        ],
        "roles": [{"name": "reader", "arn": ROLE}],
        "backends": [{"name": "orders-ro", "servers": ["127.0.0.1:9"]}],
        "grants": [
            {"id": "R1", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders-ro"}
        ],
    }  # fmt: skip


@contextmanager
def running(directory: Path, **changes: object) -> Iterator[tuple[dict[str, Any], Server]]:
    """Run an agent whose configuration differs in these tables; yields its ready line, and its issuer."""
    with serving() as issuer:
        issuer.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1", "ES256")]})
        with launched(directory, world(issuer.url, directory) | changes, popen=Popen) as agent:
            yield agent.ready, issuer


def frames(check: bytes, count: int) -> bytes:
    """Return this many NOTIFYs in a single read, each with its own request id, like `unique-id`."""
    return b"".join(
        notify(context_message(b"7F000001:C34A_7F000001:1F90_65A0B1C2_%04X:0001" % n) + check, ids=(n, 1))
        for n in range(1, count + 1)
    )


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its descendants: of an agent's parent, its fetcher, its workers."""
    return sum(map(cpu_seconds, family(pid)))


class Asker(asyncio.Protocol):
    """One connection that asks the same questions until told to stop."""

    def __init__(self, batch: bytes, expected: bytes) -> None:
        self.batch, self.expected = batch, expected
        self.asked = self.wrong = 0
        self.ending = False
        self.done = asyncio.get_running_loop().create_future()
        self._greeted, self._received = False, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(hello())

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._greeted:
            self._greeted, self._received = True, b""
        elif self._received == self.expected:
            self.asked += 1
            self._received = b""
        elif self.expected.startswith(self._received):
            return
        else:
            self.wrong += 1
            self.ending = True
        if self.ending:
            self._transport.close()
        else:
            self._transport.write(self.batch)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.done.set_result(None)


async def load(ready: dict[str, Any], check: bytes, connections: int, flight: int) -> tuple[float, float]:
    """Frames a second, and the agent's CPU microseconds for one."""
    host, _, port = ready["address"].rpartition(":")
    batch = frames(check, flight)
    expected = await answer(ready["address"], batch, flight)
    loop = asyncio.get_running_loop()
    askers = []
    for _ in range(connections):
        _, asker = await loop.create_connection(lambda: Asker(batch, expected), host, int(port))
        askers.append(asker)
    await asyncio.sleep(0.2)
    asked, cpu, start = sum(one.asked for one in askers), cpu_of(ready["pid"]), time.perf_counter()
    await asyncio.sleep(SECONDS)
    asked = sum(one.asked for one in askers) - asked
    cpu, elapsed = cpu_of(ready["pid"]) - cpu, time.perf_counter() - start
    for asker in askers:
        asker.ending = True
    await asyncio.gather(*(asker.done for asker in askers))
    assert not any(asker.wrong for asker in askers), "wrong answers: does the disk keep up with the audit?"
    return asked * flight / elapsed, cpu / (asked * flight) * 1e6


async def answer(address: str, batch: bytes, count: int) -> bytes:
    """The remembered answer to a batch, as bytes; it must allow."""
    client = await Client.connect(address)
    for _ in range(2):
        client.send(batch)
        lines = [await client.receive() for _ in range(count)]
        assert all("allow=True" in line for line in lines), lines[0]
    client.send(batch)
    expected = [await client.frame() for _ in range(count)]
    await client.close()
    return b"".join(expected)


def whole(directory: Path) -> dict[tuple[int, int], float]:
    """Print what the running agent does; returns its CPU microseconds for a frame, by shape."""
    costs = {}
    with running(directory) as (ready, issuer):
        check = question(good_token(issuer.url))
        for shape in SHAPES:
            runs = [uvloop.run(load(ready, check, *shape)) for _ in range(3)]
            rate, cost = (statistics.median(column) for column in zip(*runs, strict=True))
            costs[shape] = cost
            sys.stdout.write(
                f"{shape[0]:>3} connections x {shape[1]:<2} in flight "
                f"{rate:10,.0f} frames/s {cost:6.2f} CPU µs/frame of the agent's process\n"
            )
    return costs


def connection(gate: Gate | None, check: bytes, batch: bytes) -> Callable[[], None]:
    """A read of 16 remembered frames, without a socket."""
    memory: dict[bytes, bytes] = {}
    recall = gate.recall if gate else lambda key, _context: memory.get(key)
    wire = Connection(recall, max_frame_size=16380)
    wire.receive_data(hello())
    for event in wire.receive_data(notify(context_message() + check)):
        assert isinstance(event, CheckRequested)
        memory[event.key] = asyncio.run(gate.judge(event.check, event.context, event.key)) if gate else SAMPLE
    wire.data_to_send()

    def read() -> None:
        assert not wire.receive_data(batch), "not remembered"
        wire.data_to_send()

    return read


SAMPLE = actions.set_var(actions.VariableScope.TRANSACTION, "allow", DataType.BOOL, value=True) * 12


def parts(directory: Path) -> dict[str, float]:
    """CPU microseconds a frame: protocol alone, gate without audit, all of it, and the audit's thread."""
    issuer = "http://127.0.0.1:1"
    config = Config.model_validate(world(issuer, directory))
    authenticator = Authenticator(config)
    source = authenticator.sources["corp"]
    source._keys = KeySet.parse({"keys": [public_jwk(EC_KEY, "k1", "ES256")]})
    source._fetched_at = time.monotonic()
    check = question(good_token(issuer))
    audits = [Audit(AuditSettings(path=path)) for path in ("none", str(directory / "parts.log"))]
    gates = [Gate(Policy(config), authenticator, audit, Metrics(MetricsSettings())) for audit in audits]
    batch = frames(check, 16)
    reads = {
        "protocol": connection(None, check, batch),
        "gate": connection(gates[0], check, batch),
        "audit": connection(gates[1], check, batch),
    }
    spent: dict[str, list[float]] = {name: [] for name in (*reads, "thread")}
    for _ in range(ROUNDS):
        for name, read in reads.items():
            process, thread = time.process_time(), time.thread_time()
            for _ in range(PER_ROUND):
                read()
            thread = time.thread_time() - thread
            spent[name].append(thread / (16 * PER_ROUND) * 1e6)
            if name == "audit":
                audits[1].flush()
                others = time.process_time() - process - thread
                spent["thread"].append(others / (16 * PER_ROUND) * 1e6)
    for audit in audits:
        audit.close()
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=MEMORY, help="where the audit file is written")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().directory) as name:
        directory = Path(name)
        costs = whole(directory)
        cost = parts(directory)
    rows = {
        "protocol: frames, glance, ACKs": cost["protocol"],
        "gate: memory, expiry, metrics": cost["gate"] - cost["protocol"],
        "audit: record linked and hashed": cost["audit"] - cost["gate"],
        "audit: the writer's thread": cost["thread"],
        "socket and loop (4 x 16)": costs[4, 16] - cost["audit"] - cost["thread"],
    }
    total = costs[4, 16]
    sys.stdout.write("\nCPU µs/frame, remembered\n")
    for what, value in rows.items():
        sys.stdout.write(f"{what:<34}{value:7.2f} {value / total:6.0%}\n")
    return 0


if __name__ == "__main__":
    os.environ.pop("IAMROLES_POLICY", None)
    sys.exit(main())
