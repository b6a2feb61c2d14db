"""A bench's figures on a page: between two marks, rewritten as a whole by the command that took them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from iamroles_loadtests.bench.rounds import Rounds, values
from iamroles_loadtests.measuring.conductor import interval
from iamroles_scenarios.base.pages.markdown import Section, table

_BOUND = re.compile(r"at (?P<kind>most|least) (?P<bound>[0-9.]+)")


def verdict(target: str, seen: Mapping[str, float]) -> str:
    """Compare an interval with a target, "at most 1.4" or "at least 14": met, **missed**, or open.

    Open: the interval spans the target. More rounds, or a quieter host, would decide.
    """
    found = _BOUND.fullmatch(target)
    if found is None:
        return ""
    bound, sign = float(found["bound"]), 1 if found["kind"] == "most" else -1
    worst, best = sorted((sign * seen["low"], sign * seen["high"]), reverse=True)
    return "met" if worst <= sign * bound else "**missed**" if best > sign * bound else "open"


def ranged(seen: Mapping[str, float]) -> str:
    """A figure with its interval."""
    return f"{seen['value']:.2f} ({seen['low']:.2f} to {seen['high']:.2f})"


def circumstances(command: str, haproxy: str) -> str:
    """Say what was run, by which version of HAProxy, where and when."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, HAProxy {haproxy}, {cores} cores, load average "
        f"{load:.0f} at the end. Medians of the rounds; ratios are taken within each round, in brackets "
        "their 95 % interval."
    )


def section(page: Path, name: str) -> Section:
    """The lines between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        PageError: the page cannot be read or written, or has not one such pair.
    """
    return Section(page, f"<!-- {name} -->", f"<!-- /{name} -->")


def rates(played: Rounds) -> list[str]:
    """Lay out medians of the contenders of a shape."""
    heading = ("", "a second", "p50 µs", "p99 µs", "HAProxy's CPU µs", "agent's CPU µs")
    rows = []
    for name, rounds in played.items():
        figures = ("rate", "p50", "p99", "haproxy", "agent")
        what = {figure: interval(values(rounds, figure))["value"] for figure in figures}
        cpu = (f"{what[part]:.2f}" if what[part] else "" for part in ("haproxy", "agent"))
        rows.append([name, *(f"{what[part]:,.0f}" for part in ("rate", "p50", "p99")), *cpu])
    return table(heading, rows)
