"""The cost of each step of the gate in HAProxy: all steps, and all but one, taking turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from iamroles_loadtests.asking.gate_config import shipped_files
from iamroles_loadtests.bench.agent import BUSY, NOOP, Bench, generator, policy
from iamroles_loadtests.bench.rounds import Rounds, take_turns, values
from iamroles_loadtests.bench.variants import steps
from iamroles_loadtests.measuring.conductor import interval

ALL, PLAIN, ASKED = "all steps", "plain", "all steps and the question"
_KEPT = {"3", "6"}
"""The question has a line of its own; without the route nothing answers."""


def step_names() -> dict[str, str]:
    """The shipped configuration's steps that can be left out."""
    found = steps(shipped_files(policy())["haproxy.cfg"])
    return {name: says for name, says in found.items() if name not in _KEPT}


def measure(
    bench: Bench, names: Iterable[str], rounds: int, seconds: float, say: Callable[[str], None]
) -> Rounds:
    """Measure each variant: without each of these steps, and with all."""
    say("starting one HAProxy for each variant")
    contenders = {
        PLAIN: bench.through(NOOP, "--plain", pool="plain"),
        ALL: bench.through(NOOP, "--unasked"),
        ASKED: bench.through(NOOP),
        **{name: bench.through(NOOP, "--unasked", "--without", name, pool="plain") for name in names},
    }
    with generator(bench) as started:
        return take_turns(started, contenders, BUSY, rounds=rounds, seconds=seconds, say=say)


def rows(names: dict[str, str], played: Rounds) -> list[dict[str, Any]]:
    """HAProxy's CPU microseconds a request: the whole, then what each step adds, with intervals."""

    def of(name: str) -> list[float]:
        return values(played[name], "haproxy")

    found = [{"step": name, "says": "", **interval(of(name))} for name in (PLAIN, ALL, ASKED)]
    for name, says in names.items():
        spared = [whole - left for whole, left in zip(of(ALL), of(name), strict=True)]
        found.append({"step": name, "says": says, **interval(spared)})
    return found
