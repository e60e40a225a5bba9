"""Samples by their keys: through the index of keys, without it, and with one that is stale or broken."""

import pickle
import warnings

import numpy as np
import pytest

import headrace as hr
from headrace.dataset.lookup import open_keys, save_keys
from headrace.errors import DamagedError, ManifestError
from headrace.formats import key_hash

KEYS = [f"d/{i:04d}" for i in range(3000)]


def make(folder, keys=KEYS, mark=0):
    hr.pack([{"__key__": key, "txt": f"{key} {mark}"} for key in keys], folder, shard_size=500_000, shuffle=False)
    for name in ("headrace.json", "headrace.keys"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*.idx"):
        path.unlink()
    hr.index(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("lookup") / "ds")


@pytest.fixture
def copy(folder, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def check_all(ds, keys=KEYS, mark=0):
    for key in keys[::100]:
        sample = ds.lookup(key)
        assert (sample["__key__"], bytes(sample["txt"])) == (key, f"{key} {mark}".encode())
    with pytest.raises(KeyError, match="no sample has the key 'd/3000'"):
        ds.lookup("d/3000")


def uses_keys(ds):
    return type(ds._lookup).__name__ == "KeysFile"


def test_keys_are_found_by_their_index_after_pickling_too(folder):
    ds = hr.open(folder)
    check_all(ds)
    assert uses_keys(ds)
    check_all(pickle.loads(pickle.dumps(ds)))


def test_no_index_of_a_shard_is_read_but_the_one_that_is_needed(folder, monkeypatch):
    ds = hr.open(folder)
    read = []
    real = type(ds._indexes).read
    monkeypatch.setattr(type(ds._indexes), "read", lambda self, k: read.append(k) or real(self, k))
    ds.lookup("d/0000")
    ds.lookup("d/0001")
    assert len(ds.manifest.shards) > 5
    assert read == [0]


def test_without_an_index_of_keys_all_indexes_are_read(copy):
    (copy / "headrace.keys").unlink()
    ds = hr.open(copy)
    check_all(ds)
    assert not uses_keys(ds)


def test_an_ordinary_dataset_needs_none_and_passes_over_one(copy):
    (copy / "headrace.json").unlink()
    ds = hr.open(copy)
    check_all(ds)
    assert not uses_keys(ds)
    hr.index(copy)
    ds = hr.open(copy)
    check_all(ds)
    assert uses_keys(ds)


def test_a_stale_index_is_not_used_and_is_said(copy, tmp_path):
    other = make(tmp_path / "other", mark=1)
    (copy / "headrace.keys").write_bytes((other / "headrace.keys").read_bytes())
    ds = hr.open(copy)
    with pytest.warns(UserWarning, match=r"headrace\.keys belongs to other data than the manifest .*: delete it"):
        check_all(ds)
    (error,) = ds.verify()
    assert "belongs to other data" in error


def test_renamed_shards_make_it_stale(copy):
    """Of some formats keys are made of the shard's name."""
    path = copy / "headrace.json"
    for end in ("", ".idx"):
        (copy / f"shard-000000.tar{end}").rename(copy / f"renamed.tar{end}")
    path.write_bytes(path.read_bytes().replace(b"shard-000000.tar", b"renamed.tar"))
    with pytest.warns(UserWarning, match="belongs to other data"):
        check_all(hr.open(copy))


def test_a_broken_index_of_keys_is_an_error_that_says_what_to_do(copy):
    path = copy / "headrace.keys"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    ds, raised = hr.open(copy), 0
    for key in KEYS[::20]:
        try:
            assert ds.lookup(key)["__key__"] == key
        except DamagedError as err:
            assert "delete it: keys are then looked up in all indexes" in str(err)  # noqa: PT017
            raised += 1
    assert 0 < raised < len(KEYS[::20])
    (error,) = ds.verify()
    assert "headrace.keys is damaged: the checksum of its page 0 differs" in error
    path.write_bytes(data[:-1])
    with pytest.raises((ManifestError, DamagedError), match=r"headrace\.keys"):
        hr.open(copy).lookup("d/0000")
    (error,) = hr.open(copy).verify()
    assert "headrace.keys" in error


def test_of_equal_keys_in_several_tars_the_first_is_found(tmp_path):
    """Others number the samples of each tar from 0, so that is no fault; within one tar it is."""
    make(tmp_path / "a", KEYS[:5])
    make(tmp_path / "b", KEYS[:5], mark=1)
    (tmp_path / "all").mkdir()
    for number, name in enumerate("ab"):
        (tmp_path / "all" / f"{number}.tar").write_bytes((tmp_path / name / "shard-000000.tar").read_bytes())
    bare = hr.open(tmp_path / "all")
    hr.index(tmp_path / "all")
    indexed = hr.open(tmp_path / "all")
    for ds in (bare, indexed):
        assert bytes(ds.lookup("d/0003")["txt"]) == b"d/0003 0"
        assert ds.verify() == []
    assert (uses_keys(bare), uses_keys(indexed)) == (False, True)


def test_keys_whose_hashes_collide_are_told_apart(copy):
    """Two candidates for one hash, the first of another key."""
    ds = hr.open(copy)
    hashes = ds.piece(0).key_hashes()
    hashes[0] = key_hash(KEYS[7])
    rest = [ds.piece(k).key_hashes() for k in range(1, len(ds.pieces))]
    save_keys(ds._files.home, ds.manifest, [hashes, *rest])
    assert list(open_keys(ds._files.home, ds.manifest).find(KEYS[7])) == [0, 7]
    assert hr.open(copy).lookup(KEYS[7])["__key__"] == KEYS[7]


def test_windows_are_found_by_arithmetic(tmp_path):
    for k in range(3):
        np.arange(k * 1000, k * 1000 + 500, dtype="<u2").tofile(tmp_path / f"part-{k}.uint16.bin")
    hr.index(tmp_path)
    ds = hr.open(tmp_path).windows(100, 50)
    for i in range(len(ds)):
        key = ds[i]["__key__"]
        assert ds.lookup(key)["tokens"].tolist() == ds[i]["tokens"].tolist()
    for key in ("part-0.uint16:7", "part-0.uint16:450", "part-0.uint16:-50", "part-0.uint16", "x:0", "part-0.uint16:٣"):
        with pytest.raises(KeyError):
            ds.lookup(key)


def test_nothing_is_warned_of_where_all_is_well(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_all(hr.open(folder))
    assert hr.open(folder).verify() == []
