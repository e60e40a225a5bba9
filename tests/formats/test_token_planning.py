"""Documents are put together from their lengths alone: every token once, within the capacity, and little left empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.tokens.planning import plan_padded, plan_rows

LENGTHS = st.lists(st.integers(0, 50), max_size=60).map(lambda lengths: np.array(lengths, np.int64))


def parts_of(bins, k):
    return zip(*(column[bins.starts[k] : bins.starts[k + 1]].tolist() for column in bins.parts), strict=True)


@pytest.mark.parametrize("plan", [plan_rows, plan_padded])
@given(lengths=LENGTHS, capacity=st.integers(1, 40))
def test_every_token_is_in_one_bin(plan, lengths, capacity):
    bins = plan(lengths, capacity)
    came = [np.zeros(length, int) for length in lengths.tolist()]
    for k in range(len(bins.starts) - 1):
        documents = []
        for document, first, length in parts_of(bins, k):
            came[document][first : first + length] += 1
            documents.append((document, first))
        assert documents == sorted(documents) != []
    assert all((tokens == 1).all() for tokens in came)


@given(LENGTHS, st.integers(1, 40))
def test_rows_hold_no_more_than_their_length_and_cut_only_what_is_longer(lengths, capacity):
    bins = plan_rows(lengths, capacity)
    for k in range(len(bins.starts) - 1):
        parts = list(parts_of(bins, k))
        assert sum(length for _, _, length in parts) <= capacity
        assert all(length == min(lengths[document] - first, capacity) for document, first, length in parts)


@given(LENGTHS, st.integers(1, 40))
def test_padded_batches_keep_to_their_budget(lengths, capacity):
    bins = plan_padded(lengths, capacity)
    for k in range(len(bins.starts) - 1):
        sizes = [length for _, _, length in parts_of(bins, k)]
        assert len(sizes) * max(sizes) <= capacity


@pytest.mark.parametrize(("mean", "spread"), [(6.0, 1.1), (6.8, 1.2), (4.8, 0.9), (7.1, 0.7)])
@pytest.mark.parametrize("row_tokens", [2048, 8192])
def test_at_most_two_percent_of_rows_are_empty(mean, spread, row_tokens):
    """Lengths as texts have them: lognormal, a long tail."""
    lengths = np.maximum(1, np.random.default_rng(0).lognormal(mean, spread, 20_000)).astype(np.int64)
    bins = plan_rows(lengths, row_tokens)
    assert lengths.sum() / ((len(bins.starts) - 1) * row_tokens) > 0.98


def test_a_plan_is_the_same_everywhere_and_for_ever():
    """Datasets keep their plans, and states count their rows."""
    bins = plan_rows(np.array([5, 3, 9, 1, 7, 2, 4]), 8)
    assert bins.starts.tolist() == PINNED[0]
    assert bins.parts.document.tolist() == PINNED[1]
    assert bins.parts.first.tolist() == PINNED[2]


PINNED = ([0, 1, 3, 6, 8], [2, 2, 4, 3, 5, 6, 0, 1], [0, 8, 0, 0, 0, 0, 0, 0])
