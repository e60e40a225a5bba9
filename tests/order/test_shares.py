"""Shares of a rank's positions: every position once, equal on every rank, no partition in two shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError
from headrace.order import Order, Share, dealt


@st.composite
def shared(draw):
    """An order, a world size that divides its partitions, and a number of readers a rank."""
    samples = np.array(draw(st.lists(st.integers(0, 40), min_size=1, max_size=8)), np.int64)
    order = Order(
        piece_samples=samples,
        piece_bytes=samples * 100,
        seed=draw(st.integers(0, 2**40)),
        shuffle=draw(st.booleans()),
        partitions=12,
        block_size=draw(st.sampled_from([None, 500])),
        window=draw(st.sampled_from([None, 0, 5])),
    )
    return order, draw(st.sampled_from([1, 2, 3, 6])), draw(st.integers(1, 15))


def shares_of(order, world_size, num_readers):
    return [[Share(order, rank, world_size, k, num_readers) for k in range(num_readers)] for rank in range(world_size)]


@given(shared())
def test_every_position_is_in_one_share_and_ranks_have_equally_many(case):
    order, world_size, num_readers = case
    shares = shares_of(*case)
    every = [p for rank in shares for share in rank for p in share.positions(0, share.num_samples).tolist()]
    assert sorted(every) == list(range(order.num_samples - order.num_samples % world_size))
    for reader in range(num_readers):
        assert len({rank[reader].num_samples for rank in shares}) == 1


@given(shared())
def test_a_share_is_in_the_order_of_positions_and_of_its_rank_only(case):
    world_size = case[1]
    for rank, shares in enumerate(shares_of(*case)):
        for share in shares:
            positions = share.positions(0, share.num_samples)
            assert (np.diff(positions) > 0).all()
            assert (positions % world_size == rank).all()


@given(shared(), st.integers(0, 400), st.integers(0, 3))
def test_the_runs_of_a_share_hold_its_samples_from_any_number_on(case, first, epoch):
    order, _, _ = case
    for share in (share for rank in shares_of(*case) for share in rank):
        at = order.epoch(epoch)
        runs = {run.id: run for run in share.runs(at, first)}
        positions = share.positions(first, max(first, share.num_samples))
        places = at.locate(positions)
        rows = zip(positions.tolist(), *(c.tolist() for c in (places.piece, places.sample, places.run)), strict=True)
        for position, piece, sample, run_id in rows:
            run = runs[run_id]
            assert (run.piece, run.first <= sample < run.last) == (piece, True)
            assert run.need <= position < run.done


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
def test_turns_go_round_until_each_has_had_all(limits, data):
    """Against a simulation of whose turn it is, one by one."""
    turns = data.draw(st.integers(0, sum(limits)))
    had = [0] * len(limits)
    order = [reader for turn in range(max(limits, default=0)) for reader, n in enumerate(limits) if n > turn]
    for reader in order[:turns]:
        had[reader] += 1
    following = order[turns] if turns < len(order) else 0
    assert dealt(turns, limits) == (had, following)


def test_more_turns_than_there_are_are_refused():
    with pytest.raises(OptionError, match="at most those of an iteration, 5: got 6"):
        dealt(6, [3, 2])
