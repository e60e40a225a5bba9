"""How MDS is found: by `index.json`, which may be missing, of another kind, or lie."""

import orjson
import pytest
from mds_files import SAMPLES, LocalListing, listed, plain, put, read, same, scan, shard, write

from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError
from headrace.formats.format import ScanOptions
from headrace.formats.mds import find_mds


def test_shards_are_read_without_their_index_json(tmp_path):
    assert [sample["n"] for sample in read(put(tmp_path / "d", shard()))] == [
        int.from_bytes(b"12345678", "little"),
        int.from_bytes(b"abcdefgh", "little"),
    ]
    rows = write(tmp_path / "e", SAMPLES, 500)
    (tmp_path / "e" / "index.json").unlink()
    assert same(read(tmp_path / "e"), plain(SAMPLES))
    assert len(rows) > 3
    assert same(read(tmp_path / "e", names=[rows[0].file]), plain(SAMPLES)[: rows[0].samples])


def test_single_shards_are_checked_by_the_index_json_beside_them(tmp_path):
    rows = write(tmp_path / "d", SAMPLES, 500)
    assert same(read(tmp_path / "d", names=[rows[0].file]), plain(SAMPLES)[: rows[0].samples])
    data = bytearray((tmp_path / "d" / rows[0].file).read_bytes())
    data[-1] ^= 1
    (tmp_path / "d" / rows[0].file).write_bytes(data)
    with pytest.raises(DamagedError, match="its xxh3_128 is"):
        read(tmp_path / "d", names=[rows[0].file])


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"version": 3}, DatasetError, r"shards\[0\] is of version 3 of MDS: this release reads version 2"),
        ({"samples": -1}, ManifestError, r"shards\[0\].samples must be a whole number"),
        ({"samples": 3}, DamagedError, "it has 2 samples, index.json says 3"),
        ({"column_names": ["m"]}, DamagedError, "it says other columns than index.json"),
        ({"column_encodings": ["float64"]}, DamagedError, "it says other columns than index.json"),
        ({"column_encodings": []}, ManifestError, "must be as many as the 1 column_names"),
        ({"column_names": "n"}, ManifestError, "column_names must be an array"),
        ({"column_names": None}, ManifestError, "column_names must be there"),
        ({"raw_data": {"basename": "../x.mds", "bytes": 1, "hashes": {}}}, ManifestError, "must be the name of a file"),
        (
            {"raw_data": {"basename": "/etc/x.mds", "bytes": 1, "hashes": {}}},
            ManifestError,
            "must be the name of a file",
        ),
        ({"raw_data": {"basename": "a.mds", "bytes": 2**32, "hashes": {}}}, ManifestError, "at most 4,294,967,295"),
        ({"raw_data": {"basename": "a.mds", "bytes": 9, "hashes": {}}}, DamagedError, r"a.mds is missing"),
        ({"raw_data": {"basename": "shard.00000.mds", "bytes": 9, "hashes": {}}}, DamagedError, "has bytes too many"),
        ({"raw_data": None}, ManifestError, "raw_data must be there"),
        ({"compression": "lz9", "zip_data": {"basename": "z", "bytes": 9, "hashes": {}}}, None, ""),
    ],
)
def test_an_index_json_that_lies_is_refused(tmp_path, changes, error, reason):
    data = shard()
    put(tmp_path / "d", data, listed(data, **changes))
    if error is None:
        assert len(read(tmp_path / "d")) == 2  # the plain shard is there, so nothing is unpacked
        return
    with pytest.raises(error, match=reason):
        scan(tmp_path / "d")


def test_a_shard_that_is_listed_twice_is_refused(tmp_path):
    row = orjson.loads(listed(shard()))["shards"][0]
    index = orjson.dumps({"version": 2, "shards": [row, row]})
    with pytest.raises(ManifestError, match=r"shards must name every shard once"):
        scan(put(tmp_path / "d", shard(), index))


def test_hashes_that_cannot_be_checked_are_refused_by_name(tmp_path):
    data = shard()
    raw = {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {"crc7": "00"}}
    with pytest.raises(DatasetError, match=r"has the hash 'crc7' in its index.json, which cannot be checked here"):
        scan(put(tmp_path / "d", data, listed(data, raw_data=raw)))


def test_a_dtype_is_refused(tmp_path):
    with pytest.raises(OptionError, match="dtype is for token files"):
        scan(put(tmp_path / "d", shard()), dtype="uint16")


@pytest.mark.parametrize(
    "content",
    [
        orjson.dumps({"chunks": [{"filename": "chunk-0-0.bin"}], "config": {}}),
        orjson.dumps({"version": 2, "shards": [{"format": "csv"}]}),
        orjson.dumps({"version": 2, "shards": []}),
        b"[1, 2]",
        b"no json at all",
    ],
)
def test_an_index_json_of_another_kind_is_none_of_ours(tmp_path, content):
    put(tmp_path / "d", content, name="index.json")
    put(tmp_path / "d", b"x" * 100, name="chunk-0-0.bin")
    assert find_mds(LocalListing(tmp_path / "d"), ScanOptions()) is None


def test_folders_that_are_not_mds_are_not_taken_for_it(tmp_path):
    put(tmp_path / "d", b"plain text, by the name of a shard", name="a.mds")
    put(tmp_path / "d", b"", name="b.mds")
    put(tmp_path / "d", b"x", name="c.tar")
    assert find_mds(LocalListing(tmp_path / "d"), ScanOptions()) is None
    (tmp_path / "d" / "index.json").write_bytes(b"{")
    with pytest.raises(ManifestError, match=r"index.json is not valid JSON"):
        find_mds(LocalListing(tmp_path / "d"), ScanOptions())
