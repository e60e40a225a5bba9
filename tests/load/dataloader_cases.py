"""A stream inside PyTorch's own DataLoader: split exactly over ranks and workers, and resumed by a count of batches."""

import json
import os
import pickle
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

import headrace as hr
from headrace.errors import DamagedError, OptionError, StateError, StorageError
from waiting import DEADLINE_SEC, wait_for

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:.*multi-threaded, use of fork", "ignore:'set_vital'"
)
NUM_SAMPLES = 203


def pack(folder, num_samples=NUM_SAMPLES):
    samples = (
        {"__key__": f"{i:04d}", "npy": np.full(3, i, np.float32), "bin": bytes(i % 9)} for i in range(num_samples)
    )
    hr.pack(samples, folder, shard_size="4KiB", shuffle=False)
    return hr.open(folder)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("numbers") / "packed")


def keys_of(loader):
    return [batch["__key__"] for batch in loader]


def flat(batches):
    return [key for batch in batches for key in batch]


def with_noise(sample, rng):
    return {"__key__": sample["__key__"], "noise": rng.random()}


def with_global_noise(sample):
    return {"__key__": sample["__key__"], "noise": random.random() + float(np.random.rand())}


def test_a_stream_is_a_dataset_of_torchs(numbers):
    stream = hr.Stream(numbers)
    assert isinstance(stream, IterableDataset)
    assert isinstance(stream, Dataset)
    assert not hasattr(stream, "__len__")  # torch would warn of it with several workers


def test_samples_have_plain_values(numbers):
    sample = next(iter(hr.Stream(numbers, shuffle=False).decode()))
    assert (sample["__key__"], sample["bin"]) == ("0000", b"")
    assert sample["npy"].tolist() == [0, 0, 0]


def test_without_workers_the_samples_come_in_the_order_of_the_loader(numbers):
    stream = hr.Stream(numbers, seed=4, epochs=2)
    with hr.Loader(stream, batch_size=7, drop_last=False) as loader:
        assert flat(keys_of(DataLoader(stream, batch_size=7))) == flat(keys_of(loader))


@pytest.mark.parametrize("num_workers", [1, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_once_over_ranks_and_workers(numbers, monkeypatch, num_workers, shuffle):
    """Fewer samples than ranks are dropped, for equally many batches. 5 workers do not divide 24 partitions."""
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        stream = hr.Stream(numbers, shuffle=shuffle)
        seen.append(keys_of(DataLoader(stream, batch_size=8, num_workers=num_workers)))
    assert [len(batch) for batch in seen[0]] == [len(batch) for batch in seen[1]]
    every = flat(seen[0]) + flat(seen[1])
    assert len(every) == len(set(every)) == NUM_SAMPLES - 1


def test_the_next_batches_of_all_workers_hold_the_next_samples(numbers):
    """With workers that divide the partitions of a rank: which of them a sample is in is all that changes."""
    stream = hr.Stream(numbers, seed=2)
    alone = flat(keys_of(DataLoader(stream, batch_size=8)))
    batches = keys_of(DataLoader(stream, batch_size=8, num_workers=2))
    assert sorted(batches[0] + batches[1]) == sorted(alone[:16])
    assert batches[0] == alone[:16:2]


@pytest.mark.parametrize("fn", [with_noise, with_global_noise])
def test_randomness_is_the_samples_own_at_any_number_of_workers(numbers, fn):
    def noise(num_workers):
        loader = DataLoader(hr.Stream(numbers).map(fn), batch_size=8, num_workers=num_workers)
        return {key: x for b in loader for key, x in zip(b["__key__"], b["noise"].tolist(), strict=True)}

    assert noise(1) == noise(3)


def test_every_iteration_is_the_same_and_from_epoch_gives_another(numbers):
    """A description does not move on: a DataLoader tells its workers nothing of epochs."""
    stream, both = hr.Stream(numbers), hr.Stream(numbers, epochs=2)
    loader = DataLoader(stream, batch_size=8)
    first = flat(keys_of(loader))
    assert flat(keys_of(loader)) == first
    second = flat(keys_of(DataLoader(stream.from_epoch(1), batch_size=8)))
    assert second != first
    assert flat(keys_of(DataLoader(both, batch_size=8))) == first + second
    with hr.Loader(stream.from_epoch(1), batch_size=8, drop_last=False) as other:
        assert flat(keys_of(other)) == second


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_dataloader_resumes_at_the_exact_batch(numbers, num_workers, drop_last):
    options = {"batch_size": 9, "num_workers": num_workers, "drop_last": drop_last}
    stream = hr.Stream(numbers, epochs=2)
    whole = keys_of(DataLoader(stream, **options))
    for done in (0, 1, 14, len(whole) - 1, len(whole)):
        state = stream.state_after(done, **options)
        assert len(json.dumps(state)) < 500
        resumed = stream.resume(json.loads(json.dumps(state)))
        assert keys_of(DataLoader(resumed, **options)) == whole[done:]
    with pytest.raises(OptionError, match=f"at most those of an iteration, {len(whole)}"):
        stream.state_after(len(whole) + 1, **options)


def test_a_resumed_stream_can_be_resumed_again(numbers):
    options = {"batch_size": 9, "num_workers": 2}
    stream = hr.Stream(numbers)
    whole = keys_of(DataLoader(stream, **options))
    once = stream.resume(stream.state_after(3, **options))
    twice = stream.resume(once.state_after(4, **options))
    assert twice == stream.resume(stream.state_after(7, **options))
    assert keys_of(DataLoader(twice, **options)) == whole[7:]


def test_a_state_is_the_same_on_every_rank_and_refuses_what_differs(numbers, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    states = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        states.append(hr.Stream(numbers).state_after(5, batch_size=4, num_workers=2))
    assert states[0] == states[1]
    with pytest.raises(StateError, match="saved with seed=0, but here it is 1"):
        hr.Stream(numbers, seed=1).resume(states[0])
    with pytest.raises(StateError, match="open the dataset that the state was saved with"):
        hr.Stream(pack(tmp_path / "other", 50)).resume(states[0])
    resumed = hr.Stream(numbers).resume(states[0])
    with pytest.raises(StateError, match=r"for the workers it was saved with, 2: got 1; give num_workers=2, or use"):
        next(iter(resumed))
    monkeypatch.delenv("RANK")
    with pytest.raises(StateError, match=r"for the world size it was saved with, 2: got 1"):
        next(iter(DataLoader(hr.Stream(numbers).resume(states[0]), num_workers=2)))
    with pytest.raises(OptionError, match=r"has no filter: got one after resume\(\)"):
        resumed.filter(bool)
    with pytest.raises(OptionError, match="call it before map, filter, decode and resume"):
        resumed.pack_tokens(8)
    with pytest.raises(OptionError, match="resumed for a DataLoader"):
        hr.Loader(resumed, batch_size=4)


@pytest.mark.parametrize(
    "state", [None, {}, {"order": {}}, "loader", {"batches": -1}, {"drop_last": 3}, {"version": 7}]
)
def test_what_is_no_state_of_a_dataloader_is_refused(numbers, state):
    stream = hr.Stream(numbers)
    if state == "loader":
        state = hr.Loader(stream, batch_size=4).state_dict()
    elif state and "order" not in state:
        state = stream.state_after(5, batch_size=4) | state
    with pytest.raises(StateError):
        stream.resume(state)


def test_a_filters_batches_are_not_counted(numbers):
    stream = hr.Stream(numbers).filter(lambda sample: int(sample["__key__"]) % 2)
    assert len(flat(keys_of(DataLoader(stream, batch_size=4)))) == NUM_SAMPLES // 2
    with pytest.raises(OptionError, match=r"use torchdata's StatefulDataLoader, or headrace\.Loader"):
        stream.state_after(5, batch_size=4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("filtered", [False, True])
def test_a_stateful_dataloader_resumes_at_the_exact_batch(numbers, num_workers, filtered):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    stream = hr.Stream(numbers, epochs=2).map(with_noise)
    if filtered:
        stream = stream.filter(lambda sample: int(sample["__key__"]) % 3)

    def loader(state=None):
        made = stateful.StatefulDataLoader(stream, batch_size=9, num_workers=num_workers)
        if state:
            made.load_state_dict(json.loads(json.dumps(state)))
        return made

    whole, states, original = [], [], loader()
    for batch in original:
        whole.append((batch["__key__"], batch["noise"].tolist()))
        states.append(original.state_dict())
    for done in (1, 12, len(whole) - 1):
        assert [(b["__key__"], b["noise"].tolist()) for b in loader(states[done - 1])] == whole[done:]
    if num_workers:
        more = stateful.StatefulDataLoader(stream, batch_size=9, num_workers=num_workers + 1)
        more.load_state_dict(states[3])
        with pytest.raises(StateError, match="saved with, 2: got 3; give num_workers=2"):
            next(iter(more))
    stream = hr.Stream(numbers, seed=8, epochs=2)
    with pytest.raises(StateError, match="saved with seed=0, but here it is 8"):
        next(iter(loader(states[3])))


def test_spawned_workers_get_lambdas_and_closures(numbers):
    add = 5
    stream = hr.Stream(numbers).map(lambda sample: {"x": int(sample["__key__"]) + add})
    loader = DataLoader(stream, batch_size=50, num_workers=1, multiprocessing_context="spawn")
    assert sorted(flat(batch["x"].tolist() for batch in loader)) == list(range(5, NUM_SAMPLES + 5))
    again = pickle.loads(pickle.dumps(stream))
    assert [sample["x"] for sample in again] == [sample["x"] for sample in stream]


def test_forked_workers_may_not_use_a_store_that_spawned_ones_may(web):
    pack(web.folder / "remote", 40)
    stream = hr.Stream(hr.open(f"{web.place.text}/remote"))
    with pytest.raises(StorageError, match='multiprocessing_context="spawn" or "forkserver"'):
        next(iter(DataLoader(stream, num_workers=1, multiprocessing_context="fork")))
    loader = DataLoader(stream, batch_size=8, num_workers=1, multiprocessing_context="spawn")
    assert len(set(flat(keys_of(loader)))) == 40


SPAWNING = """
import sys, torch
from torch.utils.data import DataLoader
import headrace as hr

if __name__ == "__main__":
    folder, meeting, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    stream = hr.Stream(hr.open(folder))
    loader = DataLoader(stream, batch_size=8, num_workers=1, multiprocessing_context="spawn")
    print(*(key for batch in loader for key in batch["__key__"]))
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_spawned_workers_know_the_rank_that_only_torch_distributed_knows(numbers, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SPAWNING)
    commands = [[sys.executable, script, numbers.url, tmp_path / "meeting", str(rank)] for rank in range(2)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for command in commands]
    seen = [run.communicate(timeout=DEADLINE_SEC * 2)[0].split() for run in runs]
    assert len(seen[0]) == len(seen[1]) == NUM_SAMPLES // 2
    assert not set(seen[0]) & set(seen[1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_sample_is_named(tmp_path, num_workers):
    pack(tmp_path / "d", 20)
    shard = tmp_path / "d" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 128] ^= 1
    shard.write_bytes(data)
    stream = hr.Stream(hr.open(tmp_path / "d"))
    with pytest.raises(DamagedError, match=r"sample '0000' in shard-000000\.tar"):
        list(DataLoader(stream, batch_size=4, num_workers=num_workers))


def test_leaving_early_leaves_no_thread(numbers):
    before = set(threading.enumerate())
    samples = iter(hr.Stream(numbers, epochs=None))
    next(samples)
    started = set(threading.enumerate()) - before
    assert started
    del samples
    wait_for(lambda: not started & set(threading.enumerate()), "the end of the reading thread")


def test_a_world_size_that_does_not_divide_the_partitions_is_refused(numbers, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(OptionError, match=r"must divide the partitions: got 5 ranks for 12 partitions; .*: 4 and 6"):
        next(iter(hr.Stream(numbers, partitions=12)))
