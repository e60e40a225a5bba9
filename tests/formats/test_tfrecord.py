"""TFRecord shards: both checksums, plain and packed; Examples and other records; values, keys, and damage."""

import builtins
import gzip
import importlib.util
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_reading import (
    check_never_silent,
    check_reading,
    find,
    flipped,
    reread,
    samples_of,
    scan,
    scan_or_error,
)

import headrace as hr
from headrace.dataset.listing import FolderListing
from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError, SourceError
from headrace.formats import ScanOptions
from headrace.formats.fields import Field
from headrace.formats.tfrecord import TFRECORD, TFRecordWriter, encode_tfrecord
from headrace.formats.tfrecord.framing import _crc32c, framed, header_length
from headrace.storage import locate

google_crc32c = pytest.importorskip("google_crc32c")

PACKINGS = {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}


def masked(data):
    """As TensorFlow's core/lib/hash/crc32c.h has it."""
    checksum = google_crc32c.value(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) % 2**32


def record(data):
    """A record with its frame, by the format's own words."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def example(features):
    messages = pytest.importorskip("example_messages", reason="needs the protobuf package", exc_type=ImportError)
    return messages.make_example(features).SerializeToString()


def write(path, content):
    path.write_bytes(content)
    return path


def pack(path, samples, fields=None):
    """A shard of samples; returns its index as read back from its file, and its bytes."""
    writer = TFRecordWriter(path, fields or {})
    for sample in samples:
        writer.add(encode_tfrecord(sample))
    row = writer.finish()
    content = path.read_bytes()
    assert row.bytes == len(content)
    return TFRECORD.read_index(memoryview(path.with_name(path.name + ".idx").read_bytes()), "idx", row.bytes), content


EXAMPLES = [example({"image": [b"\xff\xd8\xff" + bytes([i])], "label": [i], "w": [i / 2]}) for i in range(3)]
CONTENT = b"".join(map(record, EXAMPLES))


def test_frames_are_as_the_format_says():
    """An event file of TensorFlow begins with a record of 24 bytes, and so with these twelve."""
    assert framed(b"abc") == record(b"abc")
    assert framed(bytes(24))[:12] == bytes.fromhex("1800000000000000a37f4b22")
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the check value of crc32c


@given(st.integers(0, 2**63 - 1))
def test_a_header_is_recognised_without_the_package(length):
    data = struct.pack("<Q", length)
    header = data + struct.pack("<I", masked(data))
    assert header_length(header) == length
    assert header_length(header[:8] + bytes(4)) is None
    assert header_length(header[:11]) is None


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_ordinary_file_is_read_plain_or_packed(tmp_path, packing):
    content = PACKINGS[packing](CONTENT)
    index, row = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert check_reading(TFRECORD, index, content) == [
        {"__key__": f"a:{i}", "image": b"\xff\xd8\xff" + bytes([i]), "label": i, "w": i / 2} for i in range(3)
    ]
    assert index.fields == {
        "image": Field("image"),
        "label": Field("int", "int64"),
        "w": Field("float", "float32"),
    }
    assert row.unpacked_bytes == (0 if packing == "plain" else len(CONTENT))
    assert index.is_ranged == (packing == "plain")


def test_a_plain_file_may_begin_with_any_length(tmp_path):
    """559,903 bytes are 1f 8b 08 in front, which is how gzip begins."""
    content = record(bytes(559_903))
    assert content.startswith(b"\x1f\x8b\x08")
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert samples_of(index, content) == [{"__key__": "a:0", "record": bytes(559_903)}]


def test_keys_are_those_of_the_records_where_they_have_some(tmp_path):
    keys = [{"__key__": [b"one"], "x": [1]}, {"x": [2]}, {"__key__": [b"\xff"], "x": [3]}, {"__key__": [4], "x": [4]}]
    content = b"".join(record(example(features)) for features in keys)
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert [index.key(i) for i in range(4)] == ["one", "a:1", "a:2", "a:3"]
    assert index.fields == {"x": Field("int", "int64")}


@pytest.mark.parametrize(
    ("lists", "field", "values"),
    [
        ([[1], [2]], Field("int", "int64"), [1, 2]),
        ([[1], [2, 3]], Field("array", "int64"), [("int64", (1,), [1]), ("int64", (2,), [2, 3])]),
        ([[1, 2], [3, 4]], Field("array", "int64", (2,)), [("int64", (2,), [1, 2]), ("int64", (2,), [3, 4])]),
        ([[0.5], [1.5, 2.5]], Field("array", "float32"), [("float32", (1,), [0.5]), ("float32", (2,), [1.5, 2.5])]),
        ([[b"a"], [b"b", b"c"]], Field("json", "bytes"), [[b"a"], [b"b", b"c"]]),
        ([[1], None], Field("int", "int64", nullable=True), [1, None]),
        ([[1, 2], None], Field("array", "int64", (2,), nullable=True), [("int64", (2,), [1, 2]), ("int64", (0,), [])]),
        ([None, None], Field("null", nullable=True), [None, None]),
        ([[1], [0.5]], Field("json", "mixed"), [1, 0.5]),
        ([[1], [b"a"]], Field("json", "mixed"), [1, b"a"]),
    ],
)
def test_a_feature_is_one_value_only_if_it_is_in_every_record(tmp_path, lists, field, values):
    content = b"".join(record(example({"x": one})) for one in lists)
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert index.fields == {"x": field}
    assert [one["x"] for one in check_reading(TFRECORD, index, content)] == values


def test_values_are_what_the_whole_dataset_has(tmp_path):
    """One number here, lists in another shard: arrays in all of them. What does not go together stays as it is."""
    content = b"".join(record(example({"x": [i], "t": [b"a"]})) for i in range(2))
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    index.read_as({"x": Field("array", "int64"), "t": Field("int", "int64")})
    assert [one["x"] for one in samples_of(index, content)] == [("int64", (1,), [0]), ("int64", (1,), [1])]
    assert samples_of(index, content)[0]["t"] == b"a"
    kept = reread(TFRECORD, index, len(content)).read_as({"x": Field("array", "object")})
    assert samples_of(kept, content)[0]["x"] == 0


def test_records_that_are_no_examples_are_given_as_they_are(tmp_path):
    content = b"".join(map(record, (b"\x08\x01raw", b"\xff\xd8\xff\xe0", b"text")))
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert index.fields == {"record": Field("bytes")}
    assert [one["record"] for one in check_reading(TFRECORD, index, content)] == [
        b"\x08\x01raw",
        b"\xff\xd8\xff\xe0",
        b"text",
    ]


def test_a_record_that_is_none_among_examples_is_damaged(tmp_path):
    content = record(EXAMPLES[0]) + record(b"\xff\xff") + record(EXAMPLES[2])
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    for one in (index, reread(TFRECORD, index, len(content))):
        assert one.open(0, 3, memoryview(content)).damage == {1: "it is no tf.train.Example: a number without an end"}
    assert [one and one["label"] for one in samples_of(index, content)] == [0, None, 2]


def test_examples_and_as_many_other_records_are_refused(tmp_path):
    content = record(EXAMPLES[0]) + record(b"\xff\xff") * 1001
    with pytest.raises(DamagedError, match="more than 1,000 broken records"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", content))


def test_a_wrong_checksum_of_data_damages_that_record_alone(tmp_path):
    at = len(record(EXAMPLES[0])) + 20
    content = flipped(CONTENT, at, 1)
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content))
    assert index.open(0, 3, memoryview(content)).damage == {1: "its data differs from its crc32c"}
    assert [one and one["label"] for one in samples_of(index, content)] == [0, None, 2]


def test_a_wrong_length_is_an_error_as_nothing_behind_it_can_be_found(tmp_path):
    content = flipped(CONTENT, len(record(EXAMPLES[0])) + 3, 1)
    with pytest.raises(DamagedError, match="of the record at byte 68, its length differs from the checksum of it"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", content))


def dali(content):
    """What tfrecord2idx writes: offset and length of each record."""
    lines, at = [], 0
    while at < len(content):
        length = struct.unpack_from("<Q", content, at)[0] + 16
        lines.append(f"{at} {length}\n")
        at += length
    return "".join(lines).encode()


def test_with_the_index_of_another_tool_only_the_record_with_the_wrong_length_is_lost(tmp_path):
    content = flipped(CONTENT, len(record(EXAMPLES[0])) + 3, 1)
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", content), {"idx": dali(CONTENT)})
    assert index.open(0, 3, memoryview(content)).damage == {1: "its length differs from the checksum of it"}
    assert [one and one["label"] for one in samples_of(index, content)] == [0, None, 2]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"0 10\n", "line 1 must be about the record at byte 0"),
        (b"0\n", "line 1 must be an offset and a length"),
        (b"zero one\n", "line 1 must be an offset and a length"),
        (dali(CONTENT[: len(record(EXAMPLES[0]))]), "it ends at byte 68 of 204"),
        (dali(CONTENT) + b"999 20\n", "line 4 must be about the record at byte 204"),
    ],
)
def test_an_index_of_another_tool_that_is_stale_is_refused(tmp_path, text, what):
    with pytest.raises(DatasetError, match=rf"a.tfrecord.idx is not the index of its TFRecord file: {what}; delete it"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", CONTENT), {"idx": text})


def test_an_index_of_our_own_by_that_name_is_passed_over(tmp_path):
    index, _ = scan(TFRECORD, write(tmp_path / "a.tfrecord", CONTENT))
    again, _ = scan(TFRECORD, tmp_path / "a.tfrecord", {"idx": index.to_file()})
    assert again.to_file() == index.to_file()


def test_the_index_of_another_tool_is_found_beside_its_file(tmp_path):
    write(tmp_path / "a.tfrecord", CONTENT)
    write(tmp_path / "b.tfrecord", CONTENT)
    write(tmp_path / "a.tfrecord.idx", dali(CONTENT))
    found = TFRECORD.find(FolderListing(locate(tmp_path)), ScanOptions())
    assert [dict(hint) for hint in found.hints] == [{"idx": dali(CONTENT)}, {"idx": None}]


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(list(PACKINGS)))
def test_a_flipped_byte_is_never_silent_with_or_without_an_index(tmp_path_factory, at, change, packing):
    """The checksums notice every one; gzip's flags and its name are no part of the content."""
    path = tmp_path_factory.mktemp("flip") / "a.tfrecord"
    content = gzip.compress(CONTENT, mtime=0) if packing == "gzip" else PACKINGS[packing](CONTENT)
    index, _ = scan(TFRECORD, write(path, content))
    samples = samples_of(index, content)
    check_never_silent(index, samples, flipped(content, at, change))
    again = scan_or_error(TFRECORD, path, flipped(content, at, change))
    assert again is None or all(one is None or one == right for one, right in zip(again, samples, strict=True))
    assert packing == "gzip" or again != samples


@given(st.integers(0, 10_000), st.sampled_from(list(PACKINGS)))
def test_a_file_cut_anywhere_is_never_silent(tmp_path_factory, length, packing):
    """But for one cut between two records, which only an index notices."""
    path = tmp_path_factory.mktemp("cut") / "a.tfrecord"
    content = PACKINGS[packing](CONTENT)
    index, _ = scan(TFRECORD, write(path, content))
    samples = samples_of(index, content)
    cut = content[: length % len(content)]
    check_never_silent(index, samples, cut)
    again = scan_or_error(TFRECORD, path, cut)
    starts = [0, *np.cumsum([len(record(one)) for one in EXAMPLES]).tolist()]
    if packing == "plain" and len(cut) in starts:
        assert again == samples[: starts.index(len(cut))]
    else:
        assert again is None or not cut


def test_junk_behind_the_end_is_an_error(tmp_path):
    with pytest.raises(DamagedError, match="differs from the checksum of it"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", CONTENT + b"some junk behind the end"))
    with pytest.raises(DamagedError, match="does not unpack"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", gzip.compress(CONTENT) + b"junk"))


def test_a_record_may_be_as_long_as_a_sample_and_no_longer(tmp_path):
    path = write(tmp_path / "a.tfrecord", record(bytes(5000)))
    assert scan(TFRECORD, path, max_sample_bytes=5000)[0].num_samples == 1
    with pytest.raises(DamagedError, match="longer than max_sample_bytes=4,999"):
        scan(TFRECORD, path, max_sample_bytes=4999)


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    data = struct.pack("<Q", 1 << 33)
    content = gzip.compress(data + struct.pack("<I", masked(data)) + bytes(32 << 20))
    with pytest.raises(DamagedError, match="longer than max_sample_bytes"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", content))


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_crc32c(name, *rest, **more):
        if name == "google_crc32c":
            raise ImportError(name)
        return real(name, *rest, **more)

    _crc32c.cache_clear()
    monkeypatch.delitem(sys.modules, "google_crc32c")
    monkeypatch.setattr(builtins, "__import__", no_crc32c)
    with pytest.raises(OptionError, match=r"google-crc32c: pip install 'headrace\[tfrecord\]'"):
        scan(TFRECORD, write(tmp_path / "a.tfrecord", CONTENT))
    assert find(TFRECORD, tmp_path) == ["a.tfrecord"]


def test_files_are_found_by_content(tmp_path):
    write(tmp_path / "train-00000-of-00003", CONTENT)
    write(tmp_path / "train-00001-of-00003", b"\0" + CONTENT[1:])  # whose first length is damaged
    write(tmp_path / "train-00002-of-00003", b"")
    write(tmp_path / "b.tfrecord.gz", gzip.compress(CONTENT))
    write(tmp_path / "c.zlib", zlib.compress(CONTENT))
    write(tmp_path / "notes.txt", b"about")
    assert find(TFRECORD, tmp_path) == [
        "b.tfrecord.gz",
        "c.zlib",
        "train-00000-of-00003",
        "train-00001-of-00003",
        "train-00002-of-00003",
    ]


def test_what_is_something_else_is_not_taken_for_tfrecords(tmp_path):
    write(tmp_path / "a.bin", bytes(100))
    write(tmp_path / "a.gz", gzip.compress(b"text"))
    assert find(TFRECORD, tmp_path) is None


ROWS = np.arange(6, dtype=np.uint8).reshape(2, 3)
VALUES = {
    "bytes": (b"\0\xff", Field("bytes"), b"\0\xff"),
    "jpg": (b"\xff\xd8", Field("image"), b"\xff\xd8"),
    "view": (memoryview(b"abcd")[::2], Field("bytes"), b"ac"),
    "str": ("grün", Field("str"), "grün"),
    "empty": ("", Field("str"), ""),
    "bool": (True, Field("bool", "bool"), True),
    "int": (-(2**63), Field("int", "int64"), -(2**63)),
    "np.int": (np.int16(7), Field("int", "int64"), 7),
    "float": (0.5, Field("float", "float32"), 0.5),
    "rounded": (0.1, Field("float", "float32"), float(np.float32(0.1))),
    "none": (None, Field("null", nullable=True), None),
    "ints": ([1, 2], Field("array", "int64", (2,)), ("int64", (2,), [1, 2])),
    "one": ([7], Field("array", "int64", (1,)), ("int64", (1,), [7])),
    "floats": ([1, 2.5], Field("array", "float32", (2,)), ("float32", (2,), [1.0, 2.5])),
    "bools": ((True, False), Field("array", "bool", (2,)), ("bool", (2,), [True, False])),
    "strs": (["a", "ö"], Field("json", "str"), ["a", "ö"]),
    "one str": (["a"], Field("json", "str"), ["a"]),
    "blobs": ([b"a", b""], Field("json", "bytes"), [b"a", b""]),
    "no list": ([], Field("json", "empty"), []),
    "dict": ({"a": [1, None]}, Field("json"), {"a": [1, None]}),
    "nested": ([[1], [2, 3]], Field("json"), [[1], [2, 3]]),
    "uint8": (ROWS, Field("array", "uint8", (2, 3)), ("uint8", (2, 3), [[0, 1, 2], [3, 4, 5]])),
    "half": (np.array([0.5, -2], np.float16), Field("array", "float16", (2,)), ("float16", (2,), [0.5, -2.0])),
    "double": (np.array([0.5]), Field("array", "float32", (1,)), ("float32", (1,), [0.5])),
    "big-endian": (np.array([1, 2], ">i4"), Field("array", "int32", (2,)), ("int32", (2,), [1, 2])),
    "scalar": (np.array(5, np.int8), Field("array", "int8", ()), ("int8", (), 5)),
    "no elements": (np.zeros((0, 3), np.int32), Field("array", "int32", (0, 3)), ("int32", (0, 3), [])),
    "uint64": (np.array([2**63 - 1], np.uint64), Field("array", "uint64", (1,)), ("uint64", (1,), [2**63 - 1])),
    "many": (np.arange(100, dtype=np.uint16), Field("array", "uint16", (100,)), ("uint16", (100,), list(range(100)))),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_the_table_says(tmp_path, name):
    value, field, back = VALUES[name]
    index, content = pack(tmp_path / "s.tfrecord", [{"__key__": "d/ö", name: value}])
    assert index.fields == {name: field}
    assert check_reading(TFRECORD, index, content) == [{"__key__": "d/ö", name: back}]


def test_all_values_together_are_an_example_that_protobuf_reads(tmp_path):
    messages = pytest.importorskip("example_messages", reason="needs the protobuf package", exc_type=ImportError)
    sample = {name: value for name, (value, _, _) in VALUES.items()}
    index, content = pack(tmp_path / "s.tfrecord", [{"__key__": "k", **sample}])
    parsed = messages.lists_of(messages.Example.FromString(content[12:-4]))
    assert parsed["__key__"] == ("bytes_list", [b"k"])
    assert parsed["str"] == ("bytes_list", ["grün".encode()])
    assert parsed["uint8"] == ("int64_list", [0, 1, 2, 3, 4, 5])
    assert parsed["uint8/shape"] == ("int64_list", [2, 3])
    assert parsed["half"] == ("float_list", [0.5, -2.0])
    assert parsed["dict"] == ("bytes_list", [b'{"a":[1,null]}'])
    assert parsed["none"] == (None, [])
    assert samples_of(index, content) == [{"__key__": "k", **{name: back for name, (_, _, back) in VALUES.items()}}]


def test_fields_of_bytes_are_found_where_the_sample_says(tmp_path):
    encoded = encode_tfrecord({"__key__": "k", "jpg": b"\xff\xd8image", "cls": 3, "z.bin": b"more", "txt": "x"})
    assert {name: encoded.blob[at : at + length] for name, at, length in encoded.members} == {
        "jpg": b"\xff\xd8image",
        "z.bin": b"more",
    }


def test_the_same_sample_gives_the_same_bytes_whatever_the_order_of_fields():
    first = encode_tfrecord({"__key__": "a", "jpg": b"1", "cls": 3})
    assert first.blob == encode_tfrecord({"cls": 3, "jpg": bytearray(b"1"), "__key__": "a"}).blob


ENCODED = st.dictionaries(
    st.sampled_from(["a", "b", "jpg"]),
    st.binary(max_size=30)
    | st.text(max_size=10)
    | st.integers(-(2**63), 2**63 - 1)
    | st.lists(st.integers(-5, 5), min_size=1, max_size=30)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30),
    min_size=1,
)


@given(ENCODED)
def test_what_is_written_comes_back_and_a_scan_finds_the_same_records(tmp_path_factory, fields):
    path = tmp_path_factory.mktemp("tfrecord") / "s.tfrecord"
    index, content = pack(path, [{"__key__": "k", **fields}])
    (sample,) = check_reading(TFRECORD, index, content)
    back = {name: value[2] if isinstance(value, tuple) else value for name, value in sample.items()}
    assert back == {"__key__": "k", **fields}
    scanned, _ = scan(TFRECORD, path)
    assert scanned.key(0) == "k"
    assert (scanned.extent(0, 1), scanned.damage(0, 1, memoryview(content))) == (index.extent(0, 1), {})


@pytest.mark.parametrize(
    ("one", "other", "field", "back"),
    [
        (1, [1, 2], Field("array", "int64"), [("int64", (1,), [1]), ("int64", (2,), [1, 2])]),
        ("x", b"\xff", Field("bytes"), [b"x", b"\xff"]),
        (True, 7, Field("int", "int64"), [1, 7]),
        (np.ones(1, "u1"), np.ones(1, "i2"), Field("array", "int16", (1,)), [("int16", (1,), [1])] * 2),
        (1, None, Field("int", "int64", nullable=True), [1, None]),
        (["x"], "y", Field("json", "str"), [["x"], ["y"]]),
        ([b"x"], "y", Field("json", "bytes"), [[b"x"], [b"y"]]),
        (None, None, Field("null", nullable=True), [None, None]),
        ([], [0.5], Field("array", "float32"), [("float32", (0,), []), ("float32", (1,), [0.5])]),
        ([], 3, Field("array", "int64"), [("int64", (0,), []), ("int64", (1,), [3])]),
        ([], [True], Field("array", "bool"), [("bool", (0,), []), ("bool", (1,), [True])]),
        ([], ["x"], Field("json", "str"), [[], ["x"]]),
        ([], b"x", Field("json", "bytes"), [[], [b"x"]]),
        ([], [{"a": 1}], Field("json", "json or empty"), [[], [{"a": 1}]]),
        ([], {"a": 1}, Field("json", "json or empty"), [[], {"a": 1}]),
        ([], [], Field("json", "empty"), [[], []]),
        ([], None, Field("json", "empty", nullable=True), [[], []]),
    ],
)
def test_samples_may_differ_where_one_type_holds_both(tmp_path, one, other, field, back):
    index, content = pack(tmp_path / "s.tfrecord", [{"__key__": "a", "x": one}, {"__key__": "b", "x": other}])
    assert index.fields == {"x": field}
    assert [sample["x"] for sample in check_reading(TFRECORD, index, content)] == back


def test_all_shards_of_a_dataset_are_read_alike(tmp_path):
    """One number in the first shards, lists in the last ones: arrays in all."""
    samples = [{"__key__": str(i), "x": i if i < 50 else [i, i], "s": "é"} for i in range(60)]
    hr.pack(samples, tmp_path / "d", format="tfrecord", shard_size=1000, shuffle=False)
    ds = hr.open(tmp_path / "d")
    assert len(ds.manifest.shards) > 2
    assert ds.schema["x"] == Field("array", "int64")
    assert [one["x"].tolist() for one in ds] == [[i] if i < 50 else [i, i] for i in range(60)]
    assert ds[0]["s"] == "é"


@pytest.mark.parametrize("other", [[], [1.5], ["a"], [{"a": 1}], [[1], []]])
def test_empty_lists_come_back_whatever_other_shards_hold(tmp_path, other):
    """Also where a whole shard has nothing but them, and where they come between others."""
    lists = [[] if i < 40 or i % 3 else other for i in range(60)]
    samples = [{"__key__": f"{i:02d}", "x": one, "pad": "-" * 40} for i, one in enumerate(lists)]
    hr.pack(samples, tmp_path / "d", format="tfrecord", shard_size=1000, shuffle=False)
    ds = hr.open(tmp_path / "d")
    assert len(ds.manifest.shards) > 3
    assert [list(one["x"]) for one in ds] == lists
    assert ds.verify() == []


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        (1, 0.5, "float of float32, samples before it as int of int64"),
        ("a", 1, "int of int64, samples before it as str"),
        ({"a": 1}, "x", "str, samples before it as json"),
        (np.zeros(2, np.float32), np.zeros(2, np.int8), "array of int8, samples before it as array of float32"),
    ],
)
def test_samples_whose_types_no_reader_could_declare_are_refused(tmp_path, one, other, shown):
    """In the same shard, and in a later one."""
    with pytest.raises(SourceError, match=f"sample b has the field 'x' as {shown}: give every sample's field one type"):
        pack(tmp_path / "s.tfrecord", [{"__key__": "a", "x": one}, {"__key__": "b", "x": other}])
    fields = encode_tfrecord({"__key__": "a", "x": one}).fields
    with pytest.raises(SourceError, match=f"sample b has the field 'x' as {shown}"):
        pack(tmp_path / "t.tfrecord", [{"__key__": "b", "x": other}], fields)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (np.zeros(2, np.complex64), "is an array of complex64"),
        (np.array(["a"]), r"or make it a list by .tolist\(\)"),
        (np.array([object()]), "is an array of object"),
        (np.array([2**63], np.uint64), "has 9223372036854775808, but a tfrecord holds less than"),
        (2**63, "is 9223372036854775808, but a tfrecord holds numbers of 64 bits"),
        ([1, -(2**64)], "holds numbers of 64 bits"),
        (1e300, "has a number too large for float32"),
        (np.array([1e39]), "has a number too large for float32"),
        ("\udcff", "text that is not UTF-8; give bytes"),
        (object(), "convert it in the transform"),
        ({1: object()}, "cannot be stored as JSON"),
    ],
)
def test_what_an_example_cannot_hold_is_refused_with_advice(value, advice):
    with pytest.raises(SourceError, match=f"sample k: field 'x' .*{advice}"):
        encode_tfrecord({"__key__": "k", "x": value})


def test_names_that_cannot_be_kept_are_refused():
    with pytest.raises(SourceError, match="'x/shape' is where the shape of 'x' is kept"):
        encode_tfrecord({"__key__": "k", "x": np.zeros((2, 2)), "x/shape": [1]})
    with pytest.raises(SourceError, match="cannot be a field of a tfrecord"):
        encode_tfrecord({"__key__": "k", "a\nb": 1})


def test_a_sample_without_fields_is_refused():
    with pytest.raises(SourceError, match="sample k has no fields"):
        encode_tfrecord({"__key__": "k"})


def test_infinite_numbers_are_kept(tmp_path):
    index, content = pack(tmp_path / "s.tfrecord", [{"__key__": "k", "x": [float("inf"), float("-inf")]}])
    assert samples_of(index, content)[0]["x"] == ("float32", (2,), [float("inf"), float("-inf")])


def test_an_index_with_fields_that_a_tfrecord_has_not_is_refused(tmp_path):
    index, content = pack(tmp_path / "s.tfrecord", [{"__key__": "k", "x": np.zeros(2, np.int8)}])
    data = index.to_file().replace(b'"dtype":"int8"', b'"dtype":"intx"')
    with pytest.raises(ManifestError, match="must be about fields that a tfrecord has"):
        TFRECORD.read_index(memoryview(data), "idx", len(content))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tfrecord", "crc32c")),
    reason="tfrecord is not installed (pip install --no-deps -r tests/peers.txt)",
)
def test_the_tfrecord_package_reads_ours_and_we_its(tmp_path):
    """In a process of its own, as it imports torch; its tool writes the index of another tool, too."""
    pack(tmp_path / "ours.tfrecord", [{"__key__": "k", "x": [1, -2], "f": 0.5, "b": b"\0\xff"}])
    code = f"""
import tfrecord, tfrecord.tools.tfrecord2idx as tool
from pathlib import Path
folder = Path({str(tmp_path)!r})
(one,) = tfrecord.tfrecord_loader(str(folder / "ours.tfrecord"), None, {{"x": "int", "f": "float", "b": "byte"}})
assert (one["x"].tolist(), one["f"].tolist(), bytes(one["b"])) == ([1, -2], [0.5], b"\\0\\xff"), one
writer = tfrecord.TFRecordWriter(str(folder / "its.tfrecord"))
for i in range(3):
    writer.write({{"x": ([i, -i], "int"), "f": (i / 2, "float"), "b": (bytes([i]), "byte")}})
writer.close()
tool.create_index(str(folder / "its.tfrecord"), str(folder / "its.tfrecord.idx"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    index, _ = scan(TFRECORD, tmp_path / "its.tfrecord", {"idx": (tmp_path / "its.tfrecord.idx").read_bytes()})
    assert samples_of(index, (tmp_path / "its.tfrecord").read_bytes()) == [
        {"__key__": f"its:{i}", "x": ("int64", (2,), [i, -i]), "f": i / 2, "b": bytes([i])} for i in range(3)
    ]
