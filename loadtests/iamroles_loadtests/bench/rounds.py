"""Contenders that take turns on one generator, and ratios of what they did.

On a shared machine an absolute figure tells of the minute. So each round plays every contender for a short
while, in an order that changes, and a ratio is taken within each round; its interval is a bootstrap over the
rounds. Each process is kept on a core: the proxy on the first, agents and generator on the last, so that what
HAProxy may spend is the same for all. On two cores agents and generator share one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iamroles_loadtests.asking.targets import Target
from iamroles_loadtests.measuring.conductor import Conductor, RunOptions, in_turn, interval
from iamroles_loadtests.measuring.generator import Generator
from iamroles_loadtests.measuring.measurement import Played
from iamroles_scenarios.base.family import family


@dataclass(frozen=True, slots=True)
class Shape:
    """How contenders are asked; rate 0: as fast as they answer."""

    name: str
    connections: int
    in_flight: int = 1
    rate: float = 0.0
    once_share: float = 0.0
    """Share of the questions that nobody asked before, to contenders whose pool is `known`."""
    longer: int = 1
    """Factor on the length of a turn: percentiles need samples."""


Rounds = dict[str, list[dict[str, Any]]]
"""The figures of each contender by round: `rate`, `wrong`, `cpu` by part, `p50`, `p99` in µs."""


def take_turns(
    generator: Generator,
    contenders: Mapping[str, Target],
    shape: Shape,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Rounds:
    """Play all contenders, round by round."""
    for target in contenders.values():
        for part, finder in target.parts.items():
            pin(finder(), first=part == "haproxy")
    seconds *= shape.longer
    options = RunOptions(warmup=seconds / 4, connections=shape.connections, in_flight=shape.in_flight)
    played: Rounds = {name: [] for name in contenders}
    for number, name in in_turn(list(contenders), rounds):
        say(f"{shape.name}, round {number + 1} of {rounds}: {name}")
        conductor = Conductor(contenders[name], generator, options)
        more: dict[str, Any] = {"seed": number + 1}
        if shape.once_share and contenders[name].steady == "known":
            more |= {"once": "new", "once_share": shape.once_share}
        played[name].append(_figures(conductor.play(conductor.phase(name, shape.rate, seconds, **more))))
    return played


def _figures(played: Played) -> dict[str, Any]:
    measured, sent = played.measured, played.measured.whole("sent")
    return {
        "rate": played.answered,
        "wrong": measured.wrong + measured.faults + measured.stray,
        "examples": played.examples,
        "cpu": {name: used for name, used in played.cpu.items() if name in played.used},
        "p50": sent.at(50.0),
        "p99": sent.at(99.0),
    }


def values(played: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    """One figure of each round: `rate`, `p99`, or a part, for its CPU microseconds a question."""
    return [float(one[what] if what in one else one["cpu"].get(what, 0.0)) for one in played]


def ratio(played: Rounds, what: str, over: str, under: str, under_what: str = "") -> dict[str, float]:
    """A contender's figure over another's, with a 95 % interval: `value`, `low`, `high`."""
    above, below = values(played[over], what), values(played[under], under_what or what)
    return interval([one / max(other, 1e-9) for one, other in zip(above, below, strict=True)])


def pin(pid: int | None, *, first: bool) -> None:
    """Keep a process and all that descends from it on the first core or the last."""
    if pid is None:
        return
    cores = sorted(os.sched_getaffinity(0))
    for member in family(pid):
        with suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                with suppress(OSError):
                    os.sched_setaffinity(int(thread.name), {cores[0] if first else cores[-1]})
