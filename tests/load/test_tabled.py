"""Batches out of tables: what comes is what a stream gives that goes sample by sample."""

import itertools
import os
import shutil
import signal

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import DamagedError, OptionError, TransformError
from headrace.load.child import Columns
from headrace.load.fields import resolve_specs
from headrace.load.marks import Lane
from headrace.load.tabled import takes_tables
from waiting import family

NUM_SAMPLES = 300


def unchanged(sample):
    return sample


def even(i):
    return {"bin": bytes([i % 251]) * 40, "txt": f"text {i:04d}", "cls": i % 10}


def uneven(i):
    return {"bin": bytes([i % 251]) * (i % 37), "txt": f"text {i}", "cls": i}


def half_even(i):
    """Runs of one length beside runs of several."""
    return even(i) if i < NUM_SAMPLES // 2 else uneven(i)


def wide(i):
    return {"bin": bytes([i % 251]) * (5000 + i), "txt": f"text {i}", "cls": i}


def columns(i):
    return {"a": i, "b": i / 3, "ok": i % 2 == 0, "name": f"n{i}", "blob": bytes([i % 251]) * (i % 9)}


def numbers(i):
    return {"a": i, "b": i / 3}


SAMPLES = {
    "even": ("tar", even),
    "uneven": ("tar", uneven),
    "half even": ("tar", half_even),
    "wide": ("tar", wide),
    "columns": ("parquet", columns),
    "numbers": ("parquet", numbers),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabled")
    for name, (format_name, make) in SAMPLES.items():
        samples = ({"__key__": f"s{i:04d}", **make(i)} for i in range(NUM_SAMPLES))
        hr.pack(samples, folder / name, format=format_name, shard_size="16KiB", shuffle=False)
    tokens = ({"__key__": f"d{i}", "tokens": np.arange(i, i + 100 + i, dtype=np.uint16)} for i in range(60))
    hr.pack(tokens, folder / "tokens", format="tokens", shard_size="2KiB", shuffle=False)
    found = {name: hr.open(folder / name) for name in SAMPLES}
    found["windows"] = hr.open(folder / "tokens").windows(16)
    found["overlapping windows"] = hr.open(folder / "tokens").windows(16, stride=5)
    return found


ALL = [*SAMPLES, "windows", "overlapping windows"]


def is_tabled(stream):
    """Whether the stream's runs come as columns."""
    loader = hr.Loader(stream, batch_size=8)
    job = loader._job(2)
    specs = resolve_specs(job.dataset, job.ops, lambda at: np.random.default_rng(at), Lane.unseen())
    if not takes_tables(job, specs):
        return False
    index = job.dataset.piece(0)
    data = job.dataset.open_shard(0).read(*index.extent(0, index.num_samples))
    table = index.open(0, index.num_samples, data).table(0, index.num_samples)
    return Columns(specs, job.ops).of(table) is not None


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    return [bytes(one) if isinstance(one, memoryview) else one for one in value]


def contents(loader):
    return [{name: plain(value) for name, value in batch.items()} for batch in loader]


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("processes", [1, 3])
def test_batches_are_those_of_a_stream_that_goes_sample_by_sample(datasets, processes, name, decoded):
    stream = hr.Stream(datasets[name], seed=3, epochs=2, window=50)
    stream = stream.decode() if decoded else stream
    assert is_tabled(stream)
    assert not is_tabled(stream.map(unchanged))
    options = {"batch_size": 8, "rank": 1, "world_size": 2, "drop_last": False}
    with (
        hr.Loader(stream, processes=processes, **options) as tabled,
        hr.Loader(stream.map(unchanged), **options) as usual,
    ):
        assert contents(tabled) == contents(usual)
        assert tabled.meters()["stages"]["transform"]["items"] > 0


def test_some_fields_and_some_samples_come_as_all_do(datasets):
    some = datasets["columns"].with_fields(["b", "name"])
    assert is_tabled(hr.Stream(some))
    chosen = datasets["even"].select(range(0, NUM_SAMPLES, 3))
    for dataset in (some, chosen):
        stream = hr.Stream(dataset, seed=1)
        assert contents(hr.Loader(stream, batch_size=8)) == contents(hr.Loader(stream.map(unchanged), batch_size=8))


def test_processes_with_shares_go_on_anywhere(datasets):
    """From a state, from one epoch to the next, after batches that nobody took; unshuffled there are no shares."""
    stream = hr.Stream(datasets["columns"], seed=5, epochs=2)
    with hr.Loader(stream, batch_size=7) as loader:
        whole = contents(loader)
    with hr.Loader(stream, batch_size=7, processes=2) as loader:
        taken = [{name: plain(value) for name, value in batch.items()} for batch in itertools.islice(loader, 20)]
        assert taken == whole[:20]
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert contents(loader) == whole[20:]
        loader.load_state_dict(state)
        assert contents(loader) == whole[20:]
    unshuffled = hr.Stream(datasets["columns"], shuffle=False)
    assert contents(hr.Loader(unshuffled, batch_size=7, processes=2)) == contents(hr.Loader(unshuffled, batch_size=7))


def test_a_process_with_a_share_that_is_killed_costs_no_batch(datasets):
    stream = hr.Stream(datasets["uneven"], seed=5, epochs=20)
    with hr.Loader(stream, batch_size=7) as loader:
        whole = contents(loader)
    with hr.Loader(stream, batch_size=7, processes=2) as loader:
        batches = iter(loader)
        found = [{name: plain(value) for name, value in next(batches).items()}]
        for pid in family(loader._client.pid):
            if pid != loader._client.pid:
                os.kill(pid, signal.SIGKILL)
        found += [{name: plain(value) for name, value in batch.items()} for batch in batches]
        assert found == whole
        assert {restart.process for restart in loader.restarts} == {"worker"}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", ["even", "uneven"])
def test_a_damaged_sample_is_named_and_its_neighbours_come(datasets, tmp_path, name, processes):
    shutil.copytree(datasets[name].url, tmp_path / "copy")
    text = SAMPLES[name][1](40)["txt"].encode()
    shard = next(path for path in sorted((tmp_path / "copy").glob("*.tar")) if text in path.read_bytes())
    data = bytearray(shard.read_bytes())
    data[data.index(text)] ^= 1
    shard.write_bytes(data)
    stream = hr.Stream(hr.open(tmp_path / "copy"))
    with pytest.raises(DamagedError, match=rf"sample 's\d+' in {shard.name}"):
        list(hr.Loader(stream, batch_size=10, processes=processes))
    with hr.Loader(stream, batch_size=10, on_error="skip", processes=processes) as loader:
        keys = [key for batch in loader for key in batch["__key__"]]
        assert len(keys) == NUM_SAMPLES - 1
        assert [skipped.key in keys for skipped in loader.skipped] == [False]


@pytest.mark.parametrize(
    ("text", "reason"), [(b"seven", "'cls' is not a whole number"), (b"9" * 30, "an int that int64 does not hold")]
)
def test_text_that_cannot_be_decoded_is_told_of_by_its_sample(tmp_path, text, reason):
    samples = ({"__key__": f"s{i}", "cls": b"7" if i != 25 else text} for i in range(40))
    hr.pack(samples, tmp_path / "packed", shuffle=False)
    with pytest.raises(TransformError, match=rf"sample 's25'.*{reason}"):
        list(hr.Loader(hr.Stream(hr.open(tmp_path / "packed")).decode(), batch_size=4))


@pytest.mark.parametrize(
    ("name", "dtypes", "found"),
    [
        ("windows", {"tokens": "int64"}, {"tokens": torch.int64}),
        ("windows", {"tokens": torch.int32}, {"tokens": torch.int32}),
        ("numbers", {"a": np.float32, "b": "float32"}, {"a": torch.float32, "b": torch.float32}),
        ("columns", {"b": "float32", "ok": "uint8"}, {"b": torch.float32, "ok": torch.uint8, "a": torch.int64}),
    ],
)
def test_numbers_become_other_types(datasets, name, dtypes, found):
    stream = hr.Stream(datasets[name], seed=2).cast(dtypes)
    assert is_tabled(stream)
    with hr.Loader(stream, batch_size=8) as tabled, hr.Loader(stream.map(unchanged), batch_size=8) as usual:
        batches = contents(tabled)
        assert batches == contents(usual)
    assert {field: batches[0][field][0] for field in found} == found


def test_what_would_be_cut_off_is_refused(datasets):
    with pytest.raises(TransformError, match=r"field 'a' of int64 does not become int32 without being cut off"):
        list(hr.Loader(hr.Stream(datasets["numbers"]).cast({"a": "int32"}), batch_size=8))
    with pytest.raises(TransformError, match=r"there is no field 'c' to cast: got a, b"):
        list(hr.Loader(hr.Stream(datasets["numbers"]).cast({"c": "int32"}), batch_size=8))
    for dtype in ("text", "complex64", "datetime64[s]", None):
        with pytest.raises(OptionError, match=r"cast\('a': \.\.\.\) takes a"):
            hr.Stream(datasets["numbers"]).cast({"a": dtype})


@pytest.mark.parametrize("processes", [1, 2])
def test_keys_of_several_lengths_come_as_they_are(tmp_path, processes):
    """Runs whose keys all have one length, others of another, and runs with keys of several; some in no ASCII."""
    keys = [f"{i}" for i in range(180)] + [f"ä{i}" for i in range(200, 260)]
    hr.pack(({"__key__": key, "bin": key.encode() * 9} for key in keys), tmp_path, shard_size="8KiB", shuffle=False)
    stream = hr.Stream(hr.open(tmp_path), seed=1, block_size="12KiB", window=64)
    assert is_tabled(stream)
    with hr.Loader(stream, batch_size=16, processes=processes, drop_last=False) as loader:
        pairs = [pair for batch in loader for pair in zip(batch["__key__"], batch["bin"], strict=True)]
    assert sorted(key for key, _ in pairs) == sorted(keys)
    assert all(bytes(data) == key.encode() * 9 for key, data in pairs)
