"""What a batch holds, what happens to it when samples fail, and what is refused."""

import os
import sys

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import DamagedError, LoaderError, OptionError, StateError, TransformError

NUM_SAMPLES = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("batches") / "packed"
    samples = (
        {"__key__": f"s{i:03d}", "cls": i % 10, "bin": os.urandom(20 + i), "json": {"n": i}, "txt": f"text {i}"}
        for i in range(NUM_SAMPLES)
    )
    hr.pack(samples, target, shard_size="16KiB")
    return target


@pytest.fixture(scope="module")
def dataset(folder):
    return hr.open(folder)


def first_batch(stream, **options):
    with hr.Loader(stream, batch_size=8, **options) as loader:
        return next(iter(loader))


def test_without_decoding_fields_are_the_stored_bytes(dataset):
    for batch in hr.Loader(hr.Stream(dataset), batch_size=8):
        for key, blob in zip(batch["__key__"], batch["bin"], strict=True):
            assert isinstance(blob, memoryview)
            assert blob == bytes(dataset.lookup(key)["bin"])


def test_decoded_fields_are_tensors_or_lists_by_their_type(dataset):
    batch = first_batch(hr.Stream(dataset).decode())
    numbers = [int(key[1:]) for key in batch["__key__"]]
    assert batch["cls"].dtype == torch.int64
    assert batch["cls"].tolist() == [n % 10 for n in numbers]
    assert batch["json"] == [{"n": n} for n in numbers]
    assert batch["txt"] == [f"text {n}" for n in numbers]
    assert [len(blob) for blob in batch["bin"]] == [20 + n for n in numbers]


@pytest.mark.parametrize("processes", [1, 2])
def test_arrays_of_one_shape_are_tensors_and_of_varying_shape_lists(dataset, processes):
    def make(sample):
        n = int(sample["__key__"][1:])
        return {"fixed": np.full((3, 2), n, np.float32), "ragged": np.arange(n, dtype=np.int16), "flag": n > 50}

    batch = first_batch(hr.Stream(dataset).map(make), processes=processes)
    numbers = [int(key[1:]) for key in batch["__key__"]]
    assert batch["fixed"].shape == (8, 3, 2)
    assert batch["fixed"].dtype == torch.float32
    assert batch["fixed"][:, 0, 0].tolist() == numbers
    assert [r.tolist() for r in batch["ragged"]] == [list(range(n)) for n in numbers]
    assert batch["flag"].dtype == torch.bool


def test_torch_tensors_from_a_function_become_tensors(dataset):
    batch = first_batch(hr.Stream(dataset).map(lambda s: {"x": torch.ones(3) * len(s["bin"])}))
    assert batch["x"].shape == (8, 3)


def test_the_loader_process_does_not_import_torch(dataset):
    batch = first_batch(hr.Stream(dataset).decode().map(lambda s: {"torch": "torch" in sys.modules}))
    assert not batch["torch"].any()


def test_a_sample_that_does_not_fit_is_an_error_that_names_it(dataset):
    def make(sample):
        return {"x": np.zeros(4 if sample["__key__"] == "s017" else 3)}

    with pytest.raises(TransformError, match=r"sample 's017': field 'x' is float64 \(4,\).*float64 \(3,\).*shapes="):
        list(hr.Loader(hr.Stream(dataset).map(make), batch_size=8))
    declared = hr.Stream(dataset).map(make, shapes={"x": None})
    assert isinstance(first_batch(declared)["x"], list)


def test_a_missing_field_is_an_error_that_names_the_sample(dataset):
    def make(sample):
        return {"a": 1} if sample["__key__"] == "s020" else {"a": 1, "b": 2}

    with pytest.raises(TransformError, match=r"sample 's020': it has the fields \['a'\].*\['a', 'b'\]"):
        list(hr.Loader(hr.Stream(dataset).map(make), batch_size=8))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_function_names_the_sample_and_brings_the_traceback(dataset, processes):
    def explode(sample):
        if sample["__key__"] == "s033":
            raise KeyError("no such thing")
        return sample

    with pytest.raises(TransformError, match=r"sample 's033': .*explode.*KeyError") as caught:
        list(hr.Loader(hr.Stream(dataset).map(explode), batch_size=8, processes=processes))
    assert "\n" not in str(caught.value)
    assert any("in explode" in note for note in caught.value.__notes__)


def test_batches_before_the_error_are_delivered(dataset):
    """Law 7: which batches come does not depend on how far the feed was ahead."""
    keys = [b["__key__"] for b in hr.Loader(hr.Stream(dataset), batch_size=8)]

    def explode(sample):
        if sample["__key__"] == keys[5][2]:
            raise ValueError("bad")
        return sample

    seen = []
    loader = hr.Loader(hr.Stream(dataset).map(explode), batch_size=8, threads=3)
    with pytest.raises(TransformError):
        seen.extend(batch["__key__"] for batch in loader)
    assert seen == keys[:5]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_filter_shrinks_its_batch_and_moves_nothing_else(dataset, processes):
    whole = [b["__key__"] for b in hr.Loader(hr.Stream(dataset).decode(), batch_size=8)]
    stream = hr.Stream(dataset).decode().filter(lambda s: s["cls"] != 3)
    with hr.Loader(stream, batch_size=8, processes=processes) as loader:
        kept = list(loader)
    assert [b["__key__"] for b in kept] == [[k for k in keys if int(k[1:]) % 10 != 3] for keys in whole]
    for batch in kept:
        assert batch["cls"].tolist() == [int(key[1:]) % 10 for key in batch["__key__"]]


def test_a_batch_may_be_filtered_empty(dataset):
    with hr.Loader(hr.Stream(dataset).decode().filter(lambda s: s["cls"] > 99), batch_size=8) as loader:
        assert [b["__key__"] for b in loader] == [[]] * 12


def test_batches_stay_valid_as_long_as_they_are_held(dataset):
    """More batches than there are slots are held at once, after the loader is gone."""
    stream = hr.Stream(dataset).map(lambda s: {"x": np.full(5000, int(s["__key__"][1:])), "bin": s["bin"]})
    batches = list(hr.Loader(stream, batch_size=8, prefetch=1))
    for batch in batches:
        assert batch["x"][:, 0].tolist() == batch["x"][:, -1].tolist() == [int(k[1:]) for k in batch["__key__"]]
        assert [len(blob) for blob in batch["bin"]] == [20 + int(k[1:]) for k in batch["__key__"]]


def test_a_part_of_a_batch_keeps_its_memory(dataset):
    stream = hr.Stream(dataset, epochs=4).map(lambda s: {"x": np.full(1000, int(s["__key__"][1:]))})
    rows, expected = [], []
    for batch in hr.Loader(stream, batch_size=8):
        rows.append(batch["x"][3, 10:20])
        expected.append(int(batch["__key__"][3][1:]))
    assert [row.tolist() for row in rows] == [[n] * 10 for n in expected]


def test_collate_runs_in_the_loader_process_and_replaces_batching(dataset):
    def collate(samples):
        return {
            "n": np.array([len(s["bin"]) for s in samples]),
            "pid": os.getpid(),
            "key": [s["__key__"] for s in samples],
        }

    batch = first_batch(hr.Stream(dataset), collate=collate)
    assert batch["n"].tolist() == [20 + int(key[1:]) for key in batch["key"]]
    assert batch["pid"] != os.getpid()
    with pytest.raises(TransformError, match="collate failed on 8 samples: ZeroDivisionError"):
        first_batch(hr.Stream(dataset), collate=lambda samples: {"x": 1 / 0})


def damage(folder, copy):
    """A copy of the dataset with one byte of one sample flipped; returns it and the sample's key."""
    import shutil

    shutil.copytree(folder, copy)
    shard = next(path for path in copy.glob("*.tar") if b"text 40" in path.read_bytes())
    data = bytearray(shard.read_bytes())
    data[data.index(b"text 40")] ^= 1
    shard.write_bytes(data)
    return hr.open(copy)


def test_a_damaged_sample_is_never_delivered_silently(folder, tmp_path):
    """Law 6: an error that names it, or a record of it."""
    dataset = damage(folder, tmp_path / "copy")
    with pytest.raises(DamagedError, match=r"s040.*shard-0"):
        list(hr.Loader(hr.Stream(dataset), batch_size=8))
    with hr.Loader(hr.Stream(dataset), batch_size=8, on_error="skip") as loader:
        keys = [k for batch in loader for k in batch["__key__"]]
        assert len(keys) == NUM_SAMPLES - 1
        assert [s.key for s in loader.skipped] == ["s040"]
        assert "s040" not in keys
        assert loader.meters()["skipped"] == 1
    with pytest.raises(DamagedError, match=r"max_skipped"):
        list(hr.Loader(hr.Stream(dataset), batch_size=8, on_error="skip", max_skipped=0))


def test_a_repeat_of_a_damaged_sample_is_not_counted_again(tmp_path):
    """13 samples on 2 ranks: rank 1 repeats its last in the second step. The sum over ranks is what one rank counts."""
    hr.pack(({"__key__": f"s{i:02d}", "txt": f"text {i:02d}"} for i in range(13)), tmp_path / "d", shuffle=False)
    shard = tmp_path / "d" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"text 11", b"text 1l"))
    options = {"global_batch_size": 12, "drop_last": False, "on_error": "skip", "rank": 1, "world_size": 2}
    with hr.Loader(hr.Stream(hr.open(tmp_path / "d"), shuffle=False), **options) as loader:
        assert [batch["__key__"] for batch in loader] == [["s01", "s03", "s05", "s07", "s09"], []]
        assert [skipped.key for skipped in loader.skipped] == ["s11"]
        assert loader.meters()["skipped"] == 1


def test_a_missing_shard_is_an_error_or_skipped_whole(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    lost = sorted((tmp_path / "copy").glob("*.tar"))[1]
    lost.unlink()
    dataset = hr.open(tmp_path / "copy")
    with pytest.raises(DamagedError, match=lost.name):
        list(hr.Loader(hr.Stream(dataset), batch_size=8))
    with hr.Loader(hr.Stream(dataset), batch_size=8, on_error="skip") as loader:
        keys = [k for batch in loader for k in batch["__key__"]]
        assert len(keys) + loader.meters()["skipped"] == NUM_SAMPLES
        assert 0 < len(keys) < NUM_SAMPLES


def test_a_killed_loader_process_that_is_not_to_be_replaced_is_an_error_that_says_so(dataset):
    import signal

    with hr.Loader(hr.Stream(dataset, epochs=None), batch_size=8, max_restarts=0) as loader:
        batches = iter(loader)
        next(batches)
        os.kill(loader._client.pid, signal.SIGKILL)
        with pytest.raises(LoaderError, match="SIGKILL"):
            list(batches)


def test_meters_count_each_stage(dataset):
    with hr.Loader(hr.Stream(dataset, epochs=8).decode(), batch_size=10) as loader:
        num = sum(len(b["__key__"]) for b in loader)
        meters = loader.meters()
    assert num == 8 * 90
    assert list(meters["stages"]) == ["read", "verify", "transform", "collate", "hand-off"]
    assert meters["stages"]["hand-off"]["items"] == num
    assert meters["dropped"] == 8 * 6
    assert all(reading["busy_sec"] >= 0 for reading in meters["stages"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of batch_size"),
        ({"batch_size": 4, "global_batch_size": 4}, "exactly one of batch_size"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"batch_size": 4, "threads": 0}, "threads must be at least 1"),
        ({"batch_size": 4, "prefetch": 0}, "prefetch must be at least 1"),
        ({"batch_size": 4, "on_error": "ignore"}, 'on_error is "raise" or "skip"'),
        ({"batch_size": 4, "max_skipped": 3}, 'needs on_error="skip"'),
        ({"batch_size": 4, "rank": 1}, "rank and world_size go together"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank must be at least 0 and below"),
        ({"batch_size": 4, "memory": "lots"}, "memory must be a number of bytes"),
    ],
)
def test_what_cannot_work_is_refused_when_the_loader_is_made(dataset, options, message):
    with pytest.raises(OptionError, match=message):
        hr.Loader(hr.Stream(dataset), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "memory": 10}, "memory must hold the open windows"),
        ({"batch_size": 200}, "must have a full global batch: got 96 samples"),
        ({"global_batch_size": 30, "rank": 0, "world_size": 5}, "the nearest that work: 3 and 6"),
    ],
)
def test_what_the_dataset_or_the_world_rules_out_is_refused_before_the_first_batch(dataset, options, message):
    with pytest.raises(OptionError, match=message):
        next(iter(hr.Loader(hr.Stream(dataset, partitions=48), **options)))


def test_a_state_of_something_else_is_refused_and_says_what_differs(dataset):
    state = hr.Loader(hr.Stream(dataset), batch_size=8).state_dict()
    for stream, options, message in [
        (hr.Stream(dataset, seed=5), {"batch_size": 8}, "seed=0, but here it is 5"),
        (hr.Stream(dataset, shuffle=False), {"batch_size": 8}, "shuffle=True, but here it is False"),
        (hr.Stream(dataset, partitions=12), {"batch_size": 8}, "partitions=48, but here it is 12"),
        (hr.Stream(dataset), {"batch_size": 4}, "global_batch_size=8, but here it is 4"),
        (hr.Stream(dataset).filter(lambda s: True), {"batch_size": 8}, "filter=False, but here it is True"),
    ]:
        with pytest.raises(StateError, match=message):
            hr.Loader(stream, **options).load_state_dict(state)
    with pytest.raises(StateError, match="version 2"):
        hr.Loader(hr.Stream(dataset), batch_size=8).load_state_dict({**state, "version": 2})
    with pytest.raises(StateError, match="got the state of a stream in a DataLoader"):
        hr.Loader(hr.Stream(dataset), batch_size=8).load_state_dict(hr.Stream(dataset).state_after(2, batch_size=8))
    with pytest.raises(StateError, match="position is a whole number"):
        hr.Loader(hr.Stream(dataset), batch_size=8).load_state_dict({**state, "position": -8})


def test_a_loaded_state_brings_its_partitions(dataset):
    state = hr.Loader(hr.Stream(dataset, partitions=5), batch_size=10).state_dict()
    loader = hr.Loader(hr.Stream(dataset), batch_size=10)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    with pytest.raises(OptionError, match="got 2 ranks for 5 partitions"):
        hr.Loader(hr.Stream(dataset), global_batch_size=10, rank=0, world_size=2).load_state_dict(state)
