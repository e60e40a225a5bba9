"""JSON lines: what a line gives, which lines are damaged, which files are taken for JSON lines, and damage to them."""

import gzip
import json

import pyarrow as pa
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
from headrace.errors import DamagedError, DatasetError, ManifestError
from headrace.formats.fields import Field
from headrace.formats.jsonl import JSONL, join_fields

NAMES = st.text(max_size=8).filter(lambda name: name != "__key__")
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TEXT = b'{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n\n{"a": 3, "b": "z"}\n'


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def write(path, content):
    path.write_bytes(content)
    return path


@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=8), st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_what_json_says_comes_back(tmp_path_factory, objects, between):
    """Alike for a plain and a packed file, through the index and through its file."""
    folder = tmp_path_factory.mktemp("jsonl")
    text = between.join(json.dumps(one, ensure_ascii=False) for one in objects).encode("utf-8", "surrogatepass")
    expected = [{"__key__": f"a:{i}"} for i in range(len(objects))]
    for name, content in (("a.jsonl", text), ("a.jsonl.gz", gzip.compress(text)), ("a.jsonl.zst", zstd(text))):
        path = write(folder / name, content)
        index, row = scan(JSONL, path)
        samples = check_reading(JSONL, index, content)
        assert [{"__key__": one.pop("__key__")} for one in samples] == expected
        floats = {name for name, field in index.fields.items() if field.type == "float"}
        assert samples == [
            {name: float(value) if name in floats and value is not None else value for name, value in one.items()}
            for one in objects
        ]
        assert row.unpacked_bytes == (0 if name == "a.jsonl" else len(text))


def test_keys_are_those_of_the_lines_where_they_have_some(tmp_path):
    index, _ = scan(JSONL, write(tmp_path / "a.b.jsonl", b'{"x": 0}\n{"__key__": "", "x": 1}\n{"x": 2}\n'))
    assert [index.key(i) for i in range(3)] == ["a-b:0", "", "a-b:2"]
    assert index.fields == {"x": Field("int", "int64")}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ("[1, 2]", Field("int", "int64")),
        ("[1, 2.5]", Field("float", "float64")),
        ("[1, null]", Field("int", "int64", nullable=True)),
        ('["a", ""]', Field("str")),
        ("[true, false]", Field("bool", "bool")),
        ("[null, null]", Field("null", nullable=True)),
        ('[1, "a"]', Field("json")),
        ("[9007199254740993, 1]", Field("int", "int64", wide=True)),
        ("[9007199254740992, 0.5]", Field("float", "float64")),
        ("[9007199254740993, 0.5]", Field("json")),
        ("[9223372036854775807, 1]", Field("int", "int64", wide=True)),
        ("[9223372036854775808, 1]", Field("json")),
        ("[[1], {}]", Field("json")),
        ("[1, true]", Field("json")),
    ],
)
def test_a_field_is_what_its_values_have_in_common(tmp_path, values, field):
    lines = [json.dumps({"x": value}).encode() for value in json.loads(values)]
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert index.fields == {"x": field}


def test_whole_numbers_are_floats_where_the_dataset_has_floats(tmp_path):
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", b'{"x": 1}\n{"x": 2}\n'))
    index.read_as({"x": Field("float", "float64"), "other": Field("str")})
    values = [one["x"] for one in samples_of(index, b'{"x": 1}\n{"x": 2}\n')]
    assert [type(value) for value in values] == [float, float]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Field("int", "int64"), Field("float", "float64"), Field("float", "float64")),
        (Field("int", "int64"), Field("str"), Field("json")),
        (Field("int", "int64", wide=True), Field("float", "float64"), Field("json")),
        (Field("int", "int64", wide=True), Field("int", "int64"), Field("int", "int64", wide=True)),
        (
            Field("int", "int64", wide=True),
            Field("null", nullable=True),
            Field("int", "int64", nullable=True, wide=True),
        ),
        (Field("str"), Field("null", nullable=True), Field("str", nullable=True)),
        (Field("bool", "bool", nullable=True), Field("bool", "bool"), Field("bool", "bool", nullable=True)),
        (Field("json"), Field("json"), Field("json")),
    ],
)
def test_files_of_one_dataset_may_have_members_of_different_types(one, other, both):
    assert join_fields(one, other) == join_fields(other, one) == both


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN}', "line 2 is not JSON (unexpected character, expected a JSON value, at character 7)"),
        (b'{"a": 1', "line 2 is not JSON"),
        (b"[1, 2]", "line 2 must be a JSON object, got"),
        (b"7", "line 2 must be a JSON object, got 7"),
        (b'{"a": "\xff"}', "line 2 is not JSON"),
        (b'{"__key__": 5, "a": 1}', "line 2: __key__ must be a string, got 5"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"a": 18446744073709551616}', "line 2: 18446744073709551616 is beyond 64 bits; write it as text"),
        (b'{"a": [{"b": -9223372036854775809}]}', "line 2: -9223372036854775809 is beyond 64 bits"),
        (b'{"a": 1%s}' % (b"0" * 300), "line 2: 1" + "0" * 39 + "... is beyond 64 bits"),
    ],
)
def test_a_line_that_is_no_object_is_a_damaged_sample_and_the_others_are_fine(tmp_path, line, reason):
    content = b'{"a": 1}\n' + line + b'\n{"a": 3}\n'
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", content))
    for one in (index, reread(JSONL, index, len(content))):
        opened = one.open(0, 3, memoryview(content))
        assert [*opened.damage] == [1]
        assert opened.damage[1].startswith(reason)
        assert (opened.sample(0)["a"], opened.sample(2)["a"]) == (1, 3)


def test_of_members_with_one_name_the_last_one_counts(tmp_path):
    content = b'{"a": 1, "a": 2}'
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", content))
    assert samples_of(index, content) == [{"__key__": "a:0", "a": 2}]


def test_a_mark_of_utf8_is_no_part_of_the_first_line(tmp_path):
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + TEXT))
    assert [one["a"] for one in samples_of(index, b"\xef\xbb\xbf" + TEXT)] == [1, 2, 3]


def test_a_file_that_is_broken_everywhere_is_refused(tmp_path):
    with pytest.raises(DamagedError, match="all records are broken, the first one like this: line 1 is not JSON"):
        scan(JSONL, write(tmp_path / "a.jsonl", b"a,b\n1,2\n"))
    lines = b'{"a": 1}\n' + b"x\n" * 1001
    with pytest.raises(DamagedError, match="more than 1,000 broken records, the first is number 1: line 2 is not JSON"):
        scan(JSONL, write(tmp_path / "a.jsonl", lines))


def test_a_line_may_be_as_long_as_a_sample_and_no_longer(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": "' + b"x" * 5000 + b'"}\n')
    assert scan(JSONL, path, max_sample_bytes=6000)[0].num_samples == 1
    with pytest.raises(DamagedError, match="longer than max_sample_bytes=5,000; if it is right, open the dataset with"):
        scan(JSONL, path, max_sample_bytes=5000)


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    """A gigabyte without a line end, in a megabyte."""
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(bytes(64 << 20)) * 16)
    with pytest.raises(DamagedError, match="longer than max_sample_bytes"):
        scan(JSONL, path, max_sample_bytes=1 << 20)


def test_a_packed_file_is_bounded_as_a_whole_too(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT * 1000))
    with pytest.raises(DatasetError, match="unpacks to more than max_unpacked_bytes=1,000: unpack it, or cut it up"):
        scan(JSONL, path, max_unpacked_bytes=1000)


def test_lines_that_span_what_is_read_at_a_time_are_found(tmp_path):
    objects = [{"i": i, "text": "x" * (i * 997 % 300_000)} for i in range(100)]
    content = b"".join(json.dumps(one).encode() + b"\n" for one in objects)
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", content))
    assert [{"i": one["i"], "text": one["text"]} for one in samples_of(index, content)] == objects


@given(st.integers(0, 1000), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_is_never_silent(tmp_path_factory, at, change, is_packed):
    path = tmp_path_factory.mktemp("flip") / ("a.jsonl.gz" if is_packed else "a.jsonl")
    content = gzip.compress(TEXT, mtime=0) if is_packed else TEXT
    index, _ = scan(JSONL, write(path, content))
    samples = samples_of(index, content)
    check_never_silent(index, samples, flipped(content, at, change))
    scan_or_error(JSONL, path, flipped(content, at, change))


@given(st.integers(0, 1000), st.booleans())
def test_a_file_cut_anywhere_is_never_silent_with_an_index(tmp_path_factory, length, is_packed):
    path = tmp_path_factory.mktemp("cut") / ("a.jsonl.gz" if is_packed else "a.jsonl")
    content = gzip.compress(TEXT, mtime=0) if is_packed else TEXT
    index, _ = scan(JSONL, write(path, content))
    cut = content[: length % len(content)]
    check_never_silent(index, samples_of(index, content), cut)
    again = scan_or_error(JSONL, path, cut)
    assert not is_packed or not cut or again is None, "what is packed says itself where it ends"


def test_junk_behind_what_is_packed_is_an_error(tmp_path):
    with pytest.raises(DamagedError, match="does not unpack behind byte"):
        scan(JSONL, write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT) + b"junk"))


def test_an_index_that_lies_is_refused_or_stays_within_the_shard(tmp_path):
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", TEXT))
    with pytest.raises(ManifestError, match="speaks of bytes outside its shard of 20 bytes"):
        JSONL.read_index(memoryview(index.to_file()), "a.idx", 20)
    packed, _ = scan(JSONL, write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT)))
    with pytest.raises(ManifestError, match="must lie one behind the other in the shard's 9 bytes"):
        JSONL.read_index(memoryview(packed.to_file()), "a.idx", 9)


@given(st.integers(0, 5000), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_garbled_index_is_refused_or_stays_within_the_shard(tmp_path_factory, at, garbage, is_packed):
    content = gzip.compress(TEXT, mtime=0) if is_packed else TEXT
    index, _ = scan(JSONL, write(tmp_path_factory.mktemp("idx") / "a.jsonl", content))
    data = bytearray(index.to_file())
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    try:
        read = JSONL.read_index(memoryview(data), "a.idx", len(content))
    except ManifestError:
        return
    for i in range(read.num_samples):
        offset, length = read.extent(i, i + 1)
        assert 0 <= offset <= offset + length <= len(content)


def test_it_is_found_by_its_name_or_its_first_lines(tmp_path):
    write(tmp_path / "a.jsonl", TEXT)
    write(tmp_path / "b.ndjson.gz", gzip.compress(TEXT))
    write(tmp_path / "c.jsonl.zst", zstd(TEXT * 50_000))
    write(tmp_path / "lines.json", TEXT)
    write(tmp_path / "one.json", b'{"a": 1}\n')
    write(tmp_path / "README.md", b"# about")
    assert find(JSONL, tmp_path) == ["a.jsonl", "b.ndjson.gz", "c.jsonl.zst", "lines.json"]


def test_a_shard_with_a_damaged_first_line_does_not_go_missing(tmp_path):
    write(tmp_path / "a.jsonl", b"\0" + TEXT)
    write(tmp_path / "b.jsonl", TEXT)
    assert find(JSONL, tmp_path) == ["a.jsonl", "b.jsonl"]


def test_a_first_line_longer_than_what_is_looked_at_is_enough(tmp_path):
    write(tmp_path / "a.jsonl", b'{"a": "' + b"x" * (1 << 20) + b'"}\n')
    assert find(JSONL, tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    "files",
    [
        {"annotations.json": b'{"images": []}'},
        {"a.json": b'{\n "a": 1\n}\n'},
        {"metadata.jsonl": TEXT, "a.jpg": b"\xff\xd8"},
        {"a.txt": TEXT},
        {"a.json": b""},
        {"a.json.gz": b"\x1f\x8b\x08garbage"},
    ],
)
def test_what_is_something_else_is_not_taken_for_json_lines(tmp_path, files):
    for name, content in files.items():
        write(tmp_path / name, content)
    assert find(JSONL, tmp_path) is None


@given(st.recursive(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_numbers_are_exact_or_damage(tmp_path_factory, value):
    """Of any size, alone or in lists."""
    content = json.dumps({"x": value}).encode() + b'\n{"x": 1}\n'
    index, _ = scan(JSONL, write(tmp_path_factory.mktemp("numbers") / "a.jsonl", content))
    one = samples_of(index, content)[0]
    assert one is None or one["x"] == value


@pytest.mark.parametrize(
    "text",
    ['"123456789012345678901"', '"\\"123456789012345678901"', "0.123456789012345678901", "123456789012345678901.5e3"],
)
def test_digits_that_are_no_whole_number_are_no_damage(tmp_path, text):
    content = b'{"x": %s}' % text.encode()
    index, _ = scan(JSONL, write(tmp_path / "a.jsonl", content))
    assert samples_of(index, content) == [{"__key__": "a:0", "x": json.loads(text)}]


@pytest.mark.parametrize("is_indexed", [False, True])
def test_whole_numbers_are_not_rounded_for_the_floats_of_other_files(tmp_path, is_indexed):
    write(tmp_path / "a.jsonl", b'{"wide": 9007199254740993, "exact": 9007199254740992}\n')
    write(tmp_path / "b.jsonl", b'{"wide": 0.5, "exact": 0.5}\n{"wide": 7, "exact": 7}\n')
    if is_indexed:
        hr.index(tmp_path)
    rows = [{name: value for name, value in one.items() if name != "__key__"} for one in hr.open(tmp_path)]
    assert rows == [{"wide": 9007199254740993, "exact": 2.0**53}, {"wide": 0.5, "exact": 0.5}, {"wide": 7, "exact": 7}]
    assert [type(row["exact"]) for row in rows] == [float] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[1]\n[2]\n", r"like this: line 1 must be a JSON object, got \[1\]"),
        ("a.ndjson", b"\n\xff\xfe\0", "like this: line 2 is not JSON"),
        ("a.jsonl.gz", b"\x1f\x8b\x08garbage", "does not unpack behind byte 0"),
    ],
)
def test_of_a_file_named_like_one_it_is_said_what_is_wrong(tmp_path, name, content, message):
    write(tmp_path / name, content)
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(DamagedError, match=message):
            hr.open(place)


def test_a_first_line_that_is_broken_is_a_damaged_sample_like_any_other(tmp_path):
    write(tmp_path / "a.jsonl", b'{"a": 1,}\n{"a": 2}\n')
    for place in (tmp_path, tmp_path / "a.jsonl"):
        ds = hr.open(place)
        with pytest.raises(DamagedError, match=r"a:0 .* is damaged: line 1 is not JSON .*, at character 8"):
            ds[0]
        assert (ds[1]["a"], len(ds.verify())) == (2, 1)
