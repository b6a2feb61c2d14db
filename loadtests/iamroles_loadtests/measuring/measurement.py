"""Measurements that can be added: histograms and counts.

A measurement is filled from raw records, a phase's or a second's worth at a time. Two measurements of the
same load add up to that of all their samples, exactly: so do those of locust's workers, which travel as JSON.
Times count from the measurement's own begin: no clock of another machine comes into it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, PlainSerializer, PlainValidator

from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.measuring.histogram import Histogram, columns
from iamroles_scenarios.traffic import FIELDS, Case, Tally
from iamroles_scenarios.traffic.polling import NANO

_EXAMPLES = 20
COUNTS = ("answers", "wrong", "faults", "owed", "stray", "lost", "unstamped", "held")
"""Counts of a loop's tally."""
_COMBINED: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("begin", "width", "last", "seconds"), lambda own, _: own),
    "stamped": operator.and_,
    "until": max,
    "examples": lambda own, others: (own + others)[:_EXAMPLES],
}
"""Combines fields that are not added."""
Samples = Annotated[
    Histogram,
    PlainValidator(lambda value: value if isinstance(value, Histogram) else Histogram.decoded(value)),
    PlainSerializer(Histogram.encoded),
]
"""Nanoseconds; in JSON an HdrHistogram V2 text."""


class _Sum(BaseModel):
    def add(self, other: Self) -> None:
        """Add another part of the same load."""
        for name in type(self).model_fields:
            own, others = getattr(self, name), getattr(other, name)
            if isinstance(own, dict):
                for key, part in others.items():
                    own.setdefault(key, type(part)()).add(part)
            else:
                setattr(self, name, _COMBINED.get(name, operator.iadd)(own, others))


class Latencies(_Sum):
    """Latencies of some requests, from due and from sent."""

    due: Samples = Field(default_factory=Histogram)
    sent: Samples = Field(default_factory=Histogram)


class CaseMeasurement(Latencies):
    """The measurement of a case; `reported` holds the numbers in the answers (`traffic.Right.marker`)."""

    reported: Samples = Field(default_factory=Histogram)
    wrong: int = 0
    faults: int = 0
    examples: list[str] = []


class Measurement(_Sum):
    """Samples and counts of some load.

    Args:
        begin: nanoseconds of CLOCK_REALTIME from which its times count.
        width: seconds of a window.
        last: number of the last window, in which later samples count, too; None: windows go on.
    """

    begin: int = 0
    width: float = 1.0
    last: int | None = None
    seconds: float = 0.0
    """The length of the load."""
    cases: dict[str, CaseMeasurement] = {}
    windows: dict[int, Latencies] = {}
    """By the number of the window in which requests were due."""
    lag: Samples = Field(default_factory=Histogram)
    punctual: Samples = Field(default_factory=Histogram)
    """From due, less the lag."""
    noticed: Samples = Field(default_factory=Histogram)
    """From sent, by this process's own clock."""
    answers: int = 0
    wrong: int = 0
    faults: int = 0
    owed: int = 0
    stray: int = 0
    lost: int = 0
    unstamped: int = 0
    held: int = 0
    stalls: list[tuple[float, float]] = []
    """Begin in seconds, length in milliseconds."""
    steps: list[float] = []
    """Steps of the clock, milliseconds."""
    examples: list[str] = []
    late: int = 0
    """Answers that came after the load's end."""
    stamped: bool = True
    """True if latencies end at the kernel's stamps."""
    cpu: float = 0.0
    """Seconds of the generator."""
    until: float = 0.0
    """Seconds to the last answer."""

    @property
    def samples(self) -> int:
        return self.lag.count

    @property
    def answered(self) -> float:
        """Share of what was due that was answered."""
        return self.samples / max(1, self.samples + self.owed + self.faults)

    def whole(self, name: str) -> Histogram:
        """All cases together: `due`, `sent` or `reported`."""
        return Histogram.merged(getattr(case, name) for case in self.cases.values())

    def all_windows(self) -> dict[int, Latencies]:
        """All windows in their order, the empty ones too if the last is known."""
        numbers = sorted(self.windows) if self.last is None else range(self.last + 1)
        return {number: self.windows.get(number) or Latencies() for number in numbers}

    def record(self, records: bytes, cases: Iterable[Case]) -> None:
        """Count raw records in (`traffic.Records.take`)."""
        table = columns(records, FIELDS)
        due, sent = table["received"] - table["due"], table["received"] - table["sent"]
        if not due.size:
            return
        if self.seconds:
            self.late += int((table["received"] > self.begin + round(self.seconds * NANO)).sum())
        self.until = max(self.until, float(table["received"].max() - self.begin) / NANO)
        self.lag.record(table["lag"])
        self.punctual.record(due - table["lag"])
        self.noticed.record(table["noticed"] - table["sent"])
        for case in cases:
            mine = table["case"] == case.number
            if mine.any():
                found = self.cases.setdefault(case.name, CaseMeasurement())
                reported = table["reported"][mine]
                found.due.record(due[mine])
                found.sent.record(sent[mine])
                found.reported.record(reported[reported >= 0])
        numbers = ((table["due"] - self.begin) / (self.width * NANO)).astype(np.int64)
        numbers = np.clip(numbers, 0, self.last)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            window = self.windows.setdefault(number, Latencies())
            window.due.record(due[mine])
            window.sent.record(sent[mine])

    def finish(self, tally: Tally, cases: Iterable[Case], *, stamped: bool, cpu: float = 0.0) -> None:
        """Add what a finished loop counted."""
        stalls = [(round((at - self.begin) / NANO, 4), round(took / 1e6, 3)) for at, took in tally.stalls]
        self.add(
            Measurement(
                **{name: getattr(tally, name) for name in COUNTS},
                stalls=stalls,
                steps=[round(step / 1e6, 3) for step in tally.steps],
                examples=tally.examples,
                stamped=stamped,
                cpu=cpu,
                # At least so long did they wait: a stall that lasts until the end is seen, too.
                punctual=Histogram(tally.waited),
                cases=({"never sent": CaseMeasurement(due=Histogram(tally.waited))} if tally.waited else {})
                | {
                    case.name: CaseMeasurement(wrong=case.wrong, faults=case.faults, examples=case.examples)
                    for case in cases
                    if case.wrong or case.faults
                },
            )
        )


@dataclass(frozen=True, slots=True)
class Played:
    """A phase that was played.

    Args:
        phase: what was asked for.
        role: what it is to the run: `level`, `shape`, `capacity`, `step` or `pair`.
        measured: what the generator measured.
        used: CPU seconds of the parts, from before the warm-up to after the last answer.
    """

    phase: Phase
    role: str
    measured: Measurement
    used: Mapping[str, float]

    @property
    def examples(self) -> list[str]:
        """Return what went wrong; the examples of a case begin with its name."""
        cases = self.measured.cases.items()
        found = [f"{name}: {example}" for name, case in cases for example in case.examples]
        return found + self.measured.examples

    @property
    def answered(self) -> float:
        """Answers a second, of those that came before the end."""
        return round((self.measured.samples - self.measured.late) / max(1e-9, self.measured.seconds), 3)

    @property
    def busy(self) -> float:
        """CPU seconds of the generator in a second."""
        return round(self.measured.cpu / max(1e-9, self.measured.seconds), 3)

    @property
    def cpu(self) -> dict[str, float]:
        """CPU microseconds a request, by part; empty without requests."""
        if not self.measured.samples:
            return {}
        used = {name: seconds / max(1, self.measured.answers) for name, seconds in self.used.items()}
        used["generator"] = self.measured.cpu / self.measured.samples
        return {name: round(seconds * 1e6, 3) for name, seconds in used.items()}
