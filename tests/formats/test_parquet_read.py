"""Parquet files of other writers: whatever they hold comes out as the values that the module `columns` promises."""

import datetime
import decimal
import json
import struct
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_files import LocalListing
from parquet_files import opened, plain, put, read_file, read_piece, scan

from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats.fields import Field
from headrace.formats.format import ScanOptions
from headrace.formats.parquet import find_parquet

DAY = datetime.datetime(2024, 5, 1, 10, 30, 0, 1)


def fields_and_values(folder, array, **options):
    path = put(folder, {"x": array}, **options)
    return scan(path)[0].fields["x"], [sample["x"] for sample in read_file(path)]


@pytest.mark.parametrize(
    ("array", "field", "values"),
    [
        (pa.array([1, -2], pa.int8()), Field("int", "int8"), [1, -2]),
        (pa.array([2**64 - 1, 0], pa.uint64()), Field("int", "uint64"), [2**64 - 1, 0]),
        (pa.array([1, None]), Field("int", "int64", nullable=True), [1, None]),
        (pa.array([0.1, None], pa.float32()), Field("float", "float32", nullable=True), [float(np.float32(0.1)), None]),
        (pa.array([np.float16(1.5)], pa.float16()), Field("float", "float16"), [1.5]),
        (pa.array([True, None, False]), Field("bool", "bool", nullable=True), [True, None, False]),
        (pa.array(["grün", None, ""]), Field("str", nullable=True), ["grün", None, ""]),
        (pa.array(["a"], pa.large_string()), Field("str"), ["a"]),
        (pa.array(["b" * 20], pa.string_view()), Field("str"), ["b" * 20]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), Field("str", nullable=True), ["a", "b", "a", None]),
        (pa.array([b"\0\xff", None, b""]), Field("bytes", nullable=True), [b"\0\xff", None, b""]),
        (pa.array([b"c" * 20], pa.binary_view()), Field("bytes"), [b"c" * 20]),
        (pa.array([b"ab", None], pa.binary(2)), Field("bytes", nullable=True), [b"ab", None]),
        (pa.array([b"0123456789abcdef"], pa.uuid()), Field("bytes"), [b"0123456789abcdef"]),
        (pa.nulls(2), Field("null", nullable=True), [None, None]),
        (
            pa.array([decimal.Decimal("1.50"), None], pa.decimal128(15, 2)),
            Field("float", "float64", nullable=True),
            [1.5, None],
        ),
        (pa.array([decimal.Decimal("1.50")], pa.decimal128(16, 2)), Field("str"), ["1.50"]),
        (pa.array([DAY.date()]), Field("str"), ["2024-05-01"]),
        (pa.array([DAY.time()]), Field("str"), ["10:30:00.000001"]),
        (pa.array([DAY]), Field("str"), ["2024-05-01 10:30:00.000001"]),
        (
            pa.array([DAY, None], pa.timestamp("ns", "Europe/Berlin")),
            Field("str", nullable=True),
            ["2024-05-01 10:30:00.000001000Z", None],
        ),
        (pa.array([1, 2], pa.duration("ms")), Field("int", "int64"), [1, 2]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_values_of_each_type(tmp_path, array, field, values):
    assert fields_and_values(tmp_path, array) == (field, values)


def tensor(values):
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


@pytest.mark.parametrize(
    ("array", "field", "values"),
    [
        (
            pa.array([[1, 2], [3], []]),
            ("int64", None),
            [("int64", (2,), [1, 2]), ("int64", (1,), [3]), ("int64", (0,), [])],
        ),
        (pa.array([[1.5], None], pa.large_list(pa.float32())), ("float32", None), [("float32", (1,), [1.5]), None]),
        (pa.array([[1, None], [2]], pa.list_(pa.int16())), ("int16", None), [[1, None], ("int16", (1,), [2])]),
        (pa.array([[True, None], [True]]), ("bool", None), [[True, None], ("bool", (1,), [True])]),
        (
            pa.array([[1], [2, 3]], pa.list_view(pa.int8())),
            ("int8", None),
            [("int8", (1,), [1]), ("int8", (2,), [2, 3])],
        ),
        (pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), ("int32", (2,)), [("int32", (2,), [1, 2]), None]),
        (
            pa.array([[[1, None]], [[1, 2]], [None]], pa.list_(pa.list_(pa.int32(), 2), 1)),
            ("int32", (1, 2)),
            [[[1, None]], ("int32", (1, 2), [[1, 2]]), [None]],
        ),
        (
            pa.array([[[1, 2], [3, 4]], None], pa.list_(pa.list_(pa.uint8(), 2), 2)),
            ("uint8", (2, 2)),
            [("uint8", (2, 2), [[1, 2], [3, 4]]), None],
        ),
        (tensor(np.arange(6.0).reshape(1, 2, 3)), ("float64", (2, 3)), [("float64", (2, 3), [[0, 1, 2], [3, 4, 5]])]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_lists_of_numbers_are_arrays(tmp_path, array, field, values):
    """Of known shape where the type says so; a value with a hole is a list, since numbers have no None."""
    found, got = fields_and_values(tmp_path, array)
    assert (found.type, found.dtype, found.shape) == ("array", *field)
    assert got == values


def test_arrays_are_views_of_the_column(tmp_path):
    path = put(tmp_path, {"x": pa.array([[1, 2], [3]]), "b": [b"ab", b"c"]})
    [(_, piece)] = opened(scan(path)[0], path)
    first, second = piece.sample(0), piece.sample(1)
    assert first["x"].base is second["x"].base
    assert isinstance(first["b"], memoryview)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.list_(pa.string()), [["a", None], [], None]),
        (pa.list_(pa.list_(pa.int32())), [[[1], [2, 3]], [], None, [None, []]]),
        (
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float64()))]),
            [{"a": 1, "b": [1.5]}, {"a": None, "b": None}, None],
        ),
        (pa.map_(pa.string(), pa.int64()), [[("a", 1), ("b", None)], [], None]),
        (
            pa.list_(pa.struct([("role", pa.string()), ("data", pa.binary())])),
            [[{"role": "u", "data": b"\xff"}, None], None],
        ),
        (pa.struct([("p", pa.list_(pa.list_(pa.float32(), 2), 2))]), [{"p": [[1, 2], [3, 4]]}, {"p": None}, None]),
        (pa.list_(pa.list_(pa.int8(), 2)), [[[1, 2], [3, 4]], []]),
        (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a", "b", "a"], None]),
    ],
    ids=str,
)
def test_other_nested_values_are_lists_and_dicts(tmp_path, kind, values):
    found, got = fields_and_values(tmp_path, pa.array(values, kind))
    assert found.type == "json"
    assert got == [dict(value) if pa.types.is_map(kind) and value is not None else value for value in values]


def test_nested_times_and_decimals_are_as_others(tmp_path):
    kind = pa.list_(pa.struct([("at", pa.timestamp("s", "UTC")), ("d", pa.decimal128(20, 1))]))
    values = [[{"at": datetime.datetime(2024, 1, 2), "d": decimal.Decimal("3.5")}]]
    assert fields_and_values(tmp_path, pa.array(values, kind))[1] == [[{"at": "2024-01-02 00:00:00.000Z", "d": "3.5"}]]


NUMBERS = st.sampled_from([pa.int8(), pa.int64(), pa.uint16(), pa.float32(), pa.float64(), pa.bool_()])
LEAVES = st.one_of(NUMBERS, st.sampled_from([pa.string(), pa.binary(), pa.large_string(), pa.null()]))
KINDS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(
            lambda d: pa.struct(list(d.items()))
        ),
    ),
    max_leaves=4,
)


def values_of(kind):
    """Values that a column of this type may hold, None among them."""
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_list(kind):
        some = st.lists(values_of(kind.value_type), max_size=4)
    elif pa.types.is_struct(kind):
        some = st.fixed_dictionaries(
            {kind.field(n).name: values_of(kind.field(n).type) for n in range(kind.num_fields)}
        )
    elif pa.types.is_floating(kind):
        some = st.floats(width=kind.bit_width)
    elif pa.types.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        some = st.integers(int(info.min), int(info.max))
    elif pa.types.is_boolean(kind):
        some = st.booleans()
    else:
        some = st.binary(max_size=9) if pa.types.is_binary(kind) else st.text(max_size=9)
    return st.none() | some


def column(kind, num_rows):
    return st.lists(values_of(kind), min_size=num_rows, max_size=num_rows).map(lambda values: pa.array(values, kind))


KINDS_BY_NAME = st.dictionaries(st.text("ab_.x", min_size=1, max_size=3), KINDS, min_size=1, max_size=3)
TABLES = st.tuples(KINDS_BY_NAME, st.integers(0, 12)).flatmap(
    lambda asked: st.fixed_dictionaries({name: column(kind, asked[1]) for name, kind in asked[0].items()})
)
OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "gzip", "zstd", "brotli", "lz4"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_page_checksum": st.booleans(),
        "write_statistics": st.booleans(),
        "store_schema": st.booleans(),
        "row_group_size": st.integers(1, 13),
        "data_page_size": st.sampled_from([10, 1 << 20]),
    }
)


def as_lists(value):
    return value[2] if isinstance(value, tuple) else value


@given(TABLES, OPTIONS)
def test_whatever_pyarrow_writes_reads_as_pyarrow_reads_it(tmp_path_factory, columns, options):
    path = put(tmp_path_factory.mktemp("any"), columns, **options)
    expected = pq.read_table(path).to_pylist()
    names = [name for name in columns if not (name.startswith("__") and name.endswith("__") and len(name) > 3)]
    found = read_file(path)
    assert [sample["__key__"] for sample in found] == [f"rows:{row}" for row in range(len(expected))]
    got = [{name: as_lists(sample[name]) for name in names} for sample in found]
    assert repr(got) == repr([{name: row[name] for name in names} for row in expected])


def test_every_encoding_is_read(tmp_path):
    columns = {
        "n": np.arange(500) // 3,
        "s": [f"key-{i:05d}" for i in range(500)],
        "b": [bytes([i % 256]) * (i % 7) for i in range(500)],
        "f": np.linspace(0, 1, 500),
    }
    encodings = {
        "n": "DELTA_BINARY_PACKED",
        "s": "DELTA_BYTE_ARRAY",
        "b": "DELTA_LENGTH_BYTE_ARRAY",
        "f": "BYTE_STREAM_SPLIT",
    }
    path = put(tmp_path, columns, use_dictionary=False, column_encoding=encodings, row_group_size=120)
    found = read_file(path)
    assert [{name: sample[name] for name in columns} for sample in found] == pq.read_table(path).to_pylist()


def test_row_groups_are_pieces_and_keys_count_rows_of_the_shard(tmp_path):
    path = put(tmp_path, {"n": list(range(10))}, "part-3.data.parquet", row_group_size=4)
    index, row = scan(path)
    assert row.pieces == (4, 4, 2)
    assert [piece.is_ranged for piece in index.pieces] == [False] * 3
    assert [piece.key(0) for piece in index.pieces] == ["part-3-data:0", "part-3-data:4", "part-3-data:8"]
    assert index.key(9) == "part-3-data:9"
    ends = [sum(piece.extent(0, piece.num_samples)) for piece in index.pieces]
    assert ends == sorted(ends)
    assert row.unpacked_bytes == index.unpacked_bytes > 0


def test_keys_of_the_file_are_the_samples_keys(tmp_path):
    path = put(tmp_path, {"n": [1, 2, 3], "__key__": ["ä", "", "c/d"]}, row_group_size=2)
    index, _ = scan(path)
    assert [index.key(i) for i in range(3)] == ["ä", "", "c/d"]
    assert read_file(path) == [{"__key__": key, "n": n} for key, n in (("ä", 1), ("", 2), ("c/d", 3))]


@pytest.mark.parametrize(
    ("keys", "said"), [([1, 2], "keys are text"), (["a", None], "row 1 of row group 0 has no __key__")]
)
def test_keys_must_be_text(tmp_path, keys, said):
    with pytest.raises(DatasetError, match=said):
        scan(put(tmp_path, {"n": [1, 2], "__key__": keys}))


def test_what_other_tools_keep_for_themselves_is_no_field(tmp_path):
    path = put(tmp_path, {"n": [1], "__index_level_0__": [7]})
    assert read_file(path) == [{"__key__": "rows:0", "n": 1}]


@pytest.mark.parametrize("groups", [[], [0], [0, 2, 0, 1, 0]])
def test_empty_row_groups_and_empty_files(tmp_path, groups):
    path = tmp_path / "rows.parquet"
    with pq.ParquetWriter(path, pa.schema([("n", pa.int64())])) as writer:
        for count in groups:
            writer.write_table(pa.table({"n": list(range(count))}, schema=writer.schema))
    assert [sample["n"] for sample in read_file(path)] == [n for count in groups for n in range(count)]


def test_some_fields_are_read_and_unpacked_alone(tmp_path):
    """What is read reaches from the first to the last of them, and is checked by the checksums of its own columns."""
    columns = {"a": [1, 2], "big": [b"x" * 4000, b"y" * 4000], "c": ["u", "v"], "d": [[1.5], [2.5]]}
    path = put(tmp_path, columns, use_dictionary=False, compression="none")
    [piece] = scan(path)[0].pieces
    some = piece.with_fields({"d", "c", "no such field"})
    assert some.extent(0, 2)[1] < 1000 < piece.extent(0, 2)[1]
    assert int(some.sample_bytes.sum()) < 1000
    assert read_piece(some, path)[1] == {"__key__": "rows:1", "c": "v", "d": ("float64", (1,), [2.5])}
    assert read_piece(some.with_fields({"c"}), path)[1] == {"__key__": "rows:1", "c": "v"}
    assert read_piece(piece.with_fields({"a"}), path)[0] == {"__key__": "rows:0", "a": 1}
    assert read_piece(piece.with_fields(()), path)[0] == {"__key__": "rows:0"}


MIB = 1 << 20


def test_what_lies_between_wanted_columns_is_read_along_only_if_it_is_little(tmp_path):
    """Ranges cover the wanted chunks, do not touch, and have more than 1 MiB between each other."""
    rng = np.random.default_rng(0)
    sizes = {"a": 100, "b": MIB + MIB // 4, "c": 100, "d": MIB // 2, "e": 100, "f": 3 * MIB, "g": 100}
    path = put(tmp_path, {name: [rng.bytes(size)] for name, size in sizes.items()}, compression="none")
    index, _ = scan(path)
    [piece], chunks = index.pieces, index.content.groups[0].chunks
    ends = {name: chunk.end for name, chunk in zip(sizes, chunks, strict=True)}
    assert piece.ranges(0, 1) == [piece.extent(0, 1)]
    assert piece.ranges(0, 0) == []
    for names, last_of_each in (("ac", "ac"), ("ace", "ae"), ("aceg", "aeg"), ("bd", "d"), ("ag", "ag"), ("f", "f")):
        ranges = piece.with_fields(set(names)).ranges(0, 1)
        assert [part.end for part in ranges] == [ends[name] for name in last_of_each]
        assert all(later.offset - part.end > MIB for part, later in pairwise(ranges))
        [sample] = read_piece(piece.with_fields(set(names)), path)
        assert list(sample) == ["__key__", *names]
        assert all(len(sample[name]) == sizes[name] for name in names)


CLASS_LABEL = {"_type": "ClassLabel", "names": ["cat", "dog"]}
JPEG, PNG = b"\xff\xd8\xff\xe0rest", b"\x89PNG\r\n\x1a\nrest"


def hugging_face(columns, features):
    noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.table(columns).replace_schema_metadata(noted)


def test_images_as_hugging_face_stores_them_are_their_bytes(tmp_path):
    files = [{"bytes": JPEG, "path": "a.jpg"}, {"bytes": PNG, "path": None}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = hugging_face(
        {"image": pa.array(files, kind), "sound": pa.array(files, kind), "label": [0, 1, 0]},
        {
            "image": {"_type": "Image"},
            "sound": {"_type": "Audio"},
            "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
        },
    )
    path = put(tmp_path, table)
    index, _ = scan(path)
    assert index.fields["image"] == Field("image", nullable=True)
    assert index.content.classes == {"label": ("cat", "dog")}
    assert read_file(path)[:2] == [
        {"__key__": "rows:0", "image": JPEG, "sound": JPEG, "label": 0},
        {"__key__": "rows:1", "image": PNG, "sound": PNG, "label": 1},
    ]


def test_an_image_that_is_a_path_alone_is_damage_of_its_sample(tmp_path):
    files = [{"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "/elsewhere/b.jpg"}]
    path = put(tmp_path, {"image": files})
    [(_, piece)] = opened(scan(path)[0], path)
    assert piece.damage == {1: "field 'image' is the path of a file that is not in the dataset"}


def test_bytes_that_are_images_are_known_by_their_first_bytes(tmp_path):
    index, _ = scan(put(tmp_path, {"photo": [None, b"broken", JPEG], "other": [b"a", b"b", b"c"]}))
    assert (index.fields["photo"].type, index.fields["other"].type) == ("image", "bytes")


def test_text_that_is_not_utf8_is_damage_of_its_sample(tmp_path):
    broken = pa.array([b"good", b"\xff\xfe", b"fine"]).cast(pa.binary()).view(pa.string())
    nested = pa.array([["a"], ["b"], [b"\xff"]], pa.list_(pa.binary())).cast(pa.list_(pa.string()), safe=False)
    path = put(tmp_path, {"s": broken, "l": nested})
    [(_, piece)] = opened(scan(path)[0], path)
    assert piece.damage == {1: "field 's' is not UTF-8 text", 2: "field 'l' is not UTF-8 text"}
    assert plain(piece.sample(0)) == {"__key__": "rows:0", "s": "good", "l": ["a"]}


def test_files_are_found_by_their_first_bytes_and_none_of_that_name_is_passed_over(tmp_path):
    put(tmp_path, {"n": [1]}, "b.snappy")
    put(tmp_path, {"n": [2]}, "a")
    put(tmp_path, {"n": [3]}, "_metadata")
    (tmp_path / "c.parquet").write_bytes(b"not one")
    found = find_parquet(LocalListing(tmp_path), ScanOptions())
    assert found.files == ["a", "b.snappy", "c.parquet"]
    with pytest.raises(DamagedError):
        scan(tmp_path / "c.parquet")


def test_what_is_not_read_says_so(tmp_path):
    path = put(tmp_path, {"n": [1]})
    with pytest.raises(OptionError, match="dtype is for token files"):
        scan(path, dtype="uint16")
    content = path.read_bytes()
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    with pytest.raises(DatasetError, match="it is encrypted"):
        scan(path)
    put(tmp_path, pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))
    with pytest.raises(DatasetError, match="two columns of the name 'a'"):
        scan(path)


def test_samples_larger_than_asked_for_are_refused(tmp_path):
    path = put(tmp_path, {"b": [b"x" * 5000, b"y" * 7000]})
    assert scan(path, max_sample_bytes=8000)[1].samples == 2
    with pytest.raises(DatasetError, match=r"more than max_sample_bytes=4,000 each; open it with a larger limit"):
        scan(path, max_sample_bytes=4000)
    with pytest.raises(DatasetError, match="write the file again with smaller row groups"):
        scan(path, max_unpacked_bytes=9000)


def test_rows_of_a_run_are_opened_alone_and_numbered_alike(tmp_path):
    path = put(tmp_path, {"n": list(range(9))}, row_group_size=4)
    index, _ = scan(path)
    with open(path, "rb") as file:
        content = memoryview(file.read())
    offset, length = index.extent(5, 7)
    assert index.open(5, 7, content[offset : offset + length]).sample(6) == {"__key__": "rows:6", "n": 6}
    with pytest.raises(OptionError, match="do not lie in one row group"):
        index.extent(3, 5)


def test_magic_length_and_struct_layout_are_those_of_the_format(tmp_path):
    """So that the file that is cut in other tests is cut where it hurts."""
    content = put(tmp_path, {"n": [1]}).read_bytes()
    length = struct.unpack("<I", content[-8:-4])[0]
    assert content.startswith(b"PAR1")
    assert content.endswith(b"PAR1")
    assert 0 < length < len(content)
