"""How far a verdict can be relied on: the flake rate and the time margin of each check, over many runs.

A check *flakes* if runs of the same agent give it different verdicts; its rate is the share of runs that gave
another one than most did. Its *margin* is what was left of the bound of the wait that came nearest to its
own: 1 for an answer at once, 0 for one at the last moment. A small one is a flake to come, on a slower host.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from iamroles_conformance.errors import ReportError
from iamroles_scenarios.base.pages.markdown import table
from iamroles_scenarios.base.recording import Wait
from iamroles_scenarios.declarations.results import CheckResult, Verdict

PASSED = {verdict for verdict in Verdict if verdict.good} - {Verdict.WARNING, Verdict.DEPARTURE}
"""Verdicts that say nothing against the agent in any grade."""
NARROW = 0.5
"""Below this margin a check stands in the page by name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One check over all runs that played it."""

    name: str
    verdicts: Counter[str]
    again: int
    """Runs in which it was played more than once until its result held."""
    why: str
    """Why it did not pass the last time; if it always did, how the host was late for it."""
    narrowest: Wait | None
    """The least of all runs; None: the check has no wait with a bound."""

    @property
    def runs(self) -> int:
        return self.verdicts.total()

    @property
    def margin(self) -> float:
        """The least of all runs; 1 where nothing is waited for."""
        return self.narrowest.margin if self.narrowest else 1.0

    @property
    def rate(self) -> float:
        """Share of the runs that gave another verdict than most did."""
        return 1.0 - max(self.verdicts.values()) / self.runs


def line(results: Iterable[tuple[str, CheckResult]], about: dict[str, Any]) -> str:
    """Return a run as a line of JSON; `about` says which."""
    checks = {}
    for name, result in results:
        wait = result.narrowest
        narrowest = [wait.what, round(wait.took, 4), round(wait.bound, 4)] if wait else None
        wrong = [] if result.verdict in PASSED else [result.message]
        late = "".join(result.again[-1:])
        checks[name] = [result.verdict.value, 1 + len(result.again), narrowest, late, *wrong]
    return json.dumps({**about, "checks": checks}) + "\n"


def load(path: Path) -> list[dict[str, Any]]:
    """Read the runs of a file; empty if it does not exist.

    Raises:
        ReportError: it holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        runs = [json.loads(one) for one in lines]
        measured(runs)
        list(_kinds(runs))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ReportError(
            f"{path}: is not a file of `iamroles conformance flakes --save`: {error!r}."
        ) from error
    return runs


def measured(runs: Sequence[dict[str, Any]]) -> list[Measured]:
    """Each check, those first that flake most, then those of the least margin."""
    names = dict.fromkeys(name for run in runs for name in run["checks"])
    found = []
    for name in names:
        played = [run["checks"][name] for run in runs if name in run["checks"]]
        waits = [Wait(*one[2]) for one in played if one[2]]
        late = [one[3] for one in played if one[1] > 1]
        wrong = [one[4] for one in played if len(one) > 4]
        found.append(
            Measured(
                name,
                Counter(str(one[0]) for one in played),
                sum(one[1] > 1 for one in played),
                "".join([*late, *wrong][-1:]),
                min(waits, key=lambda wait: wait.margin, default=None),
            )
        )
    return sorted(found, key=lambda one: (-one.rate, one.margin))


_HEAD = """\
# How far a verdict can be relied on

Written by `{command}`, which keeps the runs in a file and can be interrupted and
continued: {runs} runs of {agent}, HAProxy {haproxy}, {hosts}, {since} to {until}.

{kinds}

Each row says what else ran on the host: `nothing`, four endless `loops`, or these and a `disk` that copies
files. Seconds are the median and the longest. A check that the host was late for is played again with longer
times, at most three times, and is untestable if the host is late each time. No failure is played again.

{checks} checks, {verdicts} verdicts. Checks that flaked: {flaky}; played again in some run: {again}.

A check flakes if runs on the same agent give it different verdicts; its rate is the share of runs that gave
another one than most did. The margin is what was left of the bound of the wait that came nearest to its own:
100 % for an answer at once, 0 % for one at the last moment. Only waits that ended as hoped count: a wait to
see that nothing comes lasts its whole time.

{families}

Here is each check that flaked, was played again, or had less than {narrow} of a bound left, and why: what was
wrong when it last did not pass, else how the host was late for it. The other {sound} always gave the same
verdict, with more left.

{named}
"""


def as_markdown(runs: Sequence[dict[str, Any]], command: str) -> str:
    """Return the page: what was run, families, and each check that flaked or has little margin."""
    found = measured(runs)
    named = [one for one in found if one.rate or one.again or one.margin < NARROW]
    return _HEAD.format(
        command=command,
        runs=len(runs),
        agent=runs[0]["agent"],
        haproxy=runs[0]["haproxy"] or "not needed",
        hosts="; ".join(sorted({run["host"] for run in runs})),
        kinds="\n".join(table(_KINDS, _kinds(runs))),
        since=min(run["day"] for run in runs),
        until=max(run["day"] for run in runs),
        checks=len(found),
        verdicts=sum(one.runs for one in found),
        flaky=sum(one.rate > 0 for one in found),
        again=sum(one.again > 0 for one in found),
        families="\n".join(table(_FAMILIES, _families(found))),
        narrow=_percent(NARROW),
        sound=len(found) - len(named),
        named="\n".join(table(_CHECKS, map(_row, named))),
    )


_KINDS = (
    *("stage", "beside", "runs", "verdicts", "good", "untestable", "other", "played again"),
    *("seconds", "load average"),
)
_FAMILIES = ("family", "checks", "flaked", "least margin", "median of the least margins")
_CHECKS = ("check", "verdicts", "flake rate", "played again", "least margin", "the wait", "why")


def _kinds(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for kind in dict.fromkeys((run["stage"], run["beside"]) for run in runs):
        own = [run for run in runs if (run["stage"], run["beside"]) == kind]
        played = [one for run in own for one in run["checks"].values()]
        untestable = sum(one[0] == Verdict.UNTESTABLE for one in played)
        good = sum(one[0] in PASSED for one in played)
        counts = [
            len(played),
            good,
            untestable,
            len(played) - good - untestable,
            sum(one[1] > 1 for one in played),
        ]
        seconds = [run["seconds"] for run in own]
        loads = [run["load"] for run in own]
        yield [
            *(*kind, str(len(own)), *map(str, counts)),
            *(f"{median(seconds):.0f}, {max(seconds):.0f}", f"{min(loads)} to {max(loads)}"),
        ]


def _families(found: Sequence[Measured]) -> Iterator[list[str]]:
    for family in dict.fromkeys(one.name.partition(".")[0] for one in found):
        own = [one for one in found if one.name.partition(".")[0] == family]
        margins = [one.narrowest.margin for one in own if one.narrowest]
        margin = [_percent(min(margins)), _percent(median(margins))] if margins else ["no wait", ""]
        yield [family, str(len(own)), str(sum(one.rate > 0 for one in own)), *margin]


def _row(one: Measured) -> list[str]:
    verdicts = ", ".join(f"{count} {name}" for name, count in one.verdicts.most_common())
    wait, margin = one.narrowest, ["no wait", ""]
    if wait:
        margin = [_percent(wait.margin), f"{wait.what}: {wait.took:.2f} of {wait.bound:g} s"]
    why = one.why.partition("\n")[0]
    return [f"`{one.name}`", verdicts, _percent(one.rate), str(one.again), *margin, why]


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"
