"""Writing MDS: one set of columns over all shards, the same bytes each time, and nothing left of what is given up."""

from dataclasses import replace

import numpy as np
import orjson
import pytest
from mds_files import SAMPLES, plain, read, same, scan, write

from headrace.errors import SourceError, StorageError
from headrace.formats.fields import Field
from headrace.formats.mds import MDS, MdsWriter, encode_mds
from headrace.formats.mds import scan as scan_module
from headrace.formats.mds import writer as writer_module

SAMPLE = {"__key__": "a", "n": 1, "t": "x", "a": np.zeros(2, np.float32), "o": {"x": 1}, "j": b"j"}


def test_the_index_that_is_written_is_that_of_a_scan(tmp_path):
    rows = write(tmp_path / "d", SAMPLES, 500)
    for (path, index, row), written in zip(scan(tmp_path / "d"), rows, strict=True):
        assert (row.samples, row.bytes, row.xxh3_128) == (written.samples, written.bytes, written.xxh3_128)
        assert index.to_file() == path.with_name(path.name + ".idx").read_bytes()
    assert same(read(tmp_path / "d"), plain(SAMPLES))


def test_samples_that_are_scanned_in_parts_give_the_same_index(tmp_path, monkeypatch):
    samples = [sample | {"A": bytes(50 * i)} for i, sample in enumerate(SAMPLES)]  # the key lies behind it
    write(tmp_path / "d", samples)
    [(_, whole, row)] = scan(tmp_path / "d")
    monkeypatch.setattr(scan_module, "_CHUNK_BYTES", 20)
    [(_, in_parts, row_in_parts)] = scan(tmp_path / "d")
    assert in_parts.to_file() == whole.to_file()
    assert [whole.key(i) for i in range(12)] == [sample["__key__"] for sample in SAMPLES]
    assert row_in_parts == row


def test_shards_end_where_the_limit_is_reached(tmp_path):
    rows = write(tmp_path / "d", SAMPLES, 500)
    assert all(row.bytes <= 500 or row.samples == 1 for row in rows)
    writer = MdsWriter(tmp_path / "one.mds", {})
    for sample in SAMPLES:
        encoded = encode_mds(sample)
        expected = writer.size_with(encoded)
        writer.add(encoded)
    assert writer.finish().bytes == expected == (tmp_path / "one.mds").stat().st_size


def test_a_shard_ends_before_its_offsets_do(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_SHARD_BYTES", 600)
    rows = write(tmp_path / "d", SAMPLES, 1 << 62)
    assert len(rows) > 1
    assert all(row.bytes <= 600 for row in rows)
    assert same(read(tmp_path / "d"), plain(SAMPLES))


def test_samples_that_wait_on_the_disk_give_the_same_shard(tmp_path, monkeypatch):
    [in_memory] = write(tmp_path / "memory", SAMPLES)
    monkeypatch.setattr(writer_module, "_MEMORY_BYTES", 100)
    [on_disk] = write(tmp_path / "disk", SAMPLES)
    assert in_memory == on_disk
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [
        "index.json",
        "shard-000000.mds",
        "shard-000000.mds.idx",
    ]


def test_what_is_given_up_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "_MEMORY_BYTES", 1)
    writer = MdsWriter(tmp_path / "shard-000000.mds", {})
    writer.add(encode_mds(SAMPLE))
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.mds.tmp"]
    writer.abandon()
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    writer = MdsWriter(tmp_path / "shard-000000.mds", {})

    def refuse(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._body, "write", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        writer.add(encode_mds(SAMPLE))
    assert writer.num_samples == 0
    writer.abandon()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n": 1.5},
            r"field 'n' is float64, in the samples before it int: a column of MDS has one type and no",
        ),
        ({"n": None}, r"field 'n' is None, in the samples before it int"),
        ({"a": np.zeros(2)}, r"field 'a' is ndarray of float64, in the samples before it ndarray of float32"),
        (
            {"extra": 1},
            r"it has the fields \['a', 'extra', 'j', 'n', 'o', 't'\], the samples before it \['a', 'j',",
        ),
    ],
)
@pytest.mark.parametrize("is_later_shard", [False, True])
def test_a_sample_of_another_kind_is_refused_by_name(tmp_path, change, message, is_later_shard):
    first, other = encode_mds(SAMPLE), encode_mds(SAMPLE | {"__key__": "b/2"} | change)
    writer = MdsWriter(tmp_path / "shard-000000.mds", first.fields if is_later_shard else {})
    if not is_later_shard:
        writer.add(first)
    with pytest.raises(SourceError, match=f"sample b/2: {message}"):
        writer.add(other)
    writer.add(first)
    assert writer.finish().samples == 2 - is_later_shard


def test_shapes_and_objects_may_differ(tmp_path):
    samples = [SAMPLE, SAMPLE | {"__key__": "b", "a": np.ones((3, 1), np.float32), "o": None}]
    samples += [SAMPLE | {"__key__": "c", "o": True}, SAMPLE | {"__key__": "d", "o": [1]}]
    write(tmp_path / "d", samples)
    assert same(read(tmp_path / "d"), plain(samples))


def test_a_pack_that_goes_on_has_the_columns_of_what_is_there(tmp_path):
    """Fields come back from the journal as they were merged: nullable, or of differing shapes."""
    merged = {
        "n": Field("int", "int64"),
        "t": Field("str"),
        "a": Field("array", "float32"),
        "o": Field("json", nullable=True),
        "j": Field("bytes"),
    }
    writer = MdsWriter(tmp_path / "shard-000001.mds", merged)
    writer.add(encode_mds(SAMPLE))
    row = writer.finish()
    [whole] = write(tmp_path / "d", [SAMPLE])
    assert (row.bytes, row.xxh3_128) == (whole.bytes, whole.xxh3_128)


def test_images_measured_while_packing_keep_their_encoding(tmp_path):
    fields = {"image": Field("image"), "jpg": Field("image", image_size=(2, 3)), "x.png": Field("image")}
    writer = MdsWriter(tmp_path / "shard-000001.mds", fields)
    encoded = encode_mds({"__key__": "a", "image": b"0", "jpg": b"1", "x.png": b"2"})
    writer.add(replace(encoded, fields={**encoded.fields, "image": Field("image")}))  # as its source says it is
    writer.finish()
    [(_, index, _)] = scan(tmp_path)
    assert index.columns.pairs == (("__key__", "str"), ("image", "jpeg"), ("jpg", "jpeg"), ("x.png", "png"))


def test_the_index_json_has_the_hash_of_the_manifest(tmp_path):
    rows = write(tmp_path / "d", SAMPLES, 500)
    listed = orjson.loads((tmp_path / "d" / "index.json").read_bytes())
    assert [shard["raw_data"] for shard in listed["shards"]] == [
        {"basename": row.file, "bytes": row.bytes, "hashes": {"xxh3_128": row.xxh3_128}} for row in rows
    ]
    assert [shard["samples"] for shard in listed["shards"]] == [row.samples for row in rows]


def test_a_shard_without_samples_is_whole(tmp_path):
    row = MdsWriter(tmp_path / "shard-000000.mds", encode_mds(SAMPLE).fields).finish()
    assert row.samples == 0
    [(_, index, scanned)] = scan(tmp_path)
    assert (index.num_samples, scanned.xxh3_128) == (0, row.xxh3_128)
    assert MDS.read_index(memoryview(index.to_file()), "idx", row.bytes).num_samples == 0
