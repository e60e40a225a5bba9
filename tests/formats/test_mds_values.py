"""Values of MDS: what goes in comes back, what cannot go in is refused by name, and no bytes crash a decoder."""

import datetime
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_files import plain, same
from PIL import Image

from headrace.errors import DamagedError, DatasetError, SourceError
from headrace.formats.fields import Field
from headrace.formats.mds.columns import Columns
from headrace.formats.mds.encode import encode_mds, encoding_of
from headrace.formats.mds.encodings import parse_encoding

ENCODINGS = [
    "bytes str int uint8 int64 float16 float32 str_int str_float str_decimal json pil jpeg png jpeg_array jpegarray",
    "list[jpeg] list[png] list[pil] ndarray ndarray:float32 ndarray:uint8:2,3 ndarray:float16:1",
]
ENCODINGS = " ".join(ENCODINGS).split()
DTYPES = ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(0, 9),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**64 - 1) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | TEXT
    | st.binary(max_size=40)
    | st.booleans()
    | st.none()
    | ARRAYS
    | st.lists(JSON, max_size=3)
    | st.dictionaries(TEXT, JSON, max_size=3)
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda name: name != "__key__")


def columns_for(encoded):
    pairs = {"__key__": "str"} | {name: encoding_of(name, field) for name, field in encoded.fields.items()}
    return Columns(sorted(pairs.items()), "it")


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5), TEXT)
def test_values_come_back_in_their_type(fields, key):
    encoded = encode_mds({**fields, "__key__": key})
    columns = columns_for(encoded)
    sample = columns.sample(memoryview(encoded.blob), key)
    assert same(plain(sample), {"__key__": key, **fields})
    assert columns.key(encoded.blob[slice(*columns.key_range(encoded.blob, len(encoded.blob)))]) == key


def test_values_of_numpy_and_views_become_plain_ones():
    sample = {"__key__": "k", "a": np.int8(3), "b": np.float32(0.5), "c": np.bool_(True), "d": np.array(7), "e": (1, 2)}
    sample |= {"f": bytearray(b"x"), "g": memoryview(b"y"), "h": np.array([1, 2], ">u2"), "i": {"x": np.arange(2)}}
    encoded = encode_mds(sample)
    read = plain(columns_for(encoded).sample(memoryview(encoded.blob), "k"))
    plain_ones = {"__key__": "k", "a": 3, "b": 0.5, "c": True, "d": 7, "e": [1, 2], "f": b"x", "g": b"y"}
    assert same(read, plain_ones | {"h": np.array([1, 2], np.uint16), "i": {"x": [0, 1]}})


def test_what_is_written_is_said_by_name_type_and_image():
    sample = {"__key__": "k", "jpg": b"\xff\xd8", "a.png": b"\x89", "x.JPEG": b"\xff", "gif": b"G", "n": None, "t": "x"}
    encoded = encode_mds(sample | {"a": np.zeros((2, 3), np.float32), "b": True, "i": 1, "f": 1.5, "j": []})
    assert encoded.fields == {
        "jpg": Field("image"),
        "a.png": Field("image"),
        "x.JPEG": Field("image"),
        "gif": Field("bytes"),
        "n": Field("null"),
        "t": Field("str"),
        "a": Field("array", "float32", (2, 3)),
        "b": Field("bool"),
        "i": Field("int", "int64"),
        "f": Field("float", "float64"),
        "j": Field("json"),
    }
    names = {name: encoding_of(name, field) for name, field in encoded.fields.items()}
    assert [names[name] for name in ("jpg", "a.png", "x.JPEG", "gif")] == ["jpeg", "png", "jpeg", "bytes"]
    stored = {name: encoded.blob[at : at + length] for name, at, length in encoded.members}
    assert stored == {"jpg": b"\xff\xd8", "a.png": b"\x89", "x.JPEG": b"\xff", "gif": b"G"}


def test_the_order_of_fields_does_not_matter():
    first = encode_mds({"__key__": "k", "a": 1, "B": "x", "c": b"y"})
    second = encode_mds({"c": b"y", "B": "x", "a": 1, "__key__": "k"})
    assert (first.blob, first.checksum, first.members) == (second.blob, second.checksum, second.members)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**63, r"field 'x' is 9,223,372,036,854,775,808, which 64 bits cannot hold; give it as text"),
        ("\ud800", r"field 'x' holds text that is not UTF-8; give bytes"),
        ({1: 2}, r"field 'x' cannot be stored as JSON"),
        ([b"x"], r"field 'x' cannot be stored as JSON"),
        (1j, r"field 'x' is a complex; MDS holds bytes, str, numbers"),
        (datetime.date(2020, 1, 1), r"field 'x' is a date; MDS holds"),
        (np.zeros(2, bool), r"field 'x' is an array of bool; MDS has uint8, .*: cast it to uint8"),
        (np.array(["a"]), r"field 'x' is an array of <U1; MDS has"),
        (np.array([object()]), r"field 'x' is an array of object; MDS has"),
        (np.zeros((1,) * 64), r"field 'x' is an array of 64 axes; MDS has at most 63"),
    ],
)
def test_what_mds_cannot_hold_is_refused(value, message):
    with pytest.raises(SourceError, match="sample k: " + message):
        encode_mds({"__key__": "k", "x": value})


def test_a_sample_needs_a_field_a_short_key_and_names_in_utf8():
    with pytest.raises(SourceError, match="sample k has no fields"):
        encode_mds({"__key__": "k"})
    with pytest.raises(SourceError, match=r"sample k: the name of field '.*ud800' is not UTF-8; rename it"):
        encode_mds({"__key__": "k", "\ud800": 1})
    with pytest.raises(SourceError, match="a key of MDS has at most 65,536"):
        encode_mds({"__key__": "k" * 65_537, "x": 1})


def value_or_damage(columns, data):
    try:
        return columns.sample(memoryview(data), "k")["x"]
    except DamagedError as err:
        return err


@given(st.sampled_from(ENCODINGS), st.binary(max_size=60))
def test_no_bytes_crash_a_decoder(name, data):
    """It gives a value no larger than what it was given allows, or says on one line that the sample is damaged."""
    columns = Columns([("x", name)], "it")
    head = b"" if columns.sizes[0] is not None else struct.pack("<I", len(data))
    value = value_or_damage(columns, head + data)
    if isinstance(value, DamagedError):
        assert str(value).startswith("sample k")
        assert "\n" not in str(value)
    elif isinstance(value, np.ndarray):
        assert value.nbytes <= 8 * len(data)
    elif hasattr(value, "__len__"):
        assert len(plain(value)) <= len(data)


@given(ARRAYS | st.lists(JSON, max_size=3) | TEXT, st.data())
def test_a_flipped_bit_in_a_value_is_a_value_or_damage(value, data):
    encoded = encode_mds({"__key__": "k", "x": value})
    blob = bytearray(encoded.blob)
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    found = value_or_damage(columns_for(encoded), blob)
    assert not isinstance(found, DamagedError) or str(found).startswith("sample k")


@pytest.mark.parametrize(
    ("encoding", "data", "reason"),
    [
        ("str", b"\xff", "the column x holds what is not str"),
        ("json", b"{", "the column x holds what is not json"),
        ("json", b"[" * 100_000, "the column x holds what is not json"),
        ("str_int", b"1.5", "the column x holds what is not str_int"),
        ("str_int", b"9" * 5000, "the column x holds what is not str_int"),
        ("str_decimal", b"one", "no decimal number"),
        ("ndarray", b"\x07\x04\x01", "an array of the type 7"),
        ("ndarray", b"", "an array of the type None"),
        ("ndarray", b"\x08", "an array without a shape"),
        ("ndarray", b"\x08\x04\x02\x00", r"1 bytes for an array of uint8 of shape \(2,\)"),
        ("ndarray", b"\x08\x0b" + b"\xff" * 16, "for an array of uint8 of shape"),
        ("ndarray:float32", b"\x04\x01\x00\x00", "for an array of float32"),
        ("pil", struct.pack("<III", 2**32 - 1, 2**32 - 1, 3) + b"RGB", "for an array of uint8"),
        ("pil", struct.pack("<III", 2**32 - 1, 2**32 - 1, 1) + b"1", "for an array of uint8"),
        ("pil", struct.pack("<III", 1, 1, 3) + b"XYZ\0", "an image of the mode 'XYZ'"),
        ("pil", struct.pack("<III", 1, 1, 2**32 - 1) + b"RGB\0\0\0", "an image of the mode"),
        ("jpegarray", struct.pack("<I", 2**32 - 1), "the column x holds what is not jpegarray"),
        ("jpegarray", struct.pack("<II", 1, 5) + b"123", "a list of 1 items that do not fill it"),
        ("list[png]", struct.pack("<III", 0, 1, 1) + b"123", "a list of 1 items that do not fill it"),
    ],
)
def test_malformed_values_are_damage(encoding, data, reason):
    columns = Columns([("x", encoding)], "it")
    with pytest.raises(DamagedError, match=f"^sample k: .*{reason}"):
        columns.sample(memoryview(struct.pack("<I", len(data)) + data), "k")


def test_values_that_do_not_fill_their_sample_are_damage():
    columns = Columns([("x", "str"), ("y", "int8")], "it")
    assert columns.sample(memoryview(struct.pack("<I", 2) + b"ab\x07"), "k") == {"__key__": "k", "x": "ab", "y": 7}
    for data in (struct.pack("<I", 2) + b"ab\x07\0", struct.pack("<I", 9) + b"ab\x07", b"\0\0"):
        with pytest.raises(DamagedError, match=r"^sample k"):
            columns.sample(memoryview(data), "k")


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16"]
)
@pytest.mark.parametrize("size", [(5, 3), (8, 1), (1, 9)])
def test_pixels_are_what_numpy_makes_of_them(mode, size):
    width, height = size
    if mode == "I;16":
        image = Image.fromarray(np.arange(width * height, dtype=np.uint16).reshape(height, width) * 4097)
    else:
        pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("RGBA" if mode == "PA" else "RGB").convert("P").convert("PA") if mode == "PA" else image
        image = image if image.mode == mode else image.convert("P" if mode == "P" else mode)
    data = struct.pack("<III", width, height, len(mode)) + mode.encode() + image.tobytes()
    value = parse_encoding("pil").decode(memoryview(data))
    expected = np.asarray(image)
    assert same(value, expected.reshape(height, width, -1))


@pytest.mark.parametrize(
    "name",
    [
        *("pkl", "complex64", "", "str:1", "int:", "list[str]", "ndarray:bool", "ndarray::2", "ndarray:uint8:"),
        *("ndarray:uint8:0,2", "ndarray:uint8:-1", "ndarray:uint8:2:3", "ndarray:uint8:²"),
    ],
)
def test_unknown_encodings_are_refused_by_name(name):
    with pytest.raises(DatasetError, match="the column c "):
        Columns([("c", name)], "it")


def test_columns_need_names_of_their_own():
    for pairs in ([], [("a", "int"), ("a", "str")]):
        with pytest.raises(DatasetError, match="it must have 1 to 65,536 columns of different names"):
            Columns(pairs, "it")
