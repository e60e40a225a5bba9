"""A dataset in a store, streamed through a cache by loader processes: what was read once is not asked for again."""

import itertools
import os

import numpy as np
import pytest

import headrace as hr
from faulty import FaultyServer
from headrace.errors import HeadraceError

NUM_SAMPLES, BATCH = 240, 20
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A packed dataset of some 12 MB in four shards, as files of a web server."""
    folder = tmp_path_factory.mktemp("packed") / "photos"
    rng = np.random.default_rng(0)
    samples = ({"__key__": f"{i:04d}", "bin": rng.bytes(50_000), "cls": i} for i in range(NUM_SAMPLES))
    hr.pack(samples, folder, shard_size="3MiB")
    return {f"/photos/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=["folder", "ram"])
def cache(request, tmp_path):
    size = (256 << 20) + (os.getpid() << 8) + next(NUMBERS)  # in RAM, a cache that no other test has
    return {"cache": "ram" if request.param == "ram" else tmp_path / "cache", "cache_size": size}


def labels(loader):
    return [label for batch in loader for label in batch["cls"].tolist()]


def asked_bytes(server, suffix):
    total = 0
    for _, path, span in server.requests:
        if path.endswith(suffix) and span is not None:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            total += last + 1 - first
    return total


def test_a_second_epoch_does_not_need_the_store(files, cache):
    with FaultyServer(files) as server:
        ds = hr.open(server.url + "/photos", **cache)
        loader = hr.Loader(hr.Stream(ds, seed=3).decode(), batch_size=BATCH)
        with loader:
            first = labels(loader)
            assert sorted(first) == list(range(NUM_SAMPLES))
            shards = sum(len(data) for name, data in files.items() if name.endswith(".tar"))
            assert asked_bytes(server, ".tar") == shards
            server.shutdown()
            server.server_close()
            second = labels(loader)
        assert sorted(second) == sorted(first) != first != second
        # Nor does another loader, with other processes.
        with hr.Loader(hr.Stream(ds, seed=4).decode(), batch_size=BATCH) as other:
            assert sorted(labels(other)) == sorted(first)
        assert {sample["__key__"] for sample in ds[:]} == {f"{i:04d}" for i in range(NUM_SAMPLES)}


def test_an_opened_dataset_is_given_a_cache_later(files, cache):
    with FaultyServer(files) as server:
        plain = hr.open(server.url + "/photos", fields=["cls"])
        ds = plain.with_cache(**cache)
        assert (plain.is_cached, ds.is_cached) == (False, True)
        assert (ds.schema, ds.fingerprint, ds.manifest) == (plain.schema, plain.fingerprint, plain.manifest)
        first = [bytes(sample["cls"]) for sample in ds[:]]
        server.shutdown()
        server.server_close()
        assert [bytes(sample["cls"]) for sample in ds[:]] == first


def test_ranks_share_what_they_read(files, cache):
    """The samples of a rank are others in the next epoch: what it needs then, another has read."""
    with FaultyServer(files) as server:
        ds = hr.open(server.url + "/photos", **cache)
        stream = hr.Stream(ds, seed=3).decode()
        loaders = [hr.Loader(stream, batch_size=BATCH, rank=rank, world_size=2) for rank in range(2)]
        with loaders[0], loaders[1]:
            first = [set(labels(loader)) for loader in loaders]
            assert first[0] | first[1] == set(range(NUM_SAMPLES))
            shards = sum(len(data) for name, data in files.items() if name.endswith(".tar"))
            assert asked_bytes(server, ".tar") == shards
            server.shutdown()
            server.server_close()
            second = [set(labels(loader)) for loader in loaders]
        assert second[0] | second[1] == set(range(NUM_SAMPLES))
        assert second[0] != first[0]


def test_a_shard_garbled_on_its_way_is_fetched_again_and_does_not_stay(files, cache):
    """The first answer for one shard has a flipped bit; the batches are right all the same, and so is what is kept."""
    name = next(name for name in sorted(files) if name.endswith(".tar"))
    garbled = bytearray(files[name])
    garbled[40_000] ^= 1

    def fault(handler):
        if handler.path == name and handler.span() is not None and handler.span()[0] <= 40_000 < handler.span()[1]:
            server.always = None
            first, end = handler.span()
            return handler.send(206, bytes(garbled[first:end]), promised=(first, end))
        return False

    with FaultyServer(files) as server:
        server.always = fault
        ds = hr.open(server.url + "/photos", **cache)
        with hr.Loader(hr.Stream(ds, seed=3).decode(), batch_size=BATCH) as loader:
            assert sorted(labels(loader)) == list(range(NUM_SAMPLES))
            assert server.always is None
            server.shutdown()
            server.server_close()
            assert sorted(labels(loader)) == list(range(NUM_SAMPLES))


@pytest.fixture
def ordinary(files):
    """The shards without what headrace keeps beside them."""
    return {name: data for name, data in files.items() if name.endswith(".tar")}


def open_ordinary(server, ordinary, **cache):
    return hr.open(f"{server.url}/photos/shard-{{000000..{len(ordinary) - 1:06d}}}.tar", **cache)


@pytest.mark.parametrize("has_versions", [False, True])
def test_the_scan_of_an_ordinary_dataset_fills_the_cache(ordinary, cache, has_versions):
    """Each byte comes once, but for the few that tell the format; none comes again where the server tells versions."""
    with FaultyServer(ordinary) as server:
        if not has_versions:
            server.tag = None
        ds = open_ordinary(server, ordinary, **cache)
        with hr.Loader(hr.Stream(ds).decode(), batch_size=BATCH) as loader:
            assert sorted(labels(loader)) == list(range(NUM_SAMPLES))
        shards, heads = sum(map(len, ordinary.values())), 2048 * len(ordinary)
        assert shards <= asked_bytes(server, ".tar") <= shards + heads
        server.requests.clear()
        again = open_ordinary(server, ordinary, **cache)
        assert again.manifest == ds.manifest
        assert (asked_bytes(server, ".tar") <= heads) == has_versions
        server.shutdown()
        server.server_close()
        assert len(ds[:]) == len(again[:]) == NUM_SAMPLES


def test_shards_written_anew_are_not_taken_for_what_they_were(ordinary, cache):
    with FaultyServer(ordinary) as server:
        assert open_ordinary(server, ordinary, **cache).lookup("0007")["cls"] == b"7"
        name = next(name for name, data in ordinary.items() if b"0007.cls" in data)
        changed = bytearray(ordinary[name])
        changed[changed.index(b"0007.cls") + 512] = ord("8")
        server.files[name], server.tag = bytes(changed), '"2"'
        assert open_ordinary(server, ordinary, **cache).lookup("0007")["cls"] == b"8"


def test_a_header_garbled_on_its_way_does_not_stay(ordinary, cache):
    """The first answer for the first shard has a flipped bit in a header: it is fetched again."""
    name = min(ordinary)
    garbled = bytearray(ordinary[name])
    garbled[600] ^= 1

    def fault(handler):
        if handler.path == name and handler.span() is not None and handler.span()[1] > 1000:
            server.always = None
            return handler.send(206, bytes(garbled[slice(*handler.span())]), promised=handler.span())
        return False

    with FaultyServer(ordinary) as server:
        server.always = fault
        for _ in range(2):
            assert len(open_ordinary(server, ordinary, **cache)) == NUM_SAMPLES
            assert server.always is None


def test_a_shard_damaged_in_the_store_is_an_error_as_without_a_cache(files, cache):
    name = next(name for name in sorted(files) if name.endswith(".tar"))
    damaged = bytearray(files[name])
    damaged[40_000] ^= 1
    with FaultyServer(files | {name: bytes(damaged)}) as server:
        ds = hr.open(server.url + "/photos", **cache)
        with (
            hr.Loader(hr.Stream(ds, seed=3), batch_size=BATCH) as loader,
            pytest.raises(HeadraceError, match="its checksum is"),
        ):
            list(loader)
        with hr.Loader(hr.Stream(ds, seed=3), batch_size=BATCH, on_error="skip", max_skipped=2) as loader:
            for _ in range(2):
                assert sum(len(batch["__key__"]) for batch in loader) == NUM_SAMPLES - 1


def test_a_loader_that_ends_leaves_no_block_half_written(files, tmp_path):
    """Law 9: it ends in the middle of its reading ahead, after one batch."""
    with FaultyServer(files) as server:
        for number in range(12):
            folder = tmp_path / str(number)
            ds = hr.open(server.url + "/photos", cache=folder)
            with hr.Loader(hr.Stream(ds, seed=number), batch_size=2, threads=4) as loader:
                next(iter(loader))
            assert [path.name for path in folder.glob("*/blocks/*/*")]
            assert [path.name for path in folder.glob("*/parts/*")] == []
