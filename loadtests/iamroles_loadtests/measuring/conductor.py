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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from iamroles_loadtests.asking.cpu import CpuMeter
from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.asking.targets import Target
from iamroles_loadtests.measuring.generator import Generator
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.measuring.measurement import Played
from iamroles_scenarios.traffic import Segment

PAIRED = ("unasked", "remembered", "new")
"""Pools of the paired measurement."""
SHARES = {"low": 0.1, "half": 0.5, "high": 0.9}
"""Levels, as shares of the knee."""
_STEPS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Steps towards the knee, as shares of the closed loop's rate."""
_ANSWERED = 0.98
"""A step passes if at least this share of the due requests is answered."""
_SLOWER, _FLOOR = 5.0, 2000.0
"""A step passes if its p90 from due is at most this multiple of the first step's, or of microseconds."""
_PERCENTILES = ("p50", "p90", "p99")
_RESAMPLES = 4000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The lengths of a run's parts, and how all of them ask.

    Args:
        duration: seconds of each level and shape.
        warmup: seconds before each phase.
        step: seconds of each step towards the knee.
        pairs: rounds of the paired measurement; 0: none.
        round: seconds of each.
        connections: of the generator.
        in_flight: questions under way on a SPOP connection.
        constant: even gaps between requests.
        patience: seconds until a request without an answer is a fault.
        seed: of all timetables.
    """

    duration: float = 4.0
    warmup: float = 0.5
    step: float = 0.8
    pairs: int = 7
    round: float = 0.7
    connections: int = 64
    in_flight: int = 1
    constant: bool = False
    patience: float = 5.0
    seed: int = 1


def tokens_for_pairs(options: RunOptions, rate: float) -> int:
    """Number of tokens that the agent has never seen which the paired measurement needs."""
    return int(rate * (options.round + options.warmup / 2) * options.pairs * 1.2) + 200


def longest(options: RunOptions, phases: int) -> float:
    """Return the seconds that a run with this number of phases takes at most."""
    plays = [(phases, options.duration), (2 + 2 * len(_STEPS), options.step)]
    plays += [(options.pairs * len(PAIRED), options.round)]
    return sum(count * (seconds + options.warmup + 1.0) for count, seconds in plays)


def in_turn(contenders: Sequence[_T], rounds: int) -> Iterator[tuple[int, _T]]:
    """Yield rounds and contenders, in an order that changes: none always follows the same other."""
    for number in range(rounds):
        order = [contenders[(number + shift) % len(contenders)] for shift in range(len(contenders))]
        for contender in order if number % 2 else reversed(order):
            yield number, contender


class Conductor:
    """Plays the parts of a run on a generator.

    Args:
        target: what is measured.
        generator: plays.
        options: lengths and the like.
        say: called with the current step, for a person at a terminal.
    """

    def __init__(
        self,
        target: Target,
        generator: Generator,
        options: RunOptions,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._target = target
        self._generator = generator
        self._options = options
        self._say = say
        self._cpu = CpuMeter(target.parts)
        self.played: list[Played] = []
        """Everything, for counts of wrong answers and for doubts."""

    def phase(self, name: str, rate: float, seconds: float, **more: Any) -> Phase:  # noqa: ANN401 - Phase checks
        """A phase on this target; rate 0: closed."""
        names = ("connections", "in_flight", "constant", "patience", "seed", "warmup")
        settings: dict[str, Any] = {option: getattr(self._options, option) for option in names}
        settings |= {"seconds": seconds, "timetable": [Segment(seconds, rate)] if rate else []}
        return self._target.phase(name=name, **settings | more)

    def play(self, phase: Phase, role: str = "level") -> Played:
        played = self._generator.play(phase, role, self._cpu)
        self._target.still_there()
        self.played.append(played)
        return played

    # --- the knee ------------------------------------------------------------------------------------------

    def knee(self) -> dict[str, Any]:
        """Find the knee: see the module, and `knee` of result.json."""
        self._say("how much does it take at most?")
        tries = [self.play(self.phase("closed", 0.0, self._options.step), "capacity") for _ in range(2)]
        capacity = max(1.0, *(found.answered for found in tries))
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
        found = self.play(self.phase(f"step {rate:.0f}", rate, self._options.step), "step")
        return _judged_step(found, steps[0] if steps else None)

    # --- pairs ---------------------------------------------------------------------------------------------

    def pairs(self, rate: float) -> dict[str, Any]:
        """Take turns between the three pools: see the module, and `pairs` of result.json."""
        options = self._options
        rounds: dict[str, list[Played]] = {pool: [] for pool in PAIRED}
        self._say(f"what does the check cost, at {rate:,.0f} a second?")
        for number, pool in in_turn(PAIRED, options.pairs):
            more: dict[str, Any] = {"weights": {pool: 1.0}}
            if pool == "new":
                more = {"weights": {"remembered": 1.0}, "once": "new", "once_share": 1.0}
            more |= {"seed": number + 1, "warmup": options.warmup / 2}
            rounds[pool].append(self.play(self.phase(pool, rate, options.round, **more), "pair"))
        return {
            "rate": round(rate, 1),
            "rounds": options.pairs,
            "seconds": options.round,
            "lanes": {pool: _lane(played) for pool, played in rounds.items()},
            "differences": {pool: _differences(rounds["unasked"], rounds[pool]) for pool in PAIRED[1:]},
        }


def _judged_step(found: Played, first: Mapping[str, Any] | None) -> dict[str, Any]:
    measured = found.measured
    due = measured.whole("due")
    limit = _FLOOR if first is None else max(_FLOOR, _SLOWER * first["due"].get("p90", 0.0))
    return {
        "rate": round(found.phase.rate, 3),
        "answered": found.answered,
        "owed": measured.owed,
        "due": due.summary(),
        "sent": measured.whole("sent").summary(),
        "cpu": found.cpu,
        "passed": measured.answered >= _ANSWERED and due.at(90.0) <= limit,
    }


def _lane(rounds: Sequence[Played]) -> dict[str, Any]:
    """Sum up all rounds of a pool."""
    due, sent, reported = (
        Histogram.merged(played.measured.whole(name) for played in rounds)
        for name in ("due", "sent", "reported")
    )
    lane: dict[str, Any] = {"due": due.shown(), "sent": sent.shown()}
    if reported.count:  # microseconds by HAProxy's own clock, which a histogram takes for nanoseconds
        lane["told"] = {
            name: round(value * 1e3, 3) if isinstance(value, float) else value
            for name, value in reported.shown().items()
        }
    lane["cpu"] = {part: round(float(np.mean(_cpu(rounds, part))), 3) for part in _parts(rounds)}
    lane["answered"] = round(float(np.mean([played.answered for played in rounds])), 1)
    return lane


def _parts(rounds: Sequence[Played]) -> list[str]:
    """Name the parts whose time is known in every round."""
    return sorted(set.intersection(*(set(played.cpu) for played in rounds)))


def _cpu(rounds: Sequence[Played], part: str) -> list[float]:
    return [played.cpu[part] for played in rounds]


def _differences(base: Sequence[Played], other: Sequence[Played]) -> dict[str, Any]:
    """Compare the percentiles that the samples of every round bear, and the CPU time."""
    lanes = [[played.measured.whole("sent").summary() for played in rounds] for rounds in (base, other)]
    found: dict[str, Any] = {
        name: _paired(*([summary[name] for summary in lane] for lane in lanes))
        for name in _PERCENTILES
        if all(name in summary for lane in lanes for summary in lane)
    }
    parts = _parts([*base, *other])
    return found | {"cpu": {part: _paired(_cpu(base, part), _cpu(other, part)) for part in parts}}


def _paired(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    return interval([two - one for one, two in zip(base, other, strict=True)])


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
