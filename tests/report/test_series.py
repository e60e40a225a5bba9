"""Bringing many steps down to few points: nothing extreme is lost, axes have round numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.report.series import Buckets, log_ticks, nice_ticks, smooth

values = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300)


@given(values, st.integers(1, 50))
def test_buckets_cover_every_row_once_and_keep_extremes(rows, most):
    array = np.array(rows)
    buckets = Buckets.of(len(array), most)
    assert buckets.edges[0] == 0
    assert buckets.edges[-1] == len(array)
    assert (np.diff(buckets.edges) > 0).all()
    assert len(buckets.edges) - 1 <= most
    assert np.array_equal(np.fmin.reduce(buckets.low(array)), np.fmin.reduce(array), equal_nan=True)
    assert np.array_equal(np.fmax.reduce(buckets.high(array)), np.fmax.reduce(array), equal_nan=True)
    assert np.nansum(array) == pytest.approx(buckets.sum(array).sum(), abs=1e-3)


def test_mean_is_over_what_is_known():
    array = np.array([1, np.nan, 3, np.nan, np.nan, 6])
    assert np.array_equal(Buckets.of(6, 3).mean(array), [1, 3, 6])
    assert np.array_equal(Buckets.of(6, 6).mean(array), array, equal_nan=True)


@given(values, st.integers(1, 40))
def test_smoothing_stays_within_bounds_and_keeps_gaps(rows, width):
    array = np.array(rows)
    out = smooth(array, width)
    known = np.isfinite(array)
    assert np.array_equal(np.isfinite(out), known)
    if known.any():
        assert out[known].max() <= array[known].max() + 1e-3
        assert out[known].min() >= array[known].min() - 1e-3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 5, 10]),
        (0, 100, [0, 50, 100]),
        (0.2, 1.1, [0.5, 1.0]),
        (1, 600, [200, 400, 600]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert nice_ticks(low, high, 3) == pytest.approx(expected)


@given(st.floats(1e-6, 1e6), st.floats(1.5, 1e6))
def test_log_ticks_lie_inside(low, factor):
    ticks = log_ticks(low, low * factor)
    assert all(low <= tick <= low * factor for tick in ticks)
