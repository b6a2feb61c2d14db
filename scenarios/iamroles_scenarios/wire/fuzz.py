"""Thousands of broken inputs; the agent must stay alive, bounded, and right about the next good request.

Each input is sent with a good request behind it, on a connection that is used as long as it lasts. Then one
of two things must happen before the deadline: the good request gets its right answer, or the connection ends.
An input that leaves a frame unfinished would swallow the good request; our side is half-closed behind it
instead, and the connection must end. Nothing else is asked of the agent here: which inputs it refuses, and
how, is the matter of other checks.

What fails is kept as a file that replays with one command. A crash leaves no trace of who caused it, so the
file holds all inputs that were on their way, and the replay sends them one by one to find out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from iamroles_scenarios.base.errors import CheckFailed, TooSlow, WideVarint, WireError, WireFormatError
from iamroles_scenarios.base.family import resident
from iamroles_scenarios.wire.client import Ended, question
from iamroles_scenarios.wire.frames import HELLO, FrameType, variables
from iamroles_scenarios.wire.fuzz_inputs import Input, inputs
from iamroles_scenarios.wire.judge import DEADLINE, JudgedConnection, connected, must_live, probe
from iamroles_scenarios.wire.target import WireTarget

SEED = 3030
"""Seed of the check in the wire lane."""
_MARKER = 0x7FFFFFFE
"""stream-id of the good request behind an input."""
_GROWTH = 64 << 20
"""Bytes that an agent may grow by over a run."""
_LARGEST = int(str(HELLO["max-frame-size"]))


@dataclass(slots=True)
class FuzzReport:
    """The outcome of a run."""

    seed: int
    sent: int = 0
    answered: int = 0
    """Inputs after which the good request was answered."""
    ended: int = 0
    """Inputs that ended their connection."""
    grown: int | None = None
    """Bytes of resident memory; None where the process is not on this host."""
    seconds: float = 0.0
    failure: str = ""
    suspects: list[Input] = field(default_factory=list)
    """The inputs under way when it failed."""

    def save(self, path: Path) -> None:
        document = {
            "seed": self.seed,
            "failure": self.failure,
            "inputs": [{"greeted": one.greeted, "hex": one.raw.hex()} for one in self.suspects],
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Input]:
    """The inputs of a saved failure.

    Raises:
        ValueError: not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [Input(bytes.fromhex(one["hex"]), bool(one["greeted"])) for one in document["inputs"]]
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of the fuzzer: {error}") from error


def finishes(raw: bytes) -> bool:
    """Return whether bytes end where a frame ends and an agent must read every length."""
    at = 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        if at + 4 > len(raw) or not 7 <= length <= _LARGEST:
            return False
        at += 4 + length
    return at == len(raw)


async def fuzz(
    target: WireTarget,
    *,
    seed: int = SEED,
    count: int = 10_000,
    concurrency: int = 6,
    drawn_within: float | None = None,
) -> FuzzReport:
    """Send generated inputs; stops at the first failure.

    Args:
        target: whom; its `pid` makes memory watched.
        seed: of the inputs.
        count: how many.
        concurrency: connections side by side.
        drawn_within: seconds in which the first inputs must be drawn, before anything is sent.

    Raises:
        TooSlow: they were not.
    """
    source = inputs(seed, count)
    try:
        async with asyncio.timeout(drawn_within):
            first = await asyncio.to_thread(next, source)
    except TimeoutError:
        raise TooSlow(f"the suite's own inputs were not drawn within {drawn_within:g} s") from None
    return await _Fuzzer(target, FuzzReport(seed)).run(chain([first], source), concurrency)


async def replay(target: WireTarget, kept: list[Input]) -> FuzzReport:
    """Send inputs one by one, each on a connection of its own; stops at the first that fails."""
    fuzzer = _Fuzzer(target, FuzzReport(0), fresh=True)
    return await fuzzer.run(iter(kept), 1)


class _Fuzzer:
    """One run."""

    def __init__(self, target: WireTarget, report: FuzzReport, *, fresh: bool = False) -> None:
        self._target = target
        self._report = report
        self._fresh = fresh
        self._marker = question(probe(target), stream_id=_MARKER)
        self._on_the_way: dict[int, Input] = {}

    async def run(self, source: Iterator[Input], concurrency: int) -> FuzzReport:
        started = time.monotonic()
        await must_live(self._target, "its start")
        before = None if self._target.pid is None else resident(self._target.pid)
        try:
            async with asyncio.TaskGroup() as group:
                for lane in range(concurrency):
                    group.create_task(self._lane(lane, source))
        except* (CheckFailed, WireError) as failures:
            self._report.failure = str(failures.exceptions[0]).splitlines()[0]
        else:
            await self._afterwards(before)
        self._report.suspects = list(self._on_the_way.values())
        self._report.seconds = time.monotonic() - started
        return self._report

    async def _afterwards(self, before: int | None) -> None:
        try:
            await must_live(self._target, f"{self._report.sent} inputs")
        except CheckFailed as failure:
            self._report.failure = failure.message
        if before is not None and self._target.pid is not None:
            grown = (resident(self._target.pid) or 0) - before
            self._report.grown = grown
            if grown > _GROWTH:
                self._report.failure = f"the agent grew by {grown >> 20} MiB, {_GROWTH >> 20} are allowed"

    async def _lane(self, lane: int, source: Iterator[Input]) -> None:
        """Take inputs as they come, on one connection after another."""
        waiting = next(source, None)
        while waiting is not None:
            async with connected(self._target) as connection:
                connection.keep_only(40)
                if waiting.greeted:
                    await connection.hello()
                open_still = True
                while waiting is not None and open_still:
                    self._on_the_way[lane] = waiting
                    greeted = waiting.greeted
                    open_still = await self._one(connection, waiting)
                    self._report.sent += 1
                    waiting = next(source, None)
                    if self._fresh or not greeted or (waiting is not None and not waiting.greeted):
                        open_still = False
                self._on_the_way.pop(lane, None)

    async def _one(self, connection: JudgedConnection, sent: Input) -> bool:
        """Send one input; gives whether the connection is still good."""
        whole = finishes(sent.raw) and sent.greeted
        await connection.send(sent.raw, *([self._marker] if whole else []))
        if not whole:
            connection.half_close()
        deadline = self._target.seconds(DEADLINE)
        while True:
            try:
                answer = await connection.receive(deadline)
            except WireError as error:
                if isinstance(error.__cause__, WideVarint):  # an input's own id, returned as it must be
                    self._report.ended += 1
                    return False
                raise WireError(f"after an input: {error.message}", connection.transcript) from error
            if isinstance(answer, Ended):
                self._report.ended += 1
                return False
            if answer.type != FrameType.ACK:
                continue
            if answer.stream_id == _MARKER:
                connection.must_judge(answer)
                self._report.answered += 1
                return True
            try:
                variables(answer)
            except WireFormatError as error:
                raise WireError(f"a malformed ACK to an input: {error}", connection.transcript) from error
            connection.must_not_allow(answer)
