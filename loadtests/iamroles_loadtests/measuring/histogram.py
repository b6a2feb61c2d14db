"""Histograms of nanoseconds, folded from raw records by numpy, exchanged as HdrHistogram V2.

The layout is that of HdrHistogram with three significant digits: below 2048 each value has its own count,
above that 1024 counts for each doubling, so that no value is off by more than a thousandth. Counts of two
histograms add: the sum over workers is exactly the histogram of all their samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

HIGHEST = 3_600_000_000_000
"""An hour; what takes longer counts as that."""
_HALF_BITS = 10
_HALF = 1 << _HALF_BITS
_SIZE = (HIGHEST.bit_length() - _HALF_BITS) * _HALF + _HALF
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}
ENOUGH = {"p50": 20, "p90": 50, "p99": 500, "p99.9": 5000, "p99.99": 50_000}
"""Samples from which on a percentile says something."""

Integers = NDArray[np.int64]


def _indices(values: Integers) -> Integers:
    values = np.clip(values, 0, HIGHEST)
    # frexp gives the bit length of integers below 2**53 exactly.
    buckets = np.frexp((values | (2 * _HALF - 1)).astype(np.float64))[1].astype(np.int64) - _HALF_BITS - 1
    found: Integers = (buckets << _HALF_BITS) + (values >> buckets)
    return found


def _highest(indices: Integers) -> Integers:
    """The largest value that is counted at an index, HdrHistogram's convention for percentiles."""
    buckets = np.maximum((indices >> _HALF_BITS) - 1, 0)
    found: Integers = ((indices - (buckets << _HALF_BITS) + 1) << buckets) - 1
    return found


def values_at(indices: Integers) -> NDArray[np.float64]:
    """Microseconds that are counted at places of `Histogram.counts`."""
    found: NDArray[np.float64] = _highest(indices) / 1e3
    return found


class Histogram:
    """Counts of nanoseconds."""

    __slots__ = ("counts",)

    def __init__(self, values: Iterable[int] | Integers = ()) -> None:
        self.counts: Integers = np.zeros(_SIZE, dtype=np.int64)
        self.record(np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.int64))

    def record(self, values: Integers) -> None:
        if values.size:
            self.counts += np.bincount(_indices(values), minlength=_SIZE)

    def __iadd__(self, other: Histogram) -> Histogram:  # noqa: PYI034 - no subclass
        self.counts += other.counts
        return self

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def at(self, percentile: float) -> float:
        """Microseconds that this percentage of the samples do not exceed; 0 without samples."""
        return float(self.quantiles([percentile])[0])

    def quantiles(self, percentiles: Iterable[float]) -> NDArray[np.float64]:
        """Microseconds at each percentile."""
        wanted = np.asarray(list(percentiles), dtype=np.float64)
        sums = np.cumsum(self.counts)
        if not sums[-1]:
            return np.zeros(wanted.size)
        ranks = np.maximum(1, np.ceil(wanted / 100 * sums[-1] - 1e-9))
        return values_at(np.searchsorted(sums, ranks).astype(np.int64))

    def mean(self) -> float:
        """Microseconds."""
        used = np.flatnonzero(self.counts)
        total = self.counts[used]
        return float((_highest(used) * total).sum() / total.sum() / 1e3) if used.size else 0.0

    def summary(self) -> dict[str, float]:
        """Count, mean, percentiles that the samples bear, and the largest, in microseconds."""
        count = self.count
        if not count:
            return {"count": 0}
        names = [name for name in PERCENTILES if count >= ENOUGH[name]]
        found = self.quantiles(PERCENTILES[name] for name in names)
        return {
            "count": count,
            "mean": round(self.mean(), 3),
            **{name: round(float(value), 3) for name, value in zip(names, found, strict=True)},
            "max": round(self.at(100.0), 3),
        }

    def shown(self) -> dict[str, Any]:
        """The summary, and the histogram itself in nanoseconds."""
        return {**self.summary(), "histogram": self.encoded()}

    def encoded(self) -> str:
        """HdrHistogram V2, compressed, base64; values are nanoseconds. Other tools merge and plot it."""
        made: Any = HdrHistogram(1, HIGHEST, 3)  # type: ignore[no-untyped-call]
        used = np.flatnonzero(self.counts)
        if used.size:
            counts = np.frombuffer(made.counts, dtype=np.int64)
            counts[: min(_SIZE, counts.size)] = self.counts[: counts.size]
            made.total_count = self.count
            made.min_value, made.max_value = (int(value) for value in _highest(used[[0, -1]]))
        return str(made.encode().decode("ascii"))

    @classmethod
    def decoded(cls, text: str) -> Histogram:
        """From HdrHistogram V2.

        Raises:
            ValueError: it is invalid.
        """
        found = cls()
        try:
            read: Any = HdrHistogram.decode(text)  # type: ignore[no-untyped-call]
            if (read.significant_figures, read.unit_magnitude) == (3, 0):  # the same layout
                counts = np.asarray(read.counts, dtype=np.int64)[:_SIZE]
                found.counts[: counts.size] = counts
                return found
            for item in read.get_recorded_iterator():
                value = np.asarray([item.value_iterated_to], dtype=np.int64)
                found.counts[_indices(value)[0]] += item.count_at_value_iterated_to
        except Exception as error:  # the library raises whatever its parts raise
            raise ValueError(f"not an HdrHistogram V2: {error}") from error
        return found

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """The histogram of all samples of all parts."""
        found = cls()
        for part in parts:
            found += part
        return found


def columns(records: bytes, names: Iterable[str]) -> Mapping[str, Integers]:
    """Raw records (`traffic.Records.take`) as one array for each field."""
    names = list(names)
    table = np.frombuffer(records, dtype=np.int64).reshape(-1, len(names))
    return {name: table[:, index] for index, name in enumerate(names)}
