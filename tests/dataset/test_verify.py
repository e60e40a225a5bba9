"""Verification finds every damage there is, and names shard and sample."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A tar dataset and a token dataset of a few shards each."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    hr.pack(({"bin": rng.bytes(900), "cls": i} for i in range(20)), folder / "tar", shard_size=15_000)
    documents = ({"tokens": rng.integers(0, 9999, 17_000).astype(np.uint16)} for _ in range(9))
    hr.pack(documents, folder / "tokens", format="tokens", shard_size=120_000)
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path, at, change=1):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= change
    path.write_bytes(data)


@pytest.mark.parametrize("format", ["tar", "tokens"])
def test_a_whole_dataset_has_no_errors(packed, format):
    counted = []
    assert hr.open(packed / format).verify(lambda n: counted.append(n)) == []
    assert sum(counted) == len(hr.open(packed / format))


@given(st.sampled_from(["tar", "tokens"]), st.integers(0, 2), st.integers(0, 2**40), st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_found_and_named(packed, tmp_path_factory, format, k, at, change):
    folder = tmp_path_factory.mktemp("flip") / "copy"
    shutil.copytree(packed / format, folder)
    ds = hr.open(folder)
    path = folder / ds.shard_name(k)
    at %= path.stat().st_size
    flip(path, at, change)
    errors = ds.verify()
    assert all(ds.shard_name(k) in error for error in errors)
    assert any("its checksum is" in error and "sample" not in error for error in errors)
    index = ds.piece(k)
    extents = [index.extent(i, i + 1) for i in range(index.num_samples)]
    touched = {index.key(i) for i, (offset, length) in enumerate(extents) if offset <= at < offset + length}
    named = {error.split("sample ")[1].split()[0] for error in errors if "sample " in error}
    assert named <= touched
    assert bool(named) == bool(touched)


@given(st.sampled_from(["tar", "tokens"]), st.integers(0, 2**40))
def test_a_shard_cut_anywhere_is_found(packed, tmp_path_factory, format, length):
    folder = tmp_path_factory.mktemp("cut") / "copy"
    shutil.copytree(packed / format, folder)
    ds = hr.open(folder)
    path = folder / ds.shard_name(1)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: length % size])
    errors = ds.verify()
    assert f"is cut short: {size:,} bytes expected, {length % size:,} found; restore it" in errors[0]
    index = ds.piece(1)
    lost = [i for i in range(index.num_samples) if sum(index.extent(i, i + 1)) > length % size]
    assert all(any(index.key(i) in error for error in errors) for i in lost)


@pytest.mark.parametrize("format", ["tar", "tokens"])
def test_everything_that_is_wrong_is_listed(copy, format):
    folder = copy / format
    ds = hr.open(folder)
    paths = [folder / ds.shard_name(k) for k in range(3)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes() + b"more")
    flip(folder / (paths[2].name + ".idx"), 500)
    errors = ds.verify()
    assert len(errors) == 4
    assert "shard-000000" in errors[0]
    assert "is missing" in errors[0]
    assert "has bytes too many" in errors[1]
    assert "its checksum is" in errors[2]
    assert "the index" in errors[3]
    assert "is damaged" in errors[3]


def test_swapped_shards_are_found(copy):
    ds = hr.open(copy / "tar")
    first, second = (copy / "tar" / ds.shard_name(k) for k in (0, 1))
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    errors = ds.verify()
    assert any("shard-000000.tar is damaged" in error for error in errors)
    assert any("shard-000001.tar is damaged" in error for error in errors)


def test_swapped_indexes_are_found(copy):
    ds = hr.open(copy / "tar")
    first, second = (copy / "tar" / (ds.shard_name(k) + ".idx") for k in (0, 1))
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    assert sum("the index" in error for error in ds.verify()) == 2


def test_a_missing_index_is_found(copy):
    ds = hr.open(copy / "tar")
    (copy / "tar" / (ds.shard_name(0) + ".idx")).unlink()
    (error,) = ds.verify()
    assert "shard-000000.tar.idx is missing" in error


def test_of_many_damaged_samples_a_hundred_are_named(tmp_path):
    hr.pack([{"txt": str(i)} for i in range(150)], tmp_path / "d")
    ds = hr.open(tmp_path / "d")
    path = tmp_path / "d" / "shard-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    errors = ds.verify()
    assert len(errors) == 102
    assert "50 more samples are damaged" in errors[-1]


def test_an_ordinary_dataset_that_changed_since_it_was_opened_is_found(copy):
    for path in (copy / "tar").iterdir():
        if path.suffix in (".idx", ".json"):
            path.unlink()
    ds = hr.open(copy / "tar")
    flip(copy / "tar" / "shard-000001.tar", 700)
    assert any("shard-000001.tar: sample" in error for error in ds.verify())


def test_a_shard_that_the_manifest_does_not_name_is_said(copy):
    folder = copy / "tar"
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000099.tar")
    assert hr.open(folder).verify() == [
        f"shard-000099.tar is not in the manifest of {folder}: move it away, or pack again"
    ]


def test_what_lies_beside_for_the_formats_own_readers_is_checked(tmp_path):
    hr.pack(({"x": i} for i in range(9)), tmp_path, format="mds")
    assert hr.open(tmp_path).verify() == []
    flip(tmp_path / "index.json", 40)
    (error,) = hr.open(tmp_path).verify()
    assert error.startswith(f"{tmp_path / 'index.json'} is not what was written, and other readers go by it")
    (tmp_path / "index.json").unlink()
    (error,) = hr.open(tmp_path).verify()
    assert error.startswith(f"{tmp_path / 'index.json'} is missing")


def test_what_another_tool_keeps_beside_is_not_judged(tmp_path):
    hr.pack(({"x": i} for i in range(9)), tmp_path, format="mds")
    for ours in [*tmp_path.glob("*.idx"), *tmp_path.glob("headrace.*")]:
        ours.unlink()
    hr.index(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    assert hr.open(tmp_path).verify() == []
