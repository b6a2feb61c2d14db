"""Conducts a run: finds the knee, measures at shares of it, and takes the check's cost by pairing.

The knee
    A closed loop says what the gate takes at most. Rising rates of an open loop say up to where it takes them
    without a queue: the knee is the last rate at which nearly all that was due was answered and p90 from due
    stayed near that of the lowest. A step that fails is tried once more. The steps are the curve of
    throughput against latency.

Pairs
    The same request three times: without the question, with a verdict that the agent remembers, with a new
    token. The three take turns in short rounds at one rate, so that whatever else the machine does, it does
    to all. From each round comes one difference; the confidence interval is a bootstrap over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iamroles_loadtests.asking.cpu import Meter
from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.asking.targets import Target
from iamroles_loadtests.measuring.generator import Plays
from iamroles_loadtests.measuring.histogram import Histogram

LANES = ("unasked", "remembered", "new")
SHARES = {"low": 0.1, "half": 0.5, "high": 0.9}
"""Levels, as shares of the knee."""
_STEPS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Of the closed loop's rate."""
_ANSWERED = 0.98
"""Of what was due, at a step that passes."""
_SLOWER, _FLOOR = 5.0, 2000.0
"""A step passes whose p90 from due is at most so many times the first one's, or so many microseconds."""
_PERCENTILES = ("p50", "p90", "p99")
_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Score:
    """How long the parts of a run are.

    Args:
        level: seconds of each level.
        warmup: seconds before each phase.
        step: seconds of each step towards the knee.
        rounds: of the paired measurement; 0: none.
        round: seconds of each.
        connections: of the generator.
        in_flight: questions under way on a SPOP connection.
        constant: even gaps between requests.
        patience: seconds until a request without an answer is a fault.
        seed: of all timetables.
    """

    level: float = 4.0
    warmup: float = 0.5
    step: float = 0.8
    rounds: int = 7
    round: float = 0.7
    connections: int = 64
    in_flight: int = 1
    constant: bool = False
    patience: float = 5.0
    seed: int = 1


def tokens_for_pairs(score: Score, rate: float) -> int:
    """How many tokens that the agent has never seen the paired measurement needs."""
    return int(rate * (score.round + score.warmup / 2) * score.rounds * 1.2) + 200


class Conductor:
    """Plays the parts of a run on a generator.

    Args:
        target: what is measured.
        plays: the generator.
        score: lengths.
        say: told what is going on, for a person who waits.
        generator: finds the generator's process.
    """

    def __init__(
        self,
        target: Target,
        plays: Plays,
        score: Score,
        *,
        say: Callable[[str], None] = lambda _: None,
        generator: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._target = target
        self._plays = plays
        self._score = score
        self._say = say
        self._cpu = Meter({**target.parts, "generator": generator})
        self.measured: list[dict[str, Any]] = []
        """Everything that was played, for counts of wrong answers and for doubts."""

    def phase(self, name: str, rate: float, seconds: float, **more: Any) -> Phase:  # noqa: ANN401 - Phase checks
        """A phase on this target; rate 0: closed."""
        score, target = self._score, self._target
        settings: dict[str, Any] = {
            "name": name,
            "address": target.address,
            "lane": target.lane,
            "tls": target.tls,
            "hands": {target.steady: 1.0},
            "connections": score.connections,
            "in_flight": score.in_flight,
            "constant": score.constant,
            "patience": score.patience,
            "seed": score.seed,
            "warmup": score.warmup,
            "seconds": seconds,
            "timetable": [{"seconds": seconds, "rate": rate}] if rate else [],
        }
        return Phase.model_validate({**settings, **more})

    def play(self, phase: Phase, role: str) -> dict[str, Any]:
        """Play a phase; its result with `role`, `rate`, `answered` (a second) and `cpu` (µs a request)."""
        before = self._cpu.read()
        found = self._plays.play(phase)
        used = self._cpu.since(before)
        self._target.still_there()
        self.measured.append(found)
        # CPU is read from before the warm-up to after the last answer, so it belongs to all the answers.
        answers = max(1, found["answers"])
        cpu = {name: round(seconds / answers * 1e6, 3) for name, seconds in used.items()}
        due = sum(stretch.segment().total for stretch in phase.timetable)
        found |= {
            "role": role,
            "rate": round(due / phase.length, 3),
            "answered": round(found["samples"] / phase.length, 3),
            "generator_busy": round(found.pop("cpu") / phase.length, 3),
            "cpu": cpu,
            "connections": phase.connections,
            "in_flight": phase.in_flight,
        }
        return found

    # --- the knee ------------------------------------------------------------------------------------------

    def knee(self) -> dict[str, Any]:
        """Find the knee: see the module, and `knee` of result.json."""
        self._say("how much does it take at most?")
        tries = [self.play(self.phase("closed", 0.0, self._score.step), "capacity") for _ in range(2)]
        capacity = max(1.0, *(found["answered"] for found in tries))
        steps: list[dict[str, Any]] = []
        for share in _STEPS:
            step = self._step(capacity * share, steps)
            if not step["passed"]:  # once more: something else may have had the machine just then
                step = self._step(capacity * share, steps)
            steps.append(step)
            if not step["passed"]:
                break
        passed = [step["rate"] for step in steps if step["passed"]]
        return {
            "capacity": round(capacity, 1),
            "rate": round(max(passed, default=steps[0]["rate"]), 1),
            "steps": steps,
        }

    def _step(self, rate: float, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._say(f"{rate:,.0f} a second")
        found = self.play(self.phase(f"step {rate:.0f}", rate, self._score.step), "step")
        return _judged_step(found, steps[0] if steps else None)

    # --- pairs ---------------------------------------------------------------------------------------------

    def pairs(self, rate: float) -> dict[str, Any]:
        """Take turns between the three lanes: see the module, and `pairs` of result.json."""
        score = self._score
        rounds: dict[str, list[dict[str, Any]]] = {lane: [] for lane in LANES}
        self._say(f"what does the check cost, at {rate:,.0f} a second?")
        for number in range(score.rounds):
            # Turn about, so that no lane always follows the same other.
            order = [LANES[(number + place) % len(LANES)] for place in range(len(LANES))]
            for lane in order if number % 2 else reversed(order):
                more = {"hands": {"remembered" if lane == "new" else lane: 1.0}, "seed": number + 1}
                if lane == "new":
                    more |= {"once": "new", "once_share": 1.0}
                phase = self.phase(lane, rate, score.round, warmup=score.warmup / 2, **more)
                rounds[lane].append(self.play(phase, "pair"))
        return {
            "rate": round(rate, 1),
            "rounds": score.rounds,
            "seconds": score.round,
            "lanes": {lane: _lane(played) for lane, played in rounds.items()},
            "differences": {
                lane: _differences(rounds["unasked"], rounds[lane]) for lane in LANES if lane != "unasked"
            },
        }


def _judged_step(found: Mapping[str, Any], first: Mapping[str, Any] | None) -> dict[str, Any]:
    due, sent = whole(found, "due"), whole(found, "sent")
    answered = found["samples"] / max(1, found["samples"] + found["owed"] + found["faults"])
    limit = _FLOOR if first is None else max(_FLOOR, _SLOWER * first["due"].get("p90", 0.0))
    return {
        "rate": found["rate"],
        "answered": found["answered"],
        "owed": found["owed"],
        "due": due.summary(),
        "sent": sent.summary(),
        "cpu": found["cpu"],
        "passed": answered >= _ANSWERED and due.at(90.0) <= limit,
    }


def whole(found: Mapping[str, Any], name: str) -> Histogram:
    """All cases of a phase together: `due`, `sent` or `told`."""
    return Histogram.merged(Histogram.decoded(case[name]) for case in found["cases"].values())


def _lane(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lane: dict[str, Any] = {}
    for name in ("due", "sent", "told"):
        histogram = Histogram.merged(whole(played, name) for played in rounds)
        if name == "told":  # microseconds by HAProxy's own clock
            if histogram.count:
                lane[name] = {**_thousandfold(histogram.summary()), "histogram": histogram.encoded()}
        else:
            lane[name] = {**histogram.summary(), "histogram": histogram.encoded()}
    parts = sorted({part for played in rounds for part in played["cpu"]})
    lane["cpu"] = {part: round(float(np.mean(_cpu(rounds, part))), 3) for part in parts}
    lane["answered"] = round(float(np.mean([played["answered"] for played in rounds])), 1)
    return lane


def _thousandfold(summary: dict[str, float]) -> dict[str, float]:
    """`Histogram` takes what it counts for nanoseconds; these were microseconds."""
    return {name: value if name == "count" else round(value * 1e3, 3) for name, value in summary.items()}


def _cpu(rounds: Sequence[Mapping[str, Any]], part: str) -> list[float]:
    return [float(played["cpu"].get(part, 0.0)) for played in rounds]


def _differences(base: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PERCENTILES:
        at = float(name[1:])
        found[name] = interval(
            [
                whole(right, "sent").at(at) - whole(left, "sent").at(at)
                for left, right in zip(base, other, strict=True)
            ]
        )
    parts = sorted({part for played in (*base, *other) for part in played["cpu"]})
    found["cpu"] = {
        part: interval([b - a for a, b in zip(_cpu(base, part), _cpu(other, part), strict=True)])
        for part in parts
    }
    return found


def interval(values: Sequence[float], seed: int = 1) -> dict[str, float]:
    """The median of paired differences, with a 95 % interval by bootstrap over the pairs."""
    sample = np.asarray(values, dtype=np.float64)
    chance = np.random.default_rng(seed)
    drawn = np.median(chance.choice(sample, (_RESAMPLES, sample.size)), axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {
        "value": round(float(np.median(sample)), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


def timestamp() -> str:
    """Now, for people and files."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
