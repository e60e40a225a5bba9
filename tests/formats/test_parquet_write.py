"""Parquet shards as headrace writes them: round trips, columns that have one type, sizes, other readers."""

import datetime
import decimal
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parquet_files import plain, read, read_file, scan, write

import headrace as hr
from headrace.errors import ManifestError, SourceError
from headrace.formats.fields import Field
from headrace.formats.parquet import ParquetWriter, encode_parquet
from headrace.formats.parquet import writer as writing

KEYS = st.lists(st.text(max_size=9), unique=True, min_size=1, max_size=8)
INTS = st.integers(-(2**63), 2**63 - 1)
DTYPES = st.sampled_from(["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64"])


def shown(value):
    """Without addresses, which differ from run to run."""
    return re.sub(r" at 0x\w+", "", repr(value))


def arrays(dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = st.binary(min_size=size, max_size=size)
    if dtype == "bool":
        return data.map(lambda d: (np.frombuffer(d, np.uint8) > 127).reshape(shape))
    return data.map(lambda d: np.frombuffer(d, dtype).reshape(shape))


def flat_arrays(dtype):
    return st.integers(0, 4).flatmap(lambda length: arrays(dtype, (length,)))


TURNS = st.fixed_dictionaries({"role": st.text(max_size=3), "n": INTS, "b": st.binary(max_size=3)})
COLUMNS = st.one_of(
    *(st.just(kind) for kind in (INTS, st.floats(), st.booleans(), st.text(), st.binary())),
    st.just(st.lists(st.text(max_size=3) | st.none(), max_size=3)),
    st.just(st.lists(TURNS, max_size=3)),
    st.just(st.fixed_dictionaries({"a": st.floats(), "l": st.lists(st.lists(INTS, max_size=2), max_size=2)})),
    DTYPES.map(flat_arrays),
    st.tuples(DTYPES, st.tuples(st.integers(1, 3), st.integers(1, 2))).map(lambda asked: arrays(*asked)),
)


def samples_of(keys, kinds):
    """A sample a key, with these fields, any of which may be None."""
    fields = {name: kind | st.none() for name, kind in kinds.items()}
    return st.tuples(*(st.fixed_dictionaries({"__key__": st.just(key), **fields}) for key in keys))


NAMES = st.text("ab.é", min_size=1, max_size=2)
SAMPLES = st.tuples(KEYS, st.dictionaries(NAMES, COLUMNS, min_size=1, max_size=4)).flatmap(
    lambda asked: samples_of(*asked)
)


def text_of(value):
    """A value as text, names in order, so that NaN is like NaN."""
    if isinstance(value, dict):
        return {name: text_of(value[name]) for name in sorted(value)}.__repr__()
    return repr([*map(text_of, value)]) if isinstance(value, list) else repr(value)


@given(SAMPLES)
def test_what_is_written_comes_back(tmp_path_factory, samples):
    """Through the index, through a scan of the bare file, which finds the same index, and through pyarrow."""
    path = tmp_path_factory.mktemp("written") / "shard-000000.parquet"
    index, row, _ = write(path, samples)
    assert [*map(text_of, read(index, path))] == [text_of(plain(sample)) for sample in samples]
    scanned, scanned_row = scan(path)
    assert scanned.to_file() == index.to_file()
    assert (scanned_row.pieces, scanned_row.xxh3_128) == (row.pieces, row.xxh3_128)
    assert [one["__key__"] for one in pq.read_table(path).to_pylist()] == [one["__key__"] for one in samples]


@pytest.mark.parametrize(
    ("value", "stored", "field"),
    [
        (np.int8(3), 3, Field("int", "int64")),
        (np.float32(0.5), 0.5, Field("float", "float64")),
        (np.bool_(True), True, Field("bool", "bool")),
        (np.array(7), 7, Field("int", "int64")),
        (bytearray(b"ab"), b"ab", Field("bytes")),
        (memoryview(b"abcd")[::2], b"ac", Field("bytes")),
        (b"\xff\xd8\xff", b"\xff\xd8\xff", Field("image")),
        (None, None, Field("null", nullable=True)),
        ([1, 2], ("int64", (2,), [1, 2]), Field("array", "int64", (2,))),
        ((1, 2.5), ("float64", (2,), [1, 2.5]), Field("array", "float64", (2,))),
        ([True], ("bool", (1,), [True]), Field("array", "bool", (1,))),
        ([1, None], [1, None], Field("array", "int64")),
        ([], [], Field("json", '["null"]')),
        ([[1], [2.5]], [[1.0], [2.5]], Field("json", '[["float64"]]')),
        ({"a": np.arange(2, dtype=np.uint8)}, {"a": [0, 1]}, Field("json", '{"a":["uint8"]}')),
        (np.arange(4, dtype=">i2")[::2], ("int16", (2,), [0, 2]), Field("array", "int16", (2,))),
    ],
    ids=shown,
)
def test_values_are_stored_as_columns_have_them(tmp_path, value, stored, field):
    path = tmp_path / "shard.parquet"
    index, _, fields = write(path, [{"__key__": "k", "x": value}])
    assert read(index, path) == [{"__key__": "k", "x": stored}]
    assert fields == {"x": field}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**63, "64 bits do not hold"),
        ([1, 2**64], "64 bits do not hold"),
        (1j, "a complex, for which Parquet has no type"),
        (datetime.datetime(2024, 1, 1), r"give its isoformat\(\)"),
        (datetime.date(2024, 1, 1), r"give its isoformat\(\)"),
        (decimal.Decimal("1"), "give it as a float or a str"),
        ({1, 2}, "give a list"),
        ([1, "a"], r"a list of different things \(int64 and string\)"),
        ([[1], 2], "a list of different things"),
        ({1: 2}, "names are text"),
        ({"a": {"b": object()}}, "holds a object"),
        ("\ud800", "not UTF-8"),
        ({"\ud800": 1}, "not UTF-8"),
        (np.array(["a"]), "is an array of <U1"),
        (np.zeros(2, np.complex64), "is an array of complex64"),
        (np.array([None]), "is an array of object"),
        (np.zeros(1, "datetime64[s]"), "is an array of datetime64"),
        (np.zeros((2, 0)), r"shape \(2, 0\), without a number in it; give None"),
        ({}, "without members"),
        ([{}], "without members"),
    ],
    ids=shown,
)
def test_what_a_column_cannot_hold_is_refused_with_a_hint(tmp_path, value, said):
    with pytest.raises(SourceError, match=rf"sample k: field 'x' .*{said}"):
        write(tmp_path / "shard.parquet", [{"__key__": "k", "x": value}])
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_nested_without_end_is_refused():
    value = []
    for _ in range(40):
        value = [value]
    with pytest.raises(SourceError, match="more than 32 lists and objects deep"):
        encode_parquet({"__key__": "k", "x": value})


def test_a_sample_without_fields_is_refused():
    with pytest.raises(SourceError, match="has no fields"):
        encode_parquet({"__key__": "k"})


def numbered(values):
    return [{"__key__": f"k{i}", "x": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([None, 3], [None, 3]),
        ([1, 2.5], [1.0, 2.5]),
        ([[], [1]], [("int64", (0,), []), ("int64", (1,), [1])]),
        ([[1], [2.5]], [("float64", (1,), [1.0]), ("float64", (1,), [2.5])]),
        ([[1], [None, 2]], [("int64", (1,), [1]), [None, 2]]),
        ([{"a": 1}, {"b": "x"}], [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([{"a": 1}, {}], [{"a": 1}, {"a": None}]),
        ([{"a": None}, {"a": [1.5]}], [{"a": None}, {"a": [1.5]}]),
        ([np.zeros(2, np.int8), np.zeros(1, np.int8)], [("int8", (2,), [0, 0]), ("int8", (1,), [0])]),
        ([b"\xff\xd8\xff", b"plain"], [b"\xff\xd8\xff", b"plain"]),
    ],
    ids=shown,
)
def test_a_column_is_what_all_its_values_are(tmp_path, values, stored):
    """As long as no row group is written: which is when some thousand samples have been seen."""
    path = tmp_path / "shard.parquet"
    index, _, fields = write(path, numbered(values))
    assert [sample["x"] for sample in read(index, path)] == stored
    assert fields["x"].nullable == any(value is None for value in values)
    assert fields["x"].type != "image"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (1, "a", "is string, in the samples before it is int64"),
        (1, True, "is bool, in the samples before it is int64"),
        (b"a", "a", "is string, in the samples before it is binary"),
        (1, [1], r"is \[int64\], in the samples before it is int64"),
        (2**60, 0.5, "is float64, in the samples before it is int64"),
        (np.zeros(2, np.int8), np.zeros(2, np.int16), r"is \[int16\], in the samples before it is \[int8\]"),
        (np.zeros((2, 2)), np.zeros((2, 3)), r"is float64\[2,3\], in the samples before it is float64\[2,2\]"),
        ({"a": 1}, {"a": "b"}, r"is {a: string}, in the samples before it is {a: int64}"),
    ],
    ids=shown,
)
def test_values_that_have_nothing_in_common_are_refused_by_name(tmp_path, first, second, said):
    with pytest.raises(SourceError, match=rf"sample k1: field 'x' {said}: a column of a Parquet file has one type"):
        write(tmp_path / "shard.parquet", numbered([first, second]))


def test_a_refused_sample_leaves_no_trace(tmp_path):
    """So that a pack that skips broken samples writes what it would have written without them."""
    good = [{"__key__": "a", "x": 1, "y": 1}, {"__key__": "c", "x": 3, "y": None}]
    write(tmp_path / "good.parquet", good)
    writer = ParquetWriter(tmp_path / "both.parquet", {})
    for sample in (good[0], {"__key__": "b", "a": 1.5, "x": "text"}, good[1]):
        try:
            writer.add(encode_parquet(sample))
        except SourceError:
            assert sample["__key__"] == "b"
    writer.finish()
    assert writer.fields == {"x": Field("int", "int64"), "y": Field("int", "int64", nullable=True)}
    assert (tmp_path / "both.parquet").read_bytes() == (tmp_path / "good.parquet").read_bytes()


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 400)


@pytest.mark.usefixtures("small_groups")
def test_once_a_row_group_is_written_samples_must_fit_its_columns(tmp_path):
    samples = [{"__key__": f"k{i}", "x": 1, "f": 0.5, "o": {"a": i}, "e": None} for i in range(30)]
    path = tmp_path / "shard.parquet"
    index, row, _ = write(path, [*samples, {"__key__": "last", "x": None, "f": 3, "o": {}}])
    assert len(row.pieces) > 3
    assert read(index, path)[-1] == {"__key__": "last", "x": None, "f": 3.0, "o": {"a": None}, "e": None}
    for name, value, said in [
        ("x", 0.5, "is float64, in the samples before it is int64"),
        ("f", 2**60, "is int64, in the samples before it is float64"),
        ("o", {"b": 1}, "is {b: int64}, in the samples before it is {a: int64}"),
        ("e", 1, "is int64, in the samples before it is null"),
        ("new", 1, "is new, and the file's columns are written already"),
    ]:
        with pytest.raises(SourceError, match=f"sample bad: field '{name}' {said}"):
            write(tmp_path / "bad.parquet", [*samples, {"__key__": "bad", name: value}])


@pytest.mark.usefixtures("small_groups")
def test_later_shards_have_the_columns_of_earlier_ones(tmp_path):
    """So a pack that is continued writes what it would have written; what was always None may become known."""
    first = [
        {"__key__": f"a{i}", "x": i if i else 0.5, "o": [{"b": 1, "n": None}], "g": np.ones((2, 2))} for i in range(9)
    ]
    later = [{"__key__": f"b{i}", "x": i, "o": [{"n": "text"}], "g": None} for i in range(9)]
    _, _, fields = write(tmp_path / "0.parquet", first)
    index, _, fields = write(tmp_path / "1.parquet", later, fields)
    assert fields == {
        "x": Field("float", "float64"),
        "o": Field("json", '[{"b":"int64","n":"string"}]'),
        "g": Field("array", "float64", (2, 2), nullable=True),
    }
    assert read(index, tmp_path / "1.parquet")[3] == {
        "__key__": "b3",
        "x": 3.0,
        "o": [{"b": None, "n": "text"}],
        "g": None,
    }
    with pytest.raises(SourceError, match="is new"):
        write(tmp_path / "2.parquet", [{"__key__": "k", "y": 1}], fields)


@pytest.mark.parametrize(
    "field",
    [Field("json", "{"), Field("json", '"thing"'), Field("array", "U3"), Field("other"), Field("json", '["a",1]')],
)
def test_fields_that_are_no_columns_are_refused(tmp_path, field):
    with pytest.raises(ManifestError, match=r"is no column that headrace writes .*: pack all of the dataset anew"):
        ParquetWriter(tmp_path / "shard.parquet", {"x": field})


def test_the_same_samples_give_the_same_bytes_whatever_the_order_of_fields(tmp_path):
    samples = [{"__key__": f"k{i}", "a": i, "b": f"text {i}", "c": [i, 0.5]} for i in range(50)]
    write(tmp_path / "0", samples)
    write(tmp_path / "1", [dict(reversed(sample.items())) for sample in samples])
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.mark.usefixtures("small_groups")
@given(st.lists(st.integers(0, 300), min_size=2, max_size=9), st.integers(0, 2**32))
def test_a_shard_is_no_longer_than_was_said_before_its_last_sample(tmp_path_factory, sizes, seed):
    """Of bytes at random, which no codec makes smaller."""
    rng = np.random.default_rng(seed)
    writer = ParquetWriter(tmp_path_factory.mktemp("sizes") / "shard.parquet", {})
    for number, size in enumerate(sizes):
        values = {
            "data": rng.bytes(size),
            "small": rng.integers(0, 255, size // 8, np.uint8),
            "items": [{"text": rng.bytes(3).hex(), "n": [int(n)]} for n in rng.integers(0, 2**62, size // 20)],
        }
        sample = encode_parquet({"__key__": f"{number:03d}", "n": number, **values})
        said = writer.size_with(sample)
        writer.add(sample)
    assert writer.finish().bytes <= said


def test_row_groups_hold_about_4_mib_and_large_samples_are_alone(tmp_path):
    sizes = [1 << 20] * 7 + [9 << 20] + [1000] * 50
    path = tmp_path / "shard.parquet"
    samples = [{"__key__": f"k{i:03d}", "data": bytes(size)} for i, size in enumerate(sizes)]
    index, row, _ = write(path, samples)
    assert row.pieces == (3, 3, 1, 1, 50)
    assert [len(sample["data"]) for sample in read(index, path)] == sizes


def test_a_sample_too_large_to_be_read_again_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MAX_SAMPLE_BYTES", 1000)
    with pytest.raises(
        SourceError, match=r"sample k takes 1,0\d\d bytes, and a row of Parquet up to 1,000: pack it as a tar"
    ):
        write(tmp_path / "shard.parquet", [{"__key__": "k", "x": bytes(1000)}])


def test_files_are_as_promised(tmp_path):
    """Small columns first, texts with dictionaries, zstd but for arrays of floats, checksums on every page."""
    path = tmp_path / "shard.parquet"
    sample = {"__key__": "k", "image": b"x", "text": "t", "n": 1, "emb": np.ones(3), "grid": np.ones((1, 2), np.uint8)}
    write(path, [sample])
    metadata = pq.read_metadata(path)
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    assert [column.path_in_schema for column in columns] == [
        "__key__",
        "n",
        "text",
        "emb.list.element",
        "grid",
        "image",
    ]
    assert [column.compression for column in columns] == ["ZSTD", "ZSTD", "ZSTD", "UNCOMPRESSED", "ZSTD", "ZSTD"]
    assert [column.has_dictionary_page for column in columns] == [True, False, True, False, False, False]
    content = bytearray(path.read_bytes())
    content[columns[3].data_page_offset + columns[3].total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_writer_that_is_given_up_leaves_nothing(tmp_path, small_groups):
    writer = ParquetWriter(tmp_path / "shard.parquet", {})
    for number in range(50):
        writer.add(encode_parquet({"__key__": str(number), "x": bytes(50)}))
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet.tmp"]
    writer.abandon()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_pyarrow_reads_what_is_written(tmp_path):
    path = tmp_path / "shard.parquet"
    samples = [
        {"__key__": f"k{i}", "n": i, "s": "ä" * i, "l": [[i], []], "o": {"a": [i]}, "e": [0.5] * i} for i in range(9)
    ]
    write(path, samples)
    table = pq.read_table(path, page_checksum_verification=True)
    assert table.schema.field("__key__") == pa.field("__key__", pa.string(), nullable=False)
    assert [dict(sorted(row.items())) for row in table.to_pylist()] == [dict(sorted(one.items())) for one in samples]


def test_a_pack_of_several_shards_has_one_type_a_column(tmp_path):
    """That of all samples of the first row group, in the manifest too, and when it is continued or appended to."""
    samples = [
        {"x": i if i else 0.5, "o": {"a": i} if i else {"b": "t"}, "e": "" if i > 60 else None} for i in range(90)
    ]
    manifest = hr.pack(samples, tmp_path / "packed", format="parquet", shard_size=9000, shuffle=False)
    assert len(manifest.shards) > 2
    assert manifest.fields == {
        "x": Field("float", "float64"),
        "e": Field("str", nullable=True),
        "o": Field("json", '{"b":"string","a":"int64"}'),
    }
    ds = hr.open(tmp_path / "packed")
    assert ds.verify() == []
    assert [type(sample["x"]) for sample in ds] == [float] * 90
    assert ds[89] == {"__key__": "000000089", "x": 89.0, "e": "", "o": {"b": None, "a": 89}}
    hr.pack([{"__key__": "new", "x": 3, "o": None}], tmp_path / "packed", format="parquet", append=True)
    assert hr.open(tmp_path / "packed").lookup("new")["x"] == 3.0


def test_duckdb_reads_what_is_written(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "shard.parquet"
    write(path, [{"__key__": f"k{i}", "n": i, "s": f"t{i}", "l": [0.5, i], "o": {"a": [i]}} for i in range(9)])
    found = duckdb.sql(f"select __key__, n, s, l, o.a[1] from '{path}' where n >= 7 order by n").fetchall()
    assert found == [("k7", 7, "t7", [0.5, 7.0], 7), ("k8", 8, "t8", [0.5, 8.0], 8)]


def test_hugging_face_datasets_reads_what_is_written_and_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "shard.parquet"
    write(path, [{"__key__": f"k{i}", "n": i, "chat": [{"role": "user", "content": f"c{i}"}]} for i in range(9)])
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert rows[3] == {"__key__": "k3", "n": 3, "chat": [{"role": "user", "content": "c3"}]}
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["a", "b"]), "x": datasets.Array2D((2, 2), "int8")}
    )
    theirs = datasets.Dataset.from_dict({"label": [0, 1], "x": [[[1, 2], [3, 4]]] * 2}, features=features)
    theirs.to_parquet(str(tmp_path / "theirs.parquet"))
    found = read_file(tmp_path / "theirs.parquet")
    assert [(sample["label"], sample["x"]) for sample in found] == [(0, [[1, 2], [3, 4]]), (1, [[1, 2], [3, 4]])]
    assert scan(tmp_path / "theirs.parquet")[0].content.classes == {"label": ("a", "b")}
