"""The laws of the feed: every sample once, one order, equal steps. That states are portable is in `test_elastic`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import LoaderHere, pack_numbers, run_world

import headrace as hr


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    return pack_numbers(tmp_path_factory.mktemp("numbers") / "packed", 300)


@settings(max_examples=20)
@given(data=st.data())
def test_an_epoch_is_every_sample_once_at_any_world_size(tmp_path_factory, data):
    """Laws 1, 2 and 3: over sample counts, shard counts and world sizes; the batches are those of one rank."""
    num_samples = data.draw(st.integers(12, 120))
    shard_size = data.draw(st.sampled_from(["2KiB", "9KiB", "1MiB"]))
    dataset = pack_numbers(tmp_path_factory.mktemp("law1") / "packed", num_samples, shard_size)
    stream = hr.Stream(
        dataset,
        seed=data.draw(st.integers(0, 2**40)),
        shuffle=data.draw(st.booleans()),
        partitions=12,
        window=data.draw(st.sampled_from([None, 0, 5])),
        block_size=data.draw(st.sampled_from([None, 1500])),
    )
    alone = run_world(stream, 1, 12, make_loader=LoaderHere).steps
    delivered = [key for step in alone for key in step]
    assert len(delivered) == len(set(delivered)) == num_samples - num_samples % 12
    world_size = data.draw(st.sampled_from([2, 3]))
    assert run_world(stream, world_size, 12, make_loader=LoaderHere).steps == alone


def with_noise(sample, rng):
    return {**sample, "noise": rng.random()}


@pytest.mark.parametrize("options", [{"threads": 4}, {"processes": 2}, {"prefetch": 1}, {"memory": "1MiB"}])
def test_threads_processes_and_memory_do_not_enter_order_or_randomness(numbers, options):
    """Law 2: the same keys and the same random numbers."""
    stream = hr.Stream(numbers, seed=9).map(with_noise)

    def run(**options):
        with hr.Loader(stream, batch_size=20, **options) as loader:
            return [(batch["__key__"], batch["noise"].tolist()) for batch in loader]

    assert run(**options) == run(threads=1)


def test_worker_processes_seed_the_global_generators_for_each_sample(numbers):
    """Functions that draw from global generators are as exact as the order there."""

    def draw(sample):
        import random

        return {"x": random.random(), "y": np.random.rand(2)}

    def run(threads, processes):
        stream = hr.Stream(numbers, epochs=2).map(draw)
        with hr.Loader(stream, batch_size=50, processes=processes) as loader:
            return [(batch["x"].tolist(), batch["y"].tolist()) for batch in loader]

    assert run(1, 2) == run(1, 3)


def test_epochs_go_on_by_themselves_in_a_new_order(numbers):
    loader = hr.Loader(hr.Stream(numbers), batch_size=50)
    first, second = ([k for batch in loader for k in batch["__key__"]] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    with hr.Loader(hr.Stream(numbers, epochs=2), batch_size=50) as both:
        assert len(both) == 12
        assert [k for batch in both for k in batch["__key__"]] == first + second
    loader.close()


def test_leaving_early_starts_the_next_epoch_and_a_state_resumes_this_one(numbers):
    stream = hr.Stream(numbers)
    whole = [[b["__key__"] for b in hr.Loader(hr.Stream(numbers, epochs=2), batch_size=50)]][0]
    with hr.Loader(stream, batch_size=50) as loader:
        for _ in zip(range(2), loader, strict=False):
            pass
        state = loader.state_dict()
        assert [b["__key__"] for b in loader] == whole[6:]
    with hr.Loader(stream, batch_size=50) as loader:
        loader.load_state_dict(state)
        rest = [b["__key__"] for b in loader]
        assert rest == whole[state["position"] // 50 : 6]
        assert [b["__key__"] for b in loader] == whole[6:]


def test_an_endless_stream_has_no_length_and_goes_on_where_it_was_left(numbers):
    with hr.Loader(hr.Stream(numbers, epochs=None), batch_size=50) as loader:
        with pytest.raises(TypeError, match="endless"):
            len(loader)
        keys = []
        for _ in range(3):
            for batch in loader:
                keys.append(batch["__key__"])
                if len(keys) % 5 == 0:
                    break
    with hr.Loader(hr.Stream(numbers, epochs=3), batch_size=50) as loader:
        assert keys == [b["__key__"] for b in loader][:15]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_without_drop_last_every_sample_comes_and_repeats_are_marked(tmp_path, world_size):
    dataset = pack_numbers(tmp_path / "d", 29)
    real = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "drop_last": False}
        with hr.Loader(hr.Stream(dataset), global_batch_size=12, **options) as loader:
            batches = list(loader)
            assert len(batches) == len(loader) == 3
            assert [len(b["__key__"]) for b in batches] == [12 // world_size] * 2 + [-(-5 // world_size)]
            padded = 0
            for batch in batches:
                marks = batch["__real__"].tolist() if "__real__" in batch else [True] * len(batch["__key__"])
                real += [key for key, mark in zip(batch["__key__"], marks, strict=True) if mark]
                padded += marks.count(False)
            assert loader.meters()["padded"] == padded
    assert sorted(real) == [f"{i:05d}" for i in range(29)]
