"""Histograms: a thousandth of precision, sums that are exact, HdrHistogram's own form of exchange."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from iamroles_loadtests.measuring.histogram import HIGHEST, Histogram

values = st.lists(st.integers(0, HIGHEST), min_size=1, max_size=200)


@given(values)
def test_percentiles_are_those_of_the_samples_within_a_thousandth(found):
    histogram = Histogram(found)

    for percentile in (0, 1, 50, 90, 99, 100):
        rank = max(1, -(-len(found) * percentile // 100))
        true = sorted(found)[rank - 1]
        assert true <= histogram.at(percentile) * 1e3 + 0.5
        assert histogram.at(percentile) * 1e3 <= true * 1.001 + 1


@given(values, values)
def test_two_workers_sum_to_one(one, other):
    merged = Histogram.merged([Histogram(one), Histogram(other)])

    assert (merged.counts == Histogram(one + other).counts).all()


@given(values)
def test_the_exchange_is_exact(found):
    histogram = Histogram(found)

    assert (Histogram.decoded(histogram.encoded()).counts == histogram.counts).all()


def test_the_library_reads_the_same():
    found = Histogram(np.random.default_rng(1).lognormal(12, 1, 10_000).astype(np.int64))
    theirs = HdrHistogram.decode(found.encoded())

    assert theirs.get_total_count() == 10_000
    for percentile in (50, 90, 99, 99.9):
        assert theirs.get_value_at_percentile(percentile) / 1e3 == pytest.approx(found.at(percentile))


def test_what_is_beyond_the_range_counts_at_its_end():
    found = Histogram([-5, HIGHEST * 10])

    assert found.count == 2
    assert found.at(1) == 0
    assert found.at(100.0) == pytest.approx(HIGHEST / 1e3, rel=1e-3)


def test_percentiles_without_enough_samples_are_left_out():
    assert "p99" not in Histogram(range(100)).summary()
    assert Histogram().summary() == {"count": 0}
    assert Histogram().at(50) == 0


def test_nonsense_is_no_histogram():
    with pytest.raises(ValueError, match="HdrHistogram"):
        Histogram.decoded("HISTFAAAA")
