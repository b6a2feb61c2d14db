"""What was measured, in a form that adds: histograms and counts.

A book is filled from raw records, a phase's or a second's worth at a time. Two books of the same load add up
to the book of all their samples, exactly: so do those of locust's workers. Times of a book count from its own
begin: no clock of another machine comes into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from iamroles_loadtests.measuring.histogram import Histogram, columns
from iamroles_scenarios.traffic import FIELDS, Case, Tally
from iamroles_scenarios.traffic.polling import NANO

_EXAMPLES = 20
_STALLS = 100
"""The longest that are kept of a loop."""
_COUNTS = ("answers", "wrong", "faults", "owed", "stray", "lost", "unstamped", "held")
"""Of a tally."""


@dataclass(slots=True)
class Page:
    """One case."""

    due: Histogram = field(default_factory=Histogram)
    sent: Histogram = field(default_factory=Histogram)
    told: Histogram = field(default_factory=Histogram)
    wrong: int = 0
    faults: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Page) -> None:
        for name in ("due", "sent", "told"):
            getattr(self, name).add(getattr(other, name))
        self.wrong += other.wrong
        self.faults += other.faults
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


class Book:
    """Samples and counts of some load.

    Args:
        begin: nanoseconds of CLOCK_REALTIME from which its times count.
        width: seconds of a window.
        last: number of the last window, to which later samples count too; None: there is none.
    """

    def __init__(self, begin: int = 0, width: float = 1.0, last: int | None = None) -> None:
        self.begin, self.width, self.last = begin, width, last
        self.pages: dict[str, Page] = {}
        self.lag, self.punctual, self.noticed = Histogram(), Histogram(), Histogram()
        self.windows: dict[int, tuple[Histogram, Histogram]] = {}
        """From due and from sent, by the number of the window in which requests were due."""
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.stalls: list[list[float]] = []
        self.steps: list[float] = []
        self.examples: list[str] = []
        self.stamped = True
        self.cpu = 0.0
        self.until = 0.0
        """Seconds from its begin to the last answer."""

    def fold(self, records: bytes, cases: Iterable[Case]) -> None:
        table = columns(records, FIELDS)
        due, sent = table["received"] - table["due"], table["received"] - table["sent"]
        if not due.size:
            return
        self.until = max(self.until, float(table["received"].max() - self.begin) / NANO)
        self.lag.record(table["lag"])
        self.punctual.record(due - table["lag"])
        self.noticed.record(table["noticed"] - table["sent"])
        for case in cases:
            mine = table["case"] == case.number
            if mine.any():
                page = self.pages.setdefault(case.name, Page())
                told = table["told"][mine]
                page.due.record(due[mine])
                page.sent.record(sent[mine])
                page.told.record(told[told >= 0])
        numbers = ((table["due"] - self.begin) / (self.width * NANO)).astype(np.int64)
        numbers = np.clip(numbers, 0, self.last)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            window = self.windows.setdefault(number, (Histogram(), Histogram()))
            window[0].record(due[mine])
            window[1].record(sent[mine])

    def close(self, tally: Tally, cases: Iterable[Case], *, stamped: bool, cpu: float = 0.0) -> None:
        """Take over what a finished loop counted."""
        for name in _COUNTS:
            self.counts[name] += getattr(tally, name)
        self.stalls += [
            [round((at - self.begin) / NANO, 4), round(took / 1e6, 3)] for at, took in tally.stalls
        ]
        self.steps += [round(step / 1e6, 3) for step in tally.steps]
        self.examples = (self.examples + tally.examples)[:_EXAMPLES]
        self.stamped &= stamped
        self.cpu += cpu
        for case in cases:
            if case.wrong or case.faults:
                page = self.pages.setdefault(case.name, Page())
                page.wrong += case.wrong
                page.faults += case.faults
                page.examples = (page.examples + case.examples)[:_EXAMPLES]

    def add(self, other: Book) -> None:
        """Take over all of another book of the same load."""
        for name, page in other.pages.items():
            self.pages.setdefault(name, Page()).add(page)
        for name in ("lag", "punctual", "noticed"):
            getattr(self, name).add(getattr(other, name))
        for number, (due, sent) in other.windows.items():
            mine = self.windows.setdefault(number, (Histogram(), Histogram()))
            mine[0].add(due)
            mine[1].add(sent)
        for name, count in other.counts.items():
            self.counts[name] += count
        self.stalls += other.stalls
        self.steps += other.steps
        self.examples = (self.examples + other.examples)[:_EXAMPLES]
        self.stamped &= other.stamped
        self.cpu += other.cpu
        self.until = max(self.until, other.until)

    def measured(self, name: str, seconds: float, *, closed: bool) -> dict[str, Any]:
        """JSON of it, as generators answer a phase.

        Returns:
            Counts (`answers`, `wrong`, `faults`, `owed`, `stray`, `lost`, `unstamped`); `samples`, `wrong`,
            `faults` and the histograms `due`, `sent`, `told` of each case; histograms `lag`, `punctual` (from
            due, less the lag) and `noticed` (from sent, by this process's own clock); `windows` with
            histograms `due` and `sent`; `stalls` (begin in seconds, milliseconds); `steps` of the clock in
            milliseconds; whether latencies are `stamped` by the kernel; the generator's `cpu` seconds;
            `until`, seconds to the last answer. Histograms are HdrHistogram V2 texts of nanoseconds.
        """
        none = (Histogram(), Histogram())
        numbers = sorted(self.windows) if self.last is None else range(self.last + 1)
        windows = {number: self.windows.get(number, none) for number in numbers}
        return {
            "name": name,
            "begin": self.begin / NANO,
            "seconds": seconds,
            "closed": closed,
            "stamped": self.stamped,
            "samples": self.lag.count,
            **self.counts,
            "stalls": self.stalls,
            "steps": self.steps,
            "cpu": round(self.cpu, 6),
            "until": round(self.until, 6),
            "lag": self.lag.encoded(),
            "punctual": self.punctual.encoded(),
            "noticed": self.noticed.encoded(),
            "examples": self.examples,
            "cases": {case: _page(page) for case, page in self.pages.items()},
            "windows": [
                {
                    "at": round(number * self.width, 4),
                    "seconds": round(self.width, 4),
                    "samples": due.count,
                    "due": due.encoded(),
                    "sent": sent.encoded(),
                }
                for number, (due, sent) in windows.items()
            ],
        }

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Self:
        windows: Sequence[Mapping[str, Any]] = measured["windows"]
        width = windows[0]["seconds"] if windows else 1.0
        found = cls(round(measured["begin"] * NANO), width)
        for name, case in measured["cases"].items():
            histograms = {at: Histogram.decoded(case[at]) for at in ("due", "sent", "told")}
            page = Page(**histograms, wrong=case["wrong"], faults=case["faults"], examples=case["examples"])
            found.pages[name] = page
        for name in ("lag", "punctual", "noticed"):
            setattr(found, name, Histogram.decoded(measured[name]))
        for window in windows:
            found.windows[round(window["at"] / width)] = (
                Histogram.decoded(window["due"]),
                Histogram.decoded(window["sent"]),
            )
        found.counts = {name: measured[name] for name in _COUNTS}
        for name in ("stalls", "steps", "examples", "stamped", "cpu", "until"):
            setattr(found, name, measured[name])
        return found


def _page(page: Page) -> dict[str, Any]:
    return {
        "samples": page.sent.count,
        "wrong": page.wrong,
        "faults": page.faults,
        "due": page.due.encoded(),
        "sent": page.sent.encoded(),
        "told": page.told.encoded(),
        "examples": page.examples,
    }
