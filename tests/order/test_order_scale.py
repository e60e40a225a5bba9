"""The order of 10^12 samples in 10^6 shards: the laws on ranges of it, 64-bit numbers, and its memory."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from headrace.errors import OptionError
from headrace.order import Order

NUM_SHARDS, NUM_SAMPLES = 10**6, 10**12
FAR_EPOCH = 10**6


def shard_samples(kind):
    """Samples of each shard: all alike, of sizes far apart, or nearly all in one."""
    if kind == "even":
        return np.full(NUM_SHARDS, NUM_SAMPLES // NUM_SHARDS)
    weights = np.random.default_rng(0).pareto(0.8, NUM_SHARDS)
    samples = (
        (weights / weights.sum() * NUM_SAMPLES).astype(np.int64) if kind == "uneven" else np.ones_like(weights, int)
    )
    samples[NUM_SHARDS // 2] += NUM_SAMPLES - samples.sum()
    return samples


@pytest.fixture(scope="module", params=["even", "uneven", "one"])
def samples(request):
    return shard_samples(request.param)


@pytest.fixture(params=[48, 6144, 1 << 20])
def order(request, samples):
    return Order(samples, samples * 1000, 3, True, request.param)


def starts(order, world_size):
    """Positions near the start, the middle and the end of an epoch, the first of a global batch each."""
    last = order.num_samples - 3 * order.partitions
    return [position // world_size * world_size for position in (0, order.num_samples // 3 * 2, last)]


def test_runs_hold_what_positions_need_when_they_need_it(order):
    epoch, world_size = order.epoch(FAR_EPOCH), order.partitions // 4
    for start in starts(order, world_size):
        for rank in (0, world_size - 1):
            mine = np.arange(start + rank, min(start + 60 * world_size, NUM_SAMPLES), world_size)
            runs = {run.id: run for run in epoch.runs(rank, world_size, start, start + 60 * world_size)}
            places = epoch.locate(mine)
            for g, piece, sample, run_id in zip(mine.tolist(), places.piece, places.sample, places.run, strict=True):
                run = runs[int(run_id)]
                assert run.piece == piece
                assert run.first <= sample < run.last <= order.piece_samples[piece]
                assert 0 <= run.need <= g < run.done <= order.num_samples


def test_a_partition_of_an_epoch_is_its_runs_each_sample_once(order):
    """Law 1, on the windows around a place: what positions ask for is all that is read, and nothing twice."""
    epoch = order.epoch(FAR_EPOCH)
    partition, window = order.partitions // 2, order.window_samples
    turn = order.num_samples // order.partitions // (2 * window) * window
    positions = (turn + np.arange(2 * window)) * order.partitions + partition
    positions = positions[positions < order.num_samples]
    places = epoch.locate(positions)
    asked = np.unique(places.piece * NUM_SAMPLES + places.sample % NUM_SAMPLES)  # below 2^63: 10^6 x 10^12
    assert len(asked) == len(positions)
    runs = list(epoch.runs(partition, order.partitions, int(positions[0]), int(positions[-1]) + 1))
    assert len({run.id for run in runs}) == len(runs)
    read = np.concatenate([run.piece * NUM_SAMPLES + np.arange(run.first, run.last) for run in runs])
    assert len(np.unique(read)) == len(read)
    assert np.isin(asked, read).all()
    assert len(read) <= len(asked) + 2 * max(run.last - run.first for run in runs)


def test_every_sample_has_a_place_in_some_group(samples):
    """Law 1: the groups of the epoch hold all samples, and no two that were looked at hold the same block."""
    order = Order(samples, samples * 1000, 3, True, 48)
    sequence = order.epoch(FAR_EPOCH)._sequence
    assert sequence.group_starts[-1] == NUM_SAMPLES
    rows = [sequence.row(int(group)) for group in sequence.group_of(np.arange(0, NUM_SAMPLES, NUM_SAMPLES // 97))]
    for row in rows:
        assert (np.diff(row.starts) > 0).all()
        assert (row.first + np.diff(row.starts) <= samples[row.piece]).all()
    blocks = np.concatenate([row.piece * NUM_SAMPLES + row.first for row in rows])
    assert len(np.unique(blocks)) == len(blocks)


def test_blocks_of_a_shard_are_of_equal_sizes_however_many_samples_it_has():
    order = Order(np.array([NUM_SAMPLES]), np.array([NUM_SAMPLES * 100_000]), 0, False, 1)
    runs = order.epoch(0).runs(0, 1, NUM_SAMPLES - 10**6)
    sizes = np.array([run.last - run.first for run in runs])
    assert sizes.min() > 0
    assert sizes.max() - sizes.min() <= 1


def test_without_shuffling_position_g_is_storage_sample_g(samples):
    order = Order(samples, samples * 1000, 0, False, 48)
    before = np.concatenate(([0], np.cumsum(samples)))
    for start in starts(order, 48):
        positions = np.arange(start, min(start + 100, NUM_SAMPLES))
        places = order.epoch(0).locate(positions)
        assert (before[places.piece] + places.sample == positions).all()


def test_groups_of_blocks_have_shards_from_everywhere():
    """A partition reads one group after another: in each there are shards of the whole of storage."""
    order = Order(shard_samples("even"), shard_samples("even") * 1000, 3, True, 48)
    runs = order.epoch(0).runs(5, 48, NUM_SAMPLES // 2)
    parts = {next(runs).piece * 10 // NUM_SHARDS for _ in range(500)}
    assert parts == set(range(10))


def test_blocks_too_small_are_refused_with_the_least_that_work():
    samples = shard_samples("even")
    with pytest.raises(OptionError, match=r"at most 1,073,741,824 blocks: got 10, .*; give at least 931,323$"):
        Order(samples, samples * 1000, 0, True, 48, block_size=10).epoch(0)
    Order(samples, samples * 1000, 0, True, 48, block_size=931_323).epoch(0)
    assert Order(samples, samples * 10**6, 0, True, 48).block_bytes == 931_322_575  # the default grows by itself


def test_more_samples_than_64_bit_numbers_order_are_refused():
    with pytest.raises(OptionError, match="1,048,576 partitions has at most 4,398,046,511,104 samples"):
        Order(np.array([2**43]), np.array([2**43]), 0, True, 1 << 20)


def test_an_order_is_pickled_as_its_description():
    order = Order(shard_samples("even"), shard_samples("even") * 1000, 3, True, 48)
    position = np.array([NUM_SAMPLES // 3])
    before, place = len(pickle.dumps(order)), order.epoch(1).locate(position)
    sent = pickle.dumps(order)
    assert len(sent) == before
    assert pickle.loads(sent).epoch(1).locate(position).sample == place.sample


PLAN = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from test_order_scale import NUM_SAMPLES, Order, np, shard_samples
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
samples = shard_samples(sys.argv[2])
num_bytes = samples * 1000
before = peak()
epoch = Order(samples, num_bytes, 0, True, 48).epoch(1)
runs = epoch.runs(0, 1, NUM_SAMPLES // 2)
for _ in range(1000):
    next(runs)
for k in range(20):
    epoch.locate(NUM_SAMPLES // 2 + 8192 * k + np.arange(8192))
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["even", "uneven", "one"])
def test_planning_takes_less_than_200_megabytes(kind):
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", PLAN, folder, kind], check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 200e6
