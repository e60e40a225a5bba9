"""Laws 1 to 4 of the order, over sample counts, shard counts, world sizes and interruption points."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError
from headrace.order import Batches, Order, check_world_size, default_partitions
from headrace.order import blocks as blocks_module
from headrace.order.keyed import derive_key, hash_sequence, permutation, permutation_rows, permuted

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@st.composite
def orders(draw):
    samples = np.array(draw(shard_sizes), np.int64)
    return Order(
        piece_samples=samples,
        piece_bytes=samples * draw(st.integers(1, 2000)) + draw(st.integers(0, 100)),
        seed=draw(st.integers(0, 2**63)),
        shuffle=draw(st.booleans()),
        partitions=draw(st.sampled_from([1, 2, 3, 4, 6, 12, 48])),
        block_size=draw(st.sampled_from([None, 1, 500, 5000, 10**9])),
        window=draw(st.sampled_from([None, 0, 1, 2, 7, 10**6])),
    )


def located(order, epoch, positions):
    places = order.epoch(epoch).locate(np.asarray(positions, np.int64))
    return list(zip(places.piece.tolist(), places.sample.tolist(), strict=True))


@given(orders(), st.integers(0, 5))
def test_an_epoch_is_every_sample_once(order, epoch):
    """Law 1."""
    every = [(k, i) for k, n in enumerate(order.piece_samples.tolist()) for i in range(n)]
    assert sorted(located(order, epoch, range(order.num_samples))) == every


@given(orders(), st.data())
def test_a_position_is_the_same_however_it_is_asked_for(order, data):
    """Law 2: asking in another order, in pieces, or for one alone gives the same sample."""
    positions = data.draw(st.permutations(range(order.num_samples)))
    whole = located(order, 3, range(order.num_samples))
    epoch = order.epoch(3)
    cut = data.draw(st.integers(0, order.num_samples))
    for part in (positions[:cut], positions[cut:]):
        places = epoch.locate(np.array(part, np.int64))
        assert list(zip(places.piece.tolist(), places.sample.tolist(), strict=True)) == [whole[p] for p in part]


@given(orders())
def test_without_shuffling_position_g_is_storage_sample_g(order):
    plain = Order(order.piece_samples, order.piece_bytes, 0, False, order.partitions)
    every = [(k, i) for k, n in enumerate(order.piece_samples.tolist()) for i in range(n)]
    assert located(plain, 9, range(plain.num_samples)) == every


@given(orders(), st.sampled_from([1, 2, 3, 4, 6, 12]), st.data())
def test_runs_hold_what_positions_need_when_they_need_it(order, world_size, data):
    """A run is there for every sample between its need and its done, whichever position a rank starts from."""
    if order.partitions % world_size:
        world_size = 1
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    for rank in range(world_size):
        epoch = order.epoch(1)
        runs = list(epoch.runs(rank, world_size, start, stop))
        assert [r.need for r in runs] == sorted(r.need for r in runs)
        by_id = {run.id: run for run in runs}
        assert len(by_id) == len(runs)
        mine = np.arange(start, stop)[np.arange(start, stop) % world_size == rank]
        places = epoch.locate(mine)
        for g, shard, sample, run_id in zip(mine.tolist(), places.piece, places.sample, places.run, strict=True):
            run = by_id[int(run_id)]
            assert run.piece == shard
            assert run.first <= sample < run.last
            assert run.need <= g < run.done


@given(orders(), st.sampled_from([2, 3, 4]))
def test_no_byte_is_needed_by_two_ranks(order, world_size):
    if order.partitions % world_size or not order.shuffle:
        return
    epoch = order.epoch(0)
    ranks = [list(epoch.runs(rank, world_size)) for rank in range(world_size)]
    taken = [(r.piece, i) for runs in ranks for r in runs for i in range(r.first, r.last)]
    assert len(taken) == len(set(taken)) == order.num_samples


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_every_rank_has_the_same_steps_and_together_every_position(num_samples, per_rank, world_size, drop_last):
    """Laws 1 and 3, with what drop_last and padding change counted."""
    each = [Batches(num_samples, per_rank * world_size, r, world_size, drop_last) for r in range(world_size)]
    dealt = [b.positions(0, b.num_steps) for b in each]
    assert len({b.num_steps for b in each}) == 1
    assert len({tuple(sizes) for _, _, sizes in dealt}) == 1
    real = np.concatenate([positions[mask] for positions, mask, _ in dealt])
    assert sorted(real.tolist()) == list(range(num_samples - each[0].num_dropped))
    assert all(positions.max(initial=0) < num_samples for positions, _, _ in dealt)


@given(st.integers(1, 300), st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), st.booleans(), st.data())
def test_global_batches_do_not_depend_on_the_world_size(num_samples, factor, world_size, drop_last, data):
    """Law 4: at every step the ranks together take the same positions, so one position is the whole state."""
    batch = 24 * factor
    whole = Batches(num_samples, batch, 0, 1, drop_last)
    step = data.draw(st.integers(0, whole.num_steps))
    last = min(step + 1, whole.num_steps)
    parts = [Batches(num_samples, batch, r, world_size, drop_last) for r in range(world_size)]
    dealt = [part.positions(step, last) for part in parts]
    taken = np.concatenate([positions[real] for positions, real, _ in dealt])
    assert sorted(taken.tolist()) == whole.positions(step, last)[0].tolist()
    assert {part.num_steps for part in parts} == {whole.num_steps}
    for rank, (positions, real, _) in enumerate(dealt):
        assert (positions[real] % world_size == rank).all(), "a rank takes what its own partitions hold"


def test_the_order_is_the_same_in_every_release():
    """These values are promised: changing them changes the order under everyone's saved states."""
    assert derive_key(1, 2, 3) == 2869315087210772132
    first = hash_sequence(np.array([0], np.uint64), np.arange(3, dtype=np.uint64)).tolist()
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # SplitMix64, seed 0
    order = Order(np.array([5, 3, 9]), np.array([500, 300, 900]), seed=1, shuffle=True, partitions=2, block_size=200)
    assert located(order, 0, range(17)) == [
        *((2, 7), (2, 3), (2, 8), (2, 4), (0, 0), (1, 1), (1, 0), (1, 2), (2, 0)),
        *((0, 2), (2, 5), (0, 1), (2, 6), (2, 1), (0, 3), (2, 2), (0, 4)),
    ]


uneven = np.arange(40) ** 2 * 7 % 901


@pytest.mark.parametrize(
    ("order", "digest"),
    [
        pytest.param(Order(uneven, uneven * 1500, 3, True, 48), "e693257e", id="defaults"),
        pytest.param(Order(uneven, uneven * 1500, 3, True, 12, block_size=20_000, window=100), "2169168f", id="window"),
        pytest.param(Order(uneven, uneven * 1500, 2**62, True, 6, window=0), "5a8d34e3", id="no window"),
        pytest.param(Order(uneven, uneven * 1500, 3, True, 2, window=2000), "414009d4", id="wide window"),
        pytest.param(Order(uneven * 10, uneven * 10, 3, True, 48, block_size=1), "ec69c9a1", id="groups of blocks"),
    ],
)
def test_whole_epochs_are_the_same_in_every_release(order, digest):
    """As above, of all that a saved state counts on: each way of permuting blocks and windows, and another epoch."""
    places = order.epoch(9).locate(np.arange(order.num_samples))
    digested = hashlib.sha256(np.stack((places.piece, places.sample), axis=1).astype("<i8").tobytes())
    assert digested.hexdigest()[:8] == digest


@given(st.integers(0, 2**64 - 1), st.integers(0, 500))
def test_a_permutation_has_every_number_once(key, size):
    assert sorted(permutation(key, size).tolist()) == list(range(size))


@given(st.integers(0, 2**64 - 1), st.integers(1, 2000))
def test_a_permutation_computed_value_by_value_has_every_number_once(key, size):
    keys, values = np.full(size, key, np.uint64), np.arange(size, dtype=np.uint64)
    places = permuted(keys, size, values)
    assert sorted(places.tolist()) == list(range(size))
    assert permuted(keys[:1], size, values[-1:]) == places[-1]


def test_permutations_computed_value_by_value_look_random():
    """Each value goes everywhere about as often, and neighbours part: chi-square within 5 standard deviations."""
    size, num_keys = 1200, 4000
    keys = np.arange(num_keys, dtype=np.uint64)
    at, beside = (permuted(keys, size, np.full(num_keys, value, np.uint64)) for value in (700, 701))
    for values in (at, (beside - at) % size):
        counts = np.bincount(values // 12, minlength=100)
        chi_square = ((counts - num_keys / 100) ** 2 / (num_keys / 100)).sum()
        assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


def test_rows_of_permutations_equal_single_ones():
    keys, sizes = np.array([3, 5, 7], np.uint64), np.array([4, 1, 6])
    rows = permutation_rows(keys, sizes)
    for key, size, row in zip(keys.tolist(), sizes.tolist(), rows, strict=True):
        assert row[:size].tolist() == permutation(key, size).tolist()


def test_epochs_and_seeds_differ():
    sizes = np.array([50, 50])
    seen = {
        tuple(located(Order(sizes, sizes * 100, seed, True, 4, block_size=300), epoch, range(100)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(seen) == 9


@given(orders(), st.data())
def test_many_blocks_are_ordered_in_groups_without_losing_any(order, data):
    """The two-level order of very large datasets obeys law 1 as well: shown at a size that can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "MAX_PERMUTED_BLOCKS", 4)
        patch.setattr(blocks_module, "GROUP_BLOCKS", data.draw(st.sampled_from([1, 3, 10])))
        patch.setattr(blocks_module, "MIN_NUM_STRETCHES", data.draw(st.sampled_from([1, 4, 1000])))
        patch.setattr(blocks_module, "_PIECES_AT_ONCE", data.draw(st.sampled_from([1, 3, 1000])))
        every = [(k, i) for k, n in enumerate(order.piece_samples.tolist()) for i in range(n)]
        assert sorted(located(order, 2, range(order.num_samples))) == every
        runs = list(order.epoch(2).runs(0, 1))
    assert sorted((run.piece, i) for run in runs for i in range(run.first, run.last)) == every


def test_a_world_size_that_does_not_divide_is_refused_with_the_nearest_that_do():
    with pytest.raises(OptionError, match=r"got 5 ranks for 48 partitions and a global batch of 96.*: 4 and 6"):
        check_world_size(5, 48, 96)
    with pytest.raises(OptionError, match=r"got 100 ranks.*: 48$"):
        check_world_size(100, 48, 96)
    for world_size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48):
        check_world_size(world_size, 48, 96)


@pytest.mark.parametrize("world_size", [1, 2, 5, 7, 48, 64])
def test_default_partitions_divide_by_48_and_the_world_size(world_size):
    assert default_partitions(world_size) == math.lcm(48, world_size)


def test_consecutive_positions_come_from_distinct_parts_of_storage():
    """A batch of a class-sorted dataset holds samples from every part of it, not a run of neighbours."""
    order = Order(np.array([1000] * 12), np.array([10**9] * 12), seed=0, shuffle=True, partitions=48)
    shards = [shard for shard, _ in located(order, 0, range(48))]
    assert len(set(shards)) >= 8
