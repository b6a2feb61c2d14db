"""What happened, case by case: microsecond HDR histograms, wrong verdicts, faults."""

from __future__ import annotations

import json
import time
from typing import Any

from hdrh.histogram import HdrHistogram

from iamroles_loadtests.mix import Question

_HIGHEST = 60_000_000
"""Microseconds; what takes longer counts as that."""
_EXAMPLES = 20
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


class Histogram:
    """Microseconds, three significant digits."""

    def __init__(self) -> None:
        self._hdr: Any = HdrHistogram(1, _HIGHEST, 3)  # type: ignore[no-untyped-call]

    def record(self, seconds: float) -> None:
        """Count a sample."""
        self._hdr.record_value(min(_HIGHEST, max(1, round(seconds * 1e6))))

    def add(self, other: Histogram) -> None:
        """Take over another's samples."""
        self._hdr.add(other._hdr)

    @property
    def count(self) -> int:
        """Samples."""
        return int(self._hdr.get_total_count())

    def summary(self) -> dict[str, int]:
        """Count, mean and percentiles in microseconds."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "mean": round(self._hdr.get_mean_value()),
            **{name: int(self._hdr.get_value_at_percentile(at)) for name, at in PERCENTILES.items()},
        }

    def encoded(self) -> str:
        """The whole histogram, HdrHistogram V2 compressed, base64: other tools can merge and plot it."""
        return str(self._hdr.encode().decode("ascii"))


class Ledger:
    """Counts of a run.

    Args:
        names: of the cases.
        duration: seconds of the run, the warm-up included.
        warmup: seconds at the start whose latencies do not count.
    """

    def __init__(self, names: list[str], *, duration: float, warmup: float) -> None:
        self._duration = duration
        self._warmup = warmup
        self._began: float | None = None
        self._last = 0.0
        self._latency = {name: Histogram() for name in names}
        self._service = {name: Histogram() for name in names}
        self._generator = Histogram()
        self._answers = dict.fromkeys(names, 0)
        self._measured = self._owed = 0
        self._wrong = dict.fromkeys(names, 0)
        self._faults = dict.fromkeys(names, 0)
        self._examples: list[dict[str, Any]] = []

    def begin(self) -> None:
        """All users are there: the clock starts."""
        self._began = time.perf_counter()

    @property
    def open(self) -> bool:
        """Whether requests still count."""
        return self._began is not None and time.perf_counter() - self._began < self._duration

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._began is not None and not self.open

    @property
    def _warm(self) -> bool:
        return self._began is not None and time.perf_counter() - self._began >= self._warmup

    def answer(self, case: str, *, latency: float, service: float, wrong: str) -> None:
        """An answer came: seconds since it was due, seconds since it was sent, what is wrong with it."""
        self._answers[case] += 1
        self._wrong[case] += bool(wrong)
        self._last = time.perf_counter()
        if self._warm:
            self._measured += 1
            self._latency[case].record(latency)
            self._service[case].record(service)

    def fault(self, case: str, message: str) -> None:
        """No answer came."""
        self._faults[case] += 1
        self._keep({"case": case, "fault": message})

    def example(self, case: str, question: Question, wrong: str) -> None:
        """Keep a wrong verdict for the report; never its token."""
        self._keep(
            {
                "case": case,
                "request": f"{question.method} {question.path}",
                "role": question.headers.get("X-IAM-Role", ""),
                "wrong": wrong,
            }
        )

    def _keep(self, example: dict[str, Any]) -> None:
        if len(self._examples) < _EXAMPLES:
            self._examples.append(example)

    def owe(self, count: int) -> None:
        """So many requests were due before the end and never sent, because answers came too late."""
        self._owed += count

    @property
    def end(self) -> float:
        """When the run ends, by `time.perf_counter`."""
        return (self._began or 0.0) + self._duration

    def late(self, seconds: float) -> None:
        """The generator woke so late."""
        if self._warm:
            self._generator.record(seconds)

    def as_json(self) -> str:
        """All of it; latencies in microseconds."""
        total, service = Histogram(), Histogram()
        for name, histogram in self._latency.items():
            total.add(histogram)
            service.add(self._service[name])
        span = max(0.0, self._last - (self._began or 0.0) - self._warmup) if self._began else 0.0
        return json.dumps(
            {
                "seconds": round(span, 3),
                "measured": self._measured,
                "rate": round(self._measured / span, 1) if span else 0.0,
                "answers": sum(self._answers.values()),
                "wrong": sum(self._wrong.values()),
                "faults": sum(self._faults.values()),
                "owed": self._owed,
                "latency": total.summary(),
                "service": service.summary(),
                "generator": self._generator.summary(),
                "cases": {
                    name: {
                        "answers": self._answers[name],
                        "wrong": self._wrong[name],
                        "faults": self._faults[name],
                        "latency": histogram.summary(),
                        "service": self._service[name].summary(),
                    }
                    for name, histogram in self._latency.items()
                },
                "examples": self._examples,
                "histogram": total.encoded(),
            }
        )
