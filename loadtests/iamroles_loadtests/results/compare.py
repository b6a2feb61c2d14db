"""Two results side by side: ratios with their confidence.

Samples of a run are not independent: a machine that is slow now is slow in the next millisecond. So the
interval of a ratio is a bootstrap over the *windows* of both phases (a quarter of a second each, or more),
not over samples. A difference counts as shown only if the whole interval is on one side of 1. It is a
difference between these two runs: only runs that take turns can tell a change of what was measured from a
change of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iamroles_loadtests.measuring.histogram import PERCENTILES, Histogram, values_at
from iamroles_loadtests.results.slo import answered
from iamroles_scenarios.base.durations import duration

_RESAMPLES = 2000
_MACHINE = ("cpu", "cores", "system")
"""Facts about the environments that must not differ."""
_SOFTWARE = ("kernel", "python")
"""Facts that may falsify figures if they differ."""
_ASKED = ("rates", "connections", "in_flight", "shapes", "constant", "straight", "method", "tls")
"""Facts about the questions that must not differ."""
_FEW = 16
"""Fewer windows than this make an interval unreliable."""
_UNITS: Mapping[str, Callable[[float], str]] = {
    "us": duration,
    "/s": lambda rate: f"{rate:,.0f}/s",
    "share": lambda share: f"{share:.1%}",
}
"""Shows values of each unit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both runs.

    Args:
        phase: of which phase.
        name: of the figure.
        before: in the first run.
        after: in the second.
        low: of the 95 % interval of the ratio; None: without an interval.
        high: of it.
        unit: `us`, `/s` or `share`.
    """

    phase: str
    name: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    unit: str = "us"

    @property
    def ratio(self) -> float:
        """Second over first."""
        return round(self.after / max(self.before, 1e-9), 4)

    @property
    def verdict(self) -> str:
        """`slower`, `faster`, or "" if no difference is shown."""
        if self.low is None or self.high is None:
            return ""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else ""

    def in_words(self, value: float) -> str:
        return _UNITS[self.unit](value)

    @property
    def interval(self) -> str:
        """Readable; empty without one."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"

    def as_dict(self) -> dict[str, Any]:
        names = ("phase", "name", "before", "after", "ratio", "low", "high", "unit", "verdict")
        return {name: getattr(self, name) for name in names}


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Figure]:
    """The figures that two results share."""
    theirs = {phase["name"]: phase for phase in after["phases"]}
    found = []
    for phase in before["phases"]:
        other = theirs.get(phase["name"])
        if other is not None:
            found += list(_latencies(phase, other))
            found += list(_cpu(phase["name"], phase["cpu"], other["cpu"]))
    return [*_knee(before["knee"], after["knee"]), *_pairs(before["pairs"], after["pairs"]), *found]


def obstacles(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Why the two do not compare, one sentence each; empty if they do."""
    found = []
    for which, result in (("first", before), ("second", after)):
        if not result["valid"]:
            found.append(f"the {which} run is invalid: {'; '.join(result['doubts'])}")
        if result["wrong"] or result["faults"] or result["stray"]:
            found.append(
                f"the {which} run had {result['wrong']:,} wrong verdicts, {result['faults']:,} requests "
                f"without an answer, {result['stray']:,} answers not asked for: its speed says nothing"
            )
    found += _differing(before["environment"], after["environment"], _MACHINE, "{}")
    found += _differing(before["asked"], after["asked"], _ASKED, "--{}")
    found += _differing(before["target"], after["target"], ("kind", "stage"), "what was measured ({})")
    theirs = {phase["name"]: phase["rate"] for phase in after["phases"]}
    for phase in before["phases"]:
        rate = theirs.get(phase["name"])
        if rate is not None and not 0.9 * phase["rate"] <= rate <= 1.1 * phase["rate"]:
            found.append(
                f"{phase['name']} was offered {phase['rate']:,.0f}/s, then {rate:,.0f}/s: give both --rate"
            )
    return found


def cautions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say what else to bear in mind, one sentence each."""
    found = list(_differing(before["environment"], after["environment"], _SOFTWARE, "{}"))
    found += _differing(before["target"], after["target"], ("haproxy",), "{}")
    names = {phase["name"] for phase in before["phases"]} ^ {phase["name"] for phase in after["phases"]}
    if names:
        found.append(f"only one of the runs has {', '.join(sorted(names))}")
    few = [
        phase["name"]
        for phase in before["phases"]
        if 0 < sum(1 for window in phase["windows"] if window["samples"]) < _FEW
    ]
    if few:
        found.append(f"intervals rest on fewer than {_FEW} windows in {', '.join(few)}: use --duration")
    return found


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str], called: str
) -> Iterator[str]:
    for name in names:
        if one.get(name) != other.get(name):
            said = called.format(name.replace("_", "-"))
            yield f"{said} differs: {one.get(name)}, then {other.get(name)}"


def _knee(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Figure]:
    if before is not None and after is not None:
        for name, said in (("rate", "up to the knee"), ("capacity", "at most, closed loop")):
            yield Figure("knee", said, before[name], after[name], unit="/s")


def _latencies(phase: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Figure]:
    name = phase["name"]
    if not phase["closed"]:
        yield Figure(name, "answered of what was due", answered(phase), answered(other), unit="share")
        for at in ("p50", "p99"):
            if at in phase["due"] and at in other["due"]:
                yield Figure(name, f"{at} from due", phase["due"][at], other["due"][at])
    names = [at for at in PERCENTILES if at in phase["sent"] and at in other["sent"] and at != "p99.99"]
    resampled = [_resampled(one, names, seed) for seed, one in enumerate((phase, other))]
    for number, at in enumerate(names):
        low = high = None
        if all(drawn is not None for drawn in resampled):
            ratios = resampled[1][:, number] / resampled[0][:, number]  # type: ignore[index]
            low, high = (round(float(value), 4) for value in np.percentile(ratios, (2.5, 97.5)))
        yield Figure(name, f"{at} from sent", phase["sent"][at], other["sent"][at], low, high)


def _resampled(phase: Mapping[str, Any], names: list[str], seed: int) -> NDArray[np.float64] | None:
    """Percentiles of a phase whose windows were drawn again and again; one row a draw."""
    windows = [
        Histogram.decoded(window["sent"]["histogram"]).counts
        for window in phase["windows"]
        if window["samples"]
    ]
    if len(windows) < 4 or not names:
        return None
    counts = np.stack(windows)
    used = np.flatnonzero(counts.sum(axis=0))
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(len(windows), [1 / len(windows)] * len(windows), size=_RESAMPLES)
    sums = drawn.astype(float) @ np.cumsum(counts[:, used], axis=1)
    rows = []
    for at in names:
        ranks = np.maximum(1, np.ceil(PERCENTILES[at] / 100 * sums[:, -1]))
        positions = (sums < ranks[:, None]).sum(axis=1)
        rows.append(values_at(used[np.minimum(positions, used.size - 1)]))
    return np.stack(rows, axis=1)


def _cpu(phase: str, before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[Figure]:
    for part in before:
        if part in after and part != "generator" and before[part]:
            yield Figure(phase, f"CPU of {part}", before[part], after[part])


def _pairs(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Figure]:
    """Compare what the check adds by the intervals of each run: apart if they do not touch."""
    if before is None or after is None:
        return
    for pool in ("remembered", "new"):
        one, two = (pairs["differences"][pool].get("p50") for pairs in (before, after))
        if one and two and one["value"] > 0 and two["value"] > 0:
            low = high = None
            if one["low"] > 0 and two["low"] > 0:
                low, high = round(two["low"] / one["high"], 4), round(two["high"] / one["low"], 4)
            yield Figure("pairs", f"{pool} adds at p50", one["value"], two["value"], low, high)
