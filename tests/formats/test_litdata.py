"""LitData chunks: what the real package writes, and the same layouts made by hand, whole and damaged."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_litdata import KINDS, NUM_SAMPLES, expected, needs_litdata, write_all
from records_reading import check_never_silent, check_reading, flipped, plain, samples_of, scan, scan_or_error

from headrace.dataset.listing import FolderListing
from headrace.errors import DamagedError, DatasetError, ManifestError
from headrace.formats import ScanOptions
from headrace.formats.fields import Field
from headrace.formats.litdata import LITDATA
from headrace.formats.litdata.json_leaves import read_json
from headrace.formats.litdata.leaves import leaf_reader
from headrace.formats.litdata.spec import chunks_in, leaf_names
from headrace.storage import locate

ITEMS = [(i, f"é{i}".encode()) for i in range(7)]


def found_in(folder):
    return LITDATA.find(FolderListing(locate(folder)), ScanOptions())


def read_folder(folder):
    """All samples of a dataset: each chunk scanned, read through its index, and its index checked."""
    found, samples = found_in(folder), []
    for name, hint in zip(found.files, found.hints, strict=True):
        index, row = scan(LITDATA, folder / name, hint)
        samples += check_reading(LITDATA, index, (folder / name).read_bytes())
        assert row.samples == index.num_samples
    return samples


# ---- as the real package writes them


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litdata")
    write_all(folder)
    return folder


@needs_litdata
@pytest.mark.parametrize("kind", KINDS)
def test_what_litdata_writes_is_read(written, kind):
    samples = read_folder(written / kind)
    assert len(samples) == NUM_SAMPLES
    keys = [one.pop("__key__") for one in samples]
    wanted = [{name: plain(value) for name, value in one.items()} for one in expected(kind)]
    if "keys" in kind:
        assert keys == [one.pop("__key__") for one in wanted]
    assert samples == wanted


@needs_litdata
def test_runs_of_items_are_pieces_of_their_own(written):
    """So that a chunk need not be unpacked for one sample."""
    found = found_in(written / "zstd batch")
    index, row = scan(LITDATA, written / "zstd batch" / found.files[0], found.hints[0])
    assert row.pieces == (4, 4, 2)
    assert [piece.num_samples for piece in index.pieces] == [4, 4, 2]
    assert [piece.key(0) for piece in index.pieces] == ["chunk-0-0:0", "chunk-0-0:4", "chunk-0-0:8"]


@needs_litdata
def test_pickles_are_refused_by_name(written):
    with pytest.raises(DatasetError, match=r"a leaf is stored as 'pickle', .* write the dataset anew with values"):
        found_in(written / "pickle")


# ---- by hand


def item(number, text):
    return struct.pack("<IIq", 8, len(text), number) + text


def chunk(items):
    header = 4 + 4 * (len(items) + 1)
    offsets = np.cumsum([header, *map(len, items)]).astype("<u4").tobytes()
    return struct.pack("<I", len(items)) + offsets + b"".join(items)


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


def framed(items, run):
    """As litdata packs runs of items: b"LDFZ01", a table of items, a table of runs."""
    offsets = np.cumsum([0, *map(len, items)]).astype("<u4").tobytes()
    runs = [items[at : at + run] for at in range(0, len(items), run)]
    start, table, data = 24 + len(offsets) + 24 * len(runs), b"", b""
    for k, part in enumerate(runs):
        packed = zstd(b"".join(part))
        table += struct.pack("<IIQII", k * run, len(part), start + len(data), len(packed), len(b"".join(part)))
        data += packed
    return struct.pack("<8sHHIII", b"LDFZ01\0\0", 1, 0, len(items), run, len(runs)) + offsets + table + data


def table(rows, per_batch, compression=None, is_stream=False):
    """As litdata keeps rows: offsets that lead nowhere, an Arrow file, its length, a mark."""
    made, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with make(sink, made.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for at in range(0, len(rows), per_batch):
            writer.write_table(made.slice(at, per_batch))
    arrow = bytes(sink.getvalue())
    header = struct.pack("<I", len(rows)) + np.full(len(rows) + 1, 4 * (len(rows) + 2), "<u4").tobytes()
    return header + arrow + struct.pack("<I", len(arrow)) + b"LDARW01\0"


ROWS = [{"__key__": f"k{i}", "n": i, "s": text.decode(), "opt": None if i % 3 else [i]} for i, text in ITEMS]
LAYOUTS = {
    "plain": (chunk([item(*one) for one in ITEMS]), None),
    "chunk": (zstd(chunk([item(*one) for one in ITEMS])), "chunk"),
    "batch": (framed([item(*one) for one in ITEMS], 3), "batch"),
    "sample": (chunk([zstd(item(*one)) for one in ITEMS]), "sample"),
    "table": (table(ROWS, 3), None),
    "packed table": (table(ROWS, 3, "zstd"), None),
    "streamed table": (table(ROWS, 4, is_stream=True), None),
}
SAMPLES = [{"__key__": f"c:{i}", "n": i, "s": text.decode()} for i, text in ITEMS]


def hint(packing=None, samples=7, encodings=("int", "str"), names=("n", "s"), is_tokens=False):
    named = {"names": names, "encodings": encodings, "is_tokens": is_tokens, "packing": packing}
    return {"chunk": {"file": "c.bin", "samples": samples, **named}}


def scan_layout(tmp_path, layout):
    content, packing = LAYOUTS[layout]
    (tmp_path / "c.bin").write_bytes(content)
    return content, scan(LITDATA, tmp_path / "c.bin", hint(packing))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path, layout):
    content, (index, row) = scan_layout(tmp_path, layout)
    samples = check_reading(LITDATA, index, content)
    if "table" in layout:
        assert samples == [{**one, "opt": one["opt"]} for one in ROWS]
        assert index.fields["opt"] == Field("json", nullable=True)
    else:
        assert samples == SAMPLES
        assert index.fields == {"n": Field("int", "int64"), "s": Field("str")}
    assert index.is_ranged == (layout in ("plain", "sample"))
    assert (row.unpacked_bytes == 0) == index.is_ranged
    assert sum(row.pieces) in (0, 7)


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(list(LAYOUTS)))
def test_a_flipped_byte_is_never_silent(tmp_path_factory, at, change, layout):
    """With an index. Without one LitData keeps no checksums: then it must only not break anything."""
    folder = tmp_path_factory.mktemp("flip")
    content, (index, _) = scan_layout(folder, layout)
    check_never_silent(index, samples_of(index, content), flipped(content, at, change))
    scan_or_error(LITDATA, folder / "c.bin", flipped(content, at, change), hint(LAYOUTS[layout][1]))


@given(st.integers(0, 10_000), st.sampled_from(list(LAYOUTS)))
def test_a_chunk_cut_anywhere_is_an_error(tmp_path_factory, length, layout):
    folder = tmp_path_factory.mktemp("cut")
    content, (index, _) = scan_layout(folder, layout)
    cut = content[: length % len(content)]
    check_never_silent(index, samples_of(index, content), cut)
    assert scan_or_error(LITDATA, folder / "c.bin", cut, hint(LAYOUTS[layout][1])) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_junk_behind_the_end_is_an_error(tmp_path, layout):
    content, packing = LAYOUTS[layout]
    (tmp_path / "c.bin").write_bytes(content + b"some junk behind the end")
    with pytest.raises(DamagedError):
        scan(LITDATA, tmp_path / "c.bin", hint(packing))


def test_a_chunk_with_other_samples_than_the_index_says_is_damaged(tmp_path):
    (tmp_path / "c.bin").write_bytes(LAYOUTS["plain"][0])
    with pytest.raises(DamagedError, match=r"has 7 samples, the dataset's index.json says 8; restore it"):
        scan(LITDATA, tmp_path / "c.bin", hint(samples=8))


def test_an_item_that_cannot_be_read_is_a_damaged_sample_and_the_others_are_fine(tmp_path):
    items = [item(*one) for one in ITEMS]
    items[2], items[4] = item(2, b"\xff"), struct.pack("<II", 8, 100) + bytes(10)
    content = chunk(items)
    (tmp_path / "c.bin").write_bytes(content)
    index, _ = scan(LITDATA, tmp_path / "c.bin", hint())
    damage = index.damage(0, 7, memoryview(content)[index.extent(0, 7)[0] :])
    assert [*damage] == [2, 4]
    assert "can't decode byte 0xff" in damage[2]
    assert damage[4] == "leaves that do not fill the item's 18 bytes"
    assert samples_of(index, content)[3] == SAMPLES[3]


def test_bombs_are_refused_before_they_take_memory(tmp_path):
    big = item(1, bytes(64 << 20))
    path = tmp_path / "c.bin"
    for content, packing in (
        (zstd(chunk([big])), "chunk"),
        (framed([big], 1), "batch"),
        (table([{"s": bytes(64 << 20)}], 1, "zstd"), None),
    ):
        assert len(content) < 1 << 20
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="max_sample_bytes"):
            scan(LITDATA, path, hint(packing, samples=1), max_sample_bytes=1 << 20)
    path.write_bytes(chunk([zstd(big), zstd(item(1, b""))]))
    index, _ = scan(LITDATA, path, hint("sample", samples=2), max_sample_bytes=1 << 20)
    assert [*index.damage(0, 2, memoryview(path.read_bytes())[index.extent(0, 2)[0] :])] == [0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [b"\xff" * 8, b"\xff\xff\xff\x7f\0\x20\0\0"])
def test_no_number_in_a_chunk_can_ask_for_memory(tmp_path, layout, number):
    """Each eight bytes as -1, and as 2^45 + 2^31 - 1: lengths, counts and places are looked at before they are used."""
    content, packing = LAYOUTS[layout]
    for at in range(0, len(content) - 8, 4 if len(content) < 500 else 8):
        changed = content[:at] + number + content[at + 8 :]
        scan_or_error(LITDATA, tmp_path / "c.bin", changed, hint(packing))


@pytest.mark.parametrize("name", [b"opt\0", b"item\0", b"__key__\0"])
def test_names_that_are_no_text_are_an_error(tmp_path, name):
    content = LAYOUTS["table"][0].replace(name, b"\xff" * (len(name) - 1) + b"\0")
    (tmp_path / "c.bin").write_bytes(content)
    with pytest.raises(DamagedError, match="its Arrow table cannot be read: 'utf-8' codec can't decode"):
        scan(LITDATA, tmp_path / "c.bin", hint())


def test_tokens_are_items_without_lengths(tmp_path):
    content = chunk([np.arange(n, dtype="<u2").tobytes() for n in (3, 0, 5)])
    (tmp_path / "c.bin").write_bytes(content)
    tokens = hint(samples=3, encodings=("no_header_numpy:5",), names=("tokens",), is_tokens=True)
    index, _ = scan(LITDATA, tmp_path / "c.bin", tokens)
    assert index.fields == {"tokens": Field("array", "uint16")}
    assert [one["tokens"][2] for one in check_reading(LITDATA, index, content)] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]


# ---- index.json


def spec_of(tree):
    """What litdata's treespec_dumps gives for a tree of dicts, lists and leaves."""

    def node(value):
        if isinstance(value, dict):
            children = [node(child) for child in value.values()]
            return {"type": "builtins.dict", "context": json.dumps([*value]), "children_spec": children}
        if isinstance(value, list):
            return {"type": "builtins.list", "context": "null", "children_spec": [node(child) for child in value]}
        return {"type": None, "context": None, "children_spec": []}

    return json.dumps([1, node(tree)])


def index_json(**config):
    chunks = [{"chunk_bytes": 9, "chunk_size": 7, "dim": None, "filename": "chunk-0-0.bin"}]
    plain_config = {"data_format": ["int", "str"], "data_spec": spec_of({"n": 0, "s": 0}), "compression": None}
    return json.dumps({"chunks": chunks, "config": plain_config | config}).encode()


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (spec_of({"a": 0, "b": {"c": 0, "d": [0, 0]}}), ("a", "b.c", "b.d.0", "b.d.1")),
        (spec_of([0, 0, 0, 0]), ("0", "1", "2", "3")),
        (spec_of({"a.b": 0, "a": {"b": 0}, "c": 0, "d": 0}), ("0", "1", "2", "3")),  # two leaves of one name
        (spec_of({"a": 0}), ("0", "1", "2", "3")),  # other leaves than there are
        (spec_of({"a": 0}).replace('"[\\"a\\"]"', '"[[1]]"'), ("0", "1", "2", "3")),
        ("gASVAAAAAAAAAE4u", ("0", "1", "2", "3")),  # as some releases pickled it
        (None, ("0", "1", "2", "3")),
        ("[1]", ("0", "1", "2", "3")),
        (json.dumps([1, {"type": "builtins.dict", "context": "{", "children_spec": [{}]}]), ("0", "1", "2", "3")),
        ("[1," + '{"type": "x", "context": "", "children_spec": [' * 90 + "]}" * 90 + "]", ("0", "1", "2", "3")),
    ],
)
def test_leaves_are_called_by_their_way_through_the_tree_or_by_numbers(spec, names):
    assert leaf_names(spec, 4) == names


def test_a_defaultdict_and_a_bare_leaf_have_names_too():
    spec = json.loads(spec_of({"a": 0, "b": 0}))
    spec[1] |= {"type": "collections.defaultdict", "context": '["builtins.int", ["a", "b"]]'}
    assert leaf_names(json.dumps(spec), 2) == ("a", "b")
    assert leaf_names(spec_of(0), 1) == ("0",)


@given(st.text(max_size=30) | st.binary(max_size=30))
def test_any_description_of_a_tree_gives_names(spec):
    assert leaf_names(spec, 2) == ("0", "1")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data_format": ["int", "pickle"]}, "stored as 'pickle', which holds pickled objects"),
        ({"data_format": ["graph"]}, "stored as 'graph', which holds pickled objects"),
        ({"data_format": ["no_header_numpy:14"]}, "stored as 'no_header_numpy:14', a type that is not known"),
        ({"encryption": {"algorithm": "fernet", "level": "chunk"}}, "the dataset is encrypted"),
        ({"item_loader": "TemporalArrayLoader"}, "the item loader 'TemporalArrayLoader' are not read"),
        ({"compression": "brotli"}, "packed by 'brotli', which is not known"),
    ],
)
def test_what_is_not_read_is_refused_by_name(config, message):
    with pytest.raises(DatasetError, match=message):
        chunks_in(index_json(**config), "index.json")


def test_a_chunk_outside_the_folder_is_refused():
    data = index_json().replace(b"chunk-0-0.bin", b"../chunk-0-0.bin")
    with pytest.raises(ManifestError, match="must be the name of a file in the dataset's folder"):
        chunks_in(data, "index.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"chunks": [], "config": null}',
        b'{"version": 2, "shards": []}',
        b'{"chunks": {}}',
        index_json(item_loader="ParquetLoader"),
    ],
)
def test_an_index_of_something_else_is_passed_over(data):
    assert chunks_in(data, "index.json") is None


def test_older_releases_did_not_name_the_loader_of_tokens():
    (found,) = chunks_in(index_json(data_format=["no_header_tensor:16"]), "index.json")
    assert (found.is_tokens, found.names) == (True, ("tokens",))
    assert [one.packing for one in chunks_in(index_json(compression="zstd"), "index.json")] == [None]


@pytest.mark.parametrize(
    ("written", "changed", "message"),
    [
        (b'["int","str"]', b'["graph","s"]', "stored as 'graph', which holds pickled objects"),
        (b'"names":["n","s"]', b'"names":["nnnnn"]', "must be one for each leaf"),
    ],
)
def test_an_index_of_ours_that_lies_about_leaves_is_refused(tmp_path, written, changed, message):
    content, (index, _) = scan_layout(tmp_path, "plain")
    data = index.to_file()
    assert written in data
    with pytest.raises(ManifestError, match=message):
        LITDATA.read_index(memoryview(data.replace(written, changed)), "idx", len(content))


# ---- leaves


def leaf(encoding, data):
    return plain(leaf_reader(encoding)(memoryview(data)))


def numpy_leaf(number, array, order="<"):
    return struct.pack(f"{order}{2 + array.ndim}I", number, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("encoding", "data", "value"),
    [
        ("str", "ä".encode(), "ä"),
        ("text", b"", ""),
        ("int", struct.pack("<q", -5), -5),
        ("float", struct.pack("<d", 0.1), 0.1),
        ("bool", b"\1", True),
        ("bytes", b"\0\1", b"\0\1"),
        ("file:png", b"x", b"x"),
        ("nifti:nii.gz", b"x", b"x"),
        ("someone's own", b"x", b"x"),
        ("no_header_numpy:2", b"\1\0\0\0", ("int32", (1,), [1])),
        ("no_header_tensor:19", b"\1\0", ("bool", (2,), [True, False])),
        ("numpy", numpy_leaf(4, np.zeros((2, 0, 3), "u1")), ("uint8", (2, 0, 3), [[], []])),
        ("numpy", numpy_leaf(12, np.array([[1j]])), ("complex128", (1, 1), [[1j]])),
        ("tensor", numpy_leaf(9, np.array([[0.5]], "f2"), ">"), ("float16", (1, 1), [[0.5]])),
        ("tensor", numpy_leaf(18, np.array(7), ">"), ("int64", (), 7)),
        ("jpeg_array", struct.pack("<III", 2, 1, 2) + b"abb", [b"a", b"bb"]),
        ("json", b'{"a": 1}', {"a": 1}),
    ],
)
def test_leaves_mean_what_the_table_says(encoding, data, value):
    assert leaf(encoding, data) == value


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_pixels_are_those_of_the_image(mode):
    """As Pillow gives them; 11 pixels do not fill the bytes of a row of bits."""
    image = pytest.importorskip("PIL.Image")
    made = image.fromarray((np.arange(33) * 7 % 256).astype(np.uint8).reshape(3, 11))
    made = made.convert("I").convert(mode) if mode == "I;16" else made.convert("RGB").convert(mode)
    data = struct.pack("<III", 11, 3, len(mode)) + mode.encode() + made.tobytes()
    np.testing.assert_array_equal(leaf_reader("pil")(memoryview(data)), np.asarray(made), strict=True)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("str", b"\xff"),
        ("int", b"\0" * 7),
        ("bool", b""),
        ("no_header_numpy:3", b"\0" * 7),
        ("numpy", b"\0" * 7),
        ("numpy", struct.pack("<II", 14, 0) + bytes(8)),  # Python objects
        ("numpy", struct.pack("<II", 4, 1000)),
        ("numpy", struct.pack("<III", 4, 1, 2**32 - 1)),
        ("tensor", struct.pack(">III", 10, 1, 1) + bytes(2)),  # bfloat16, which numpy has not
        ("tensor", struct.pack(">IIII", 11, 2, 2**31, 2**31)),
        ("pil", struct.pack("<III", 2, 2, 3) + b"XYZ" + bytes(12)),
        ("pil", struct.pack("<III", 2**31, 2**31, 1) + b"L"),
        ("jpeg_array", struct.pack("<I", 2**32 - 1)),
        ("jpeg_array", struct.pack("<II", 1, 5) + b"abc"),
    ],
)
def test_leaves_that_are_malformed_are_errors(encoding, data):
    with pytest.raises(ValueError):  # noqa: PT011  # of numpy, struct or ours: the scan takes them all alike
        leaf(encoding, data)


@given(st.sampled_from(["numpy", "tensor", "pil", "jpeg_array", "json", "str", "int"]), st.binary(max_size=60))
def test_any_bytes_are_a_leaf_or_an_error(encoding, data):
    try:
        leaf(encoding, data)
    except ValueError:
        return


@given(st.integers(0, 12), st.binary(max_size=60))
def test_any_tagged_bytes_are_a_value_or_an_error(tag, data):
    try:
        read_json(memoryview(bytes([tag]) + data))
    except ValueError:
        return


def test_objects_may_be_nested_but_not_for_ever():
    def nested(depth):
        return b"\5\1\0\0\0\1\0\0\0k" * depth + b"\x0b"

    value = read_json(memoryview(nested(50)))
    for _ in range(50):
        value = value["k"]
    assert value is None
    with pytest.raises(ValueError, match="more than 100 objects in one another"):
        read_json(memoryview(nested(1000)))


@pytest.mark.parametrize("count", [10, 2**31, 2**32 - 1])
@pytest.mark.parametrize("tag", [1, 2, 3, 4, 5, 6])
def test_counts_that_the_bytes_cannot_hold_are_refused(tag, count):
    with pytest.raises(ValueError, match="behind"):
        read_json(memoryview(struct.pack("<BI", tag, count) + struct.pack("<I", 0)))
