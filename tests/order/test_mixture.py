"""Mixtures: every source by its weight at any prefix, every pass of a source once, all of it arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError
from headrace.order import Order
from headrace.order.mixing import Mixing
from headrace.order.mixture import MixedOrder, Stretch

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=9).map(
    lambda parts: tuple(Fraction(part, sum(parts)) for part in parts)
)
PARTITIONS = st.sampled_from([1, 2, 3, 6, 12, 48])


@given(WEIGHTS, PARTITIONS, st.integers(0, 10**12))
def test_counts_choices_and_turns_agree(weights, partitions, start):
    mixing = Mixing(weights, partitions)
    turn = start + np.arange(300)
    for p in {0, partitions // 2, partitions - 1}:
        partition = np.full(300, p)
        source, count = mixing.choose(partition, turn)
        counts = mixing.counts(partition, turn)
        assert (counts.sum(axis=0) == turn).all()
        assert (counts[source, np.arange(300)] == count).all()
        assert (mixing.turn_of(source, partition, count) == turn).all()


@given(WEIGHTS, PARTITIONS)
def test_at_any_prefix_a_source_is_within_the_bound(weights, partitions):
    mixing = Mixing(weights, partitions)
    positions = np.arange(400 * partitions)
    source, _ = mixing.choose(positions % partitions, positions // partitions)
    came = np.cumsum(source[None, :] == np.arange(len(weights))[:, None], axis=1)
    due = np.array([float(weight) for weight in weights])[:, None] * (positions + 1)
    off = np.abs(came - due).max()
    assert off <= float(mixing.bound_samples) + 1e-6
    if partitions >= 6 or len(weights) <= 4:
        assert off <= partitions


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=4), PARTITIONS)
def test_of_up_to_four_sources_the_bound_is_the_number_of_partitions(parts, partitions):
    weights = tuple(Fraction(part, sum(parts)) for part in parts)
    assert Mixing(weights, partitions).bound_samples <= partitions


@given(
    st.sampled_from([12, 48]),
    st.sampled_from([7, 24, 48]),
    st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), min_size=60, max_size=60),
)
def test_weights_that_change_at_every_step_are_kept_to_as_well(partitions, batch, schedule):
    """What is rounded off in one step is made good in the next."""
    order = scheduled(partitions, batch, schedule)
    source = np.searchsorted(order.piece_starts, order.epoch(0).locate(np.arange(order.num_samples)).piece, "right") - 1
    came = np.cumsum(source[None, :] == np.arange(3)[:, None], axis=1)
    shares = np.array(schedule) / np.sum(schedule, axis=1, keepdims=True)
    assert np.abs(came - np.cumsum(np.repeat(shares, batch, axis=0), axis=0).T).max() <= partitions


def test_roundings_of_a_schedule_do_not_add_up():
    """0.3 of 48 samples is 14.4: over 400 steps the rest of it would be 160 samples."""
    order = scheduled(48, 48, [[3000 + k % 2, 7000 - k % 2] for k in range(400)])
    first = order.epoch(0).locate(np.arange(order.num_samples)).piece == 0
    assert abs(int(first.sum()) - 0.30005 * order.num_samples) <= 48


def scheduled(partitions, batch, schedule):
    """A mixture whose weights change with each batch."""
    sizes = np.array([5000])
    sources = tuple(Order(sizes, sizes, seed=0, shuffle=True, partitions=partitions) for _ in schedule[0])
    stretches = []
    for step, parts in enumerate(schedule):
        present = tuple(k for k, part in enumerate(parts) if part)
        mixing = Mixing(tuple(Fraction(parts[k], sum(parts)) for k in present), partitions)
        stretches.append(Stretch(0, step * batch, present, mixing))
    return MixedOrder(sources, tuple(stretches), batch * len(schedule), 0, True, partitions)


def test_in_one_turn_the_partitions_take_turns():
    """A global batch is a mixture, too."""
    source, _ = Mixing((Fraction(1, 4), Fraction(3, 4)), 48).choose(np.arange(48), np.full(48, 1000))
    assert np.bincount(source).tolist() == [12, 36]


@st.composite
def orders(draw):
    """A mixture of small sources, and its weights from some positions on."""
    partitions = draw(st.sampled_from([1, 2, 4, 12]))
    shuffle = draw(st.booleans())
    sizes = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=4))
    sources = tuple(
        Order(
            *(np.array(pieces), np.array(pieces) * 100),
            seed=seed,
            shuffle=shuffle,
            partitions=partitions,
            block_size=draw(st.sampled_from([100, 500, None])),
            window=draw(st.sampled_from([None, 1, 7])),
        )
        for seed, pieces in enumerate(sizes)
    )
    num_samples = draw(st.integers(1, 150))
    places = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, num_samples - 1)), max_size=2, unique=True))
    stretches = []
    for epoch, position in [(0, 0), *sorted(set(places) - {(0, 0)})]:
        parts = draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any))
        present = tuple(k for k, part in enumerate(parts) if part)
        weights = tuple(Fraction(parts[k], sum(parts)) for k in present)
        stretches.append(Stretch(epoch, position, present, Mixing(weights, partitions if shuffle else 1)))
    return MixedOrder(sources, tuple(stretches), num_samples, 5, shuffle, partitions)


def located(order, epoch, positions):
    places = order.epoch(epoch).locate(np.array(positions, np.int64))
    return list(zip(places.piece.tolist(), places.sample.tolist(), strict=True))


def source_of(order, piece):
    return int(np.searchsorted(order.piece_starts, piece, side="right")) - 1


@given(orders())
def test_each_pass_of_a_source_gives_every_sample_once(order):
    """A source's samples come again only when it is through; partitions may be a turn ahead of each other."""
    drawn = {k: [] for k in range(len(order.sources))}
    for epoch in range(4):
        for piece, sample in located(order, epoch, range(order.num_samples)):
            k = source_of(order, piece)
            drawn[k].append((piece, sample))
    for k, samples in drawn.items():
        size = order.sources[k].num_samples
        counts = np.unique(np.array(samples).reshape(-1, 2), axis=0, return_counts=True)[1]
        ahead = 2 * order.partitions // size + 2
        if len(samples) >= size * ahead:
            assert len(counts) == size
            assert counts.max() - counts.min() <= ahead


@given(orders())
def test_without_shuffling_a_source_comes_in_its_own_order(order):
    if order.shuffle:
        return
    came = {}
    for epoch in range(3):
        for piece, sample in located(order, epoch, range(order.num_samples)):
            came.setdefault(source_of(order, piece), []).append((piece, sample))
    for k, samples in came.items():
        first = order.piece_starts[k]
        whole = [(first + p, i) for p, n in enumerate(order.sources[k].piece_samples.tolist()) for i in range(n)]
        assert samples == (whole * (len(samples) // len(whole) + 1))[: len(samples)]


@given(orders(), st.randoms(use_true_random=False))
def test_any_position_can_be_asked_for_alone(order, random):
    whole = located(order, 1, range(order.num_samples))
    some = [random.randrange(order.num_samples) for _ in range(20)]
    assert located(order, 1, some) == [whole[g] for g in some]


@given(orders(), st.integers(0, 2), st.data())
def test_runs_hold_what_positions_need_for_as_long_as_they_do(order, epoch, data):
    world_size = data.draw(st.sampled_from([w for w in (1, 2, 3, 4) if order.partitions % w == 0]))
    rank = data.draw(st.integers(0, world_size - 1))
    start = data.draw(st.integers(0, order.num_samples - 1))
    view = order.epoch(epoch)
    runs = list(view.runs(rank, world_size, start))
    by_id = {run.id: run for run in runs}
    assert len(by_id) == len(runs)
    assert [run.need for run in runs] == sorted(run.need for run in runs)
    mine = np.arange(order.num_samples)[start:]
    mine = mine[mine % world_size == rank]
    places = view.locate(mine)
    used = set()
    for g, piece, sample, run_id in zip(*(c.tolist() for c in (mine, *vars_of(places))), strict=True):
        run = by_id[run_id]
        assert (run.piece, run.need <= g < run.done) == (piece, True)
        assert run.first <= sample < run.last
        used.add(run_id)
    assert used == set(by_id)


def vars_of(places):
    return places.piece, places.sample, places.run


def test_a_rank_reads_its_own_share_only():
    """No byte is needed by two ranks, but where a pass ends."""
    sizes = np.full(6, 480)
    source = Order(sizes, sizes * 100, seed=0, shuffle=True, partitions=12, block_size=100)
    order = MixedOrder((source,), (Stretch(0, 0, (0,), Mixing((Fraction(1),), 12)),), int(sizes.sum()), 0, True, 12)
    read = [{(run.piece, run.first) for run in order.epoch(0).runs(rank, 4)} for rank in range(4)]
    assert sum(map(len, read)) == len(set().union(*read)) == sizes.sum()


def test_a_source_alone_is_the_source_itself():
    """Its passes are the epochs that it has on its own."""
    sizes = np.array([50, 30, 17])
    source = Order(sizes, sizes * 100, seed=3, shuffle=True, partitions=4, block_size=300)
    order = MixedOrder((source,), (Stretch(0, 0, (0,), Mixing((Fraction(1),), 4)),), 97, 3, True, 4)
    places = source.epoch(0).locate(np.arange(97))
    assert located(order, 0, range(97)) == list(zip(places.piece.tolist(), places.sample.tolist(), strict=True))


def test_many_sources_with_few_partitions_are_refused():
    weights = tuple(Fraction(part, 1056) for part in (1, 5, 50, 250, 750))
    sizes = np.array([10])
    sources = tuple(Order(sizes, sizes, seed=0, shuffle=True, partitions=2) for _ in weights)
    stretch = Stretch(0, 0, tuple(range(5)), Mixing(weights, 2))
    assert stretch.mixing.bound_samples > 2
    with pytest.raises(OptionError, match="of 5 sources keeps to its weights with 8 or more partitions: got 2"):
        MixedOrder(sources, (stretch,), 100, 0, True, 2)
