"""Large samples that nothing is done to go from the disk into batches as they are; what comes is what else would."""

import os
import shutil

import pytest

import headrace as hr
from headrace.errors import DamagedError, TransformError
from headrace.load.pages import PagesAhead
from headrace.load.plan import planned_runs
from waiting import wait_for

NUM_SAMPLES = 90
SAMPLE_BYTES = 20_000


def samples():
    for i in range(NUM_SAMPLES):
        yield {"__key__": f"s{i:03d}", "bin": os.urandom(SAMPLE_BYTES + i), "cls": i % 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("direct") / "packed"
    hr.pack(samples(), target, shard_size="256KiB", shuffle=False)
    return target


@pytest.fixture(scope="module")
def dataset(folder):
    return hr.open(folder)


def unchanged(sample):
    return sample


def contents(loader):
    """Every batch, as plain values."""
    return [
        {name: [bytes(v) if isinstance(v, memoryview) else v for v in values] for name, values in batch.items()}
        for batch in loader
    ]


def is_direct(loader):
    """Of a loader that has given out an epoch."""
    return loader.meters()["stages"]["transform"]["items"] == 0


@pytest.mark.parametrize("fields", [None, ["bin"]])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_those_of_a_stream_that_does_something(folder, processes, rank, drop_last, fields):
    stream = hr.Stream(hr.open(folder, fields=fields), seed=3, epochs=2)
    options = {"global_batch_size": 8, "rank": rank, "world_size": 2, "drop_last": drop_last, "threads": 3}
    with (
        hr.Loader(stream, processes=processes, **options) as direct,
        hr.Loader(stream.map(unchanged), **options) as usual,
    ):
        assert contents(direct) == contents(usual)
        assert is_direct(direct)
        assert not is_direct(usual)
        stages = direct.meters()["stages"]
        assert stages["read"]["threads"] == stages["verify"]["threads"] == (3 if processes == 1 else processes)
        assert stages["read"]["items"] >= 2 * (80 if drop_last else 90) // 2


def test_it_goes_on_from_a_state(dataset):
    whole = contents(hr.Loader(hr.Stream(dataset, seed=1), batch_size=7))
    with hr.Loader(hr.Stream(dataset, seed=1), batch_size=7) as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state = loader.state_dict()
    with hr.Loader(hr.Stream(dataset, seed=1), batch_size=7) as loader:
        loader.load_state_dict(state)
        assert contents(loader) == whole[5:]


def copied(folder, target):
    shutil.copytree(folder, target)
    return sorted(target.glob("*.tar"))


def test_a_damaged_sample_is_named_or_skipped(folder, tmp_path):
    shard = copied(folder, tmp_path / "copy")[2]
    with shard.open("r+b") as file:
        file.seek(30_000)
        byte = file.read(1)
        file.seek(30_000)
        file.write(bytes([byte[0] ^ 1]))
    dataset = hr.open(tmp_path / "copy")
    with pytest.raises(DamagedError, match=rf"sample 's\d+' in {shard.name}: its checksum is"):
        list(hr.Loader(hr.Stream(dataset), batch_size=5))
    with hr.Loader(hr.Stream(dataset), batch_size=5, on_error="skip") as loader:
        keys = [key for batch in loader for key in batch["__key__"]]
        assert is_direct(loader)
        assert len(keys) == NUM_SAMPLES - 1
        assert [skipped.key in keys for skipped in loader.skipped] == [False]


@pytest.mark.parametrize("harm", ["missing", "cut short"])
def test_a_shard_that_is_not_all_there_takes_only_its_own_samples_along(folder, tmp_path, harm):
    shard = copied(folder, tmp_path / "copy")[1]
    if harm == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 100_000)
    stream = hr.Stream(hr.open(tmp_path / "copy"))
    with pytest.raises(DamagedError, match=f"{shard.name}.*(missing|cut short)"):
        list(hr.Loader(stream, batch_size=5))
    with (
        hr.Loader(stream, batch_size=5, on_error="skip") as direct,
        hr.Loader(stream.map(unchanged), batch_size=5, on_error="skip") as usual,
    ):
        found = [key for batch in direct for key in batch["__key__"]]
        expected = [key for batch in usual for key in batch["__key__"]]
        assert is_direct(direct)
        assert set(expected) <= set(found)  # of a run that is cut, the samples before the cut come here
        assert len(found) + len(direct.skipped) == NUM_SAMPLES


@pytest.mark.parametrize("harm", ["missing", "damaged"])
@pytest.mark.parametrize("does_something", [False, True])
def test_a_loader_goes_on_once_the_shard_is_restored(folder, tmp_path, harm, does_something):
    """The same loader and its process, in the next epoch."""
    shard = copied(folder, tmp_path / "copy")[1]
    whole = shard.read_bytes()
    shard.unlink()
    if harm == "damaged":
        shard.write_bytes(whole[:30_000] + bytes(20_000) + whole[50_000:])
    stream = hr.Stream(hr.open(tmp_path / "copy"), seed=4)
    stream = stream.map(unchanged) if does_something else stream
    with hr.Loader(stream, batch_size=5) as loader:
        with pytest.raises(DamagedError, match=shard.name):
            list(loader)
        restored = shard.with_suffix(".new")
        restored.write_bytes(whole)
        restored.replace(shard)
        assert contents(loader) == contents(hr.Loader(stream.from_epoch(1), batch_size=5))


def test_a_shard_of_other_fields_is_read_as_any_other(tmp_path):
    """A sample that lacks a field is an error of its own; its neighbours come."""
    uneven = list(samples())
    del uneven[50]["cls"]
    hr.pack(uneven, tmp_path / "packed", shard_size="256KiB", shuffle=False)
    stream = hr.Stream(hr.open(tmp_path / "packed"))
    with pytest.raises(TransformError, match="s050"):
        list(hr.Loader(stream, batch_size=5))
    with (
        hr.Loader(stream, batch_size=5, on_error="skip") as direct,
        hr.Loader(stream.map(unchanged), batch_size=5, on_error="skip") as usual,
    ):
        assert contents(direct) == contents(usual)
        assert [skipped.key for skipped in direct.skipped] == ["s050"]


def test_the_page_cache_is_asked_for_a_bounded_way_ahead(dataset):
    job = hr.Loader(hr.Stream(dataset, shuffle=False), batch_size=5)._job(2)
    memory = 100_000
    pages = PagesAhead(dataset, planned_runs(job, 0, 0), memory)
    try:
        wait_for(lambda: pages._held_bytes >= memory, "the bound is reached")
        largest = 2 * job.order.block_bytes + 2 * SAMPLE_BYTES
        assert pages._held_bytes <= memory + largest
        last = max(done for done, _ in pages._ends)
        pages.release(last)
        wait_for(lambda: pages._ends and min(pages._ends)[0] > last, "what comes behind is asked for")
    finally:
        pages.stop()
