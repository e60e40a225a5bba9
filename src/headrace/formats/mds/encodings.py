"""The encodings of MDS columns: from the bytes of one value to the value.

Numbers lie little-endian, as every machine that writes MDS today has them. Encoded images stay the bytes they are; an
image that is stored as its pixels (`pil`) becomes an array. Every decoder checks the length of what it is given before
it makes anything of it, and raises ValueError for what is malformed. Pickles have no decoder.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from headrace.formats.fields import Field

PICKLE = "pkl"

Decoder = Callable[[memoryview], Any]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the values of a column are stored."""

    name: str
    """As `index.json` has it, such as `ndarray:float32:3,4`."""
    size: int | None
    """Bytes of every value; None if they vary."""
    field: Field
    decode: Decoder


_NUMBERS = {
    "int": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
_DTYPES: dict[int | None, np.dtype[Any]] = {
    8: np.dtype("<u1"),
    9: np.dtype("<i1"),
    16: np.dtype("<u2"),
    17: np.dtype("<i2"),
    18: np.dtype("<f2"),
    32: np.dtype("<u4"),
    33: np.dtype("<i4"),
    34: np.dtype("<f4"),
    64: np.dtype("<u8"),
    65: np.dtype("<i8"),
    66: np.dtype("<f8"),
}
ARRAY_TYPES = {(dtype.kind, dtype.itemsize): (code, dtype.name) for code, dtype in _DTYPES.items()}
"""The types that arrays may have, by kind and bytes of an item: the byte that stands for each, and its name."""
ARRAY_TYPE_NAMES = tuple(name for _, name in ARRAY_TYPES.values())

# What Pillow keeps for an image of each mode: the type of a number, and how many a pixel has.
_PIXELS = {
    "L": ("u1", 1),
    "P": ("u1", 1),
    "LA": ("u1", 2),
    "La": ("u1", 2),
    "PA": ("u1", 2),
    "RGB": ("u1", 3),
    "YCbCr": ("u1", 3),
    "HSV": ("u1", 3),
    "LAB": ("u1", 3),
    "RGBA": ("u1", 4),
    "RGBa": ("u1", 4),
    "RGBX": ("u1", 4),
    "CMYK": ("u1", 4),
    "I": ("<i4", 1),
    "F": ("<f4", 1),
    "I;16": ("<u2", 1),
    "I;16L": ("<u2", 1),
    "I;16B": (">u2", 1),
}
_PIL_HEAD = struct.Struct("<III")
_COUNT = struct.Struct("<I")


@functools.lru_cache(1024)
def parse_encoding(name: str) -> Encoding:
    """The encoding of this name. Raises ValueError if there is none, and for pickles."""
    kind, colon, config = name.partition(":")
    if kind == "ndarray":
        return _array_encoding(name, config)
    if colon or name not in _ENCODINGS:
        raise ValueError(f"there is no encoding {name!r}")
    return _ENCODINGS[name]


def _number(name: str, code: str) -> Encoding:
    layout = struct.Struct("<" + code)
    unpack = layout.unpack
    kind = "float" if name.startswith("float") else "int"
    field = Field(kind, "int64" if name == "int" else name)
    return Encoding(name, layout.size, field, lambda data: unpack(data)[0])


def _array_encoding(name: str, config: str) -> Encoding:
    """`ndarray`, `ndarray:float32` or `ndarray:float32:3,4`: what is not said stands before each array's values."""
    dtype, colon, sizes = config.partition(":")
    if not dtype and not colon:
        return Encoding(name, None, Field("array"), _decode_array)
    if dtype not in ARRAY_TYPE_NAMES:
        raise ValueError(f"there is no encoding {name!r}: arrays are of {', '.join(ARRAY_TYPE_NAMES)}")
    stored = np.dtype(dtype).newbyteorder("<")
    if not colon:
        return Encoding(name, None, Field("array", dtype), lambda data: _shaped_array(data, 0, stored))
    parts = sizes.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(f"there is no encoding {name!r}: a shape is like 3,224,224")
    shape = tuple(map(int, parts))
    size = math.prod(shape) * stored.itemsize
    return Encoding(name, size, Field("array", dtype, shape), lambda data: _array(data, 0, stored, shape))


def _decode_array(data: memoryview) -> Any:
    code = data[0] if data else None
    if code not in _DTYPES:
        raise ValueError(f"an array of the type {code}")
    return _shaped_array(data, 1, _DTYPES[code])


def _shaped_array(data: memoryview, at: int, dtype: np.dtype[Any]) -> Any:
    if at >= len(data):
        raise ValueError("an array without a shape")
    num_axes, width = data[at] >> 2, 1 << (data[at] & 3)
    at += 1
    shape = np.frombuffer(data, f"<u{width}", num_axes, at).tolist()
    return _array(data, at + num_axes * width, dtype, shape)


def _array(data: memoryview, at: int, dtype: np.dtype[Any], shape: Sequence[int]) -> Any:
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - at:
        raise ValueError(f"{len(data) - at:,} bytes for an array of {dtype.name} of shape {tuple(shape)}")
    return np.frombuffer(data, dtype, count, at).reshape(shape)


def _decode_pixels(data: memoryview) -> Any:
    """An image as an array (height, width, channels), with what numpy makes of an image of Pillow's in it."""
    width, height, mode_bytes = _PIL_HEAD.unpack_from(data)
    at = _PIL_HEAD.size + mode_bytes
    mode = str(data[_PIL_HEAD.size : at], "utf-8")
    if mode == "1":
        return _bits(data[at:], width, height)
    if mode not in _PIXELS:
        raise ValueError(f"an image of the mode {mode!r}")
    dtype, channels = _PIXELS[mode]
    return _array(data, at, np.dtype(dtype), (height, width, channels))


def _bits(data: memoryview, width: int, height: int) -> Any:
    rows = _array(data, 0, np.dtype("u1"), (height, -(-width // 8)))
    return np.unpackbits(rows, axis=1, count=width).astype(np.bool_)[:, :, np.newaxis]


def _decode_str(data: memoryview) -> str:
    return str(data, "utf-8")


def _decode_decimal(data: memoryview) -> str:
    """A decimal number's digits as they are stored: no other type holds them all."""
    text = str(data, "utf-8")
    try:
        Decimal(text)
    except InvalidOperation as err:
        raise ValueError("text that is no decimal number") from err
    return text


def _decode_json(data: memoryview) -> Any:
    # Not orjson: it rounds whole numbers of more than 64 bits and refuses NaN, both of which Python writes.
    return json.loads(str(data, "utf-8"))


def _as_stored(data: memoryview) -> memoryview:
    return data


def _list_of(decode: Decoder, reserved_bytes: int) -> Decoder:
    """A decoder of lists: bytes of no meaning, the count, the length of each item, the items."""

    def decode_list(data: memoryview) -> list[Any]:
        (count,) = _COUNT.unpack_from(data, reserved_bytes)
        at = reserved_bytes + _COUNT.size
        lengths = np.frombuffer(data, "<u4", count, at).tolist()
        at += 4 * count
        if at + sum(lengths) != len(data):
            raise ValueError(f"a list of {count:,} items that do not fill it")
        items = []
        for length in lengths:
            items.append(decode(data[at : at + length]))
            at += length
        return items

    return decode_list


_ENCODINGS = {name: _number(name, code) for name, code in _NUMBERS.items()} | {
    encoding.name: encoding
    for encoding in (
        Encoding("bytes", None, Field("bytes"), _as_stored),
        Encoding("str", None, Field("str"), _decode_str),
        Encoding("str_int", None, Field("int"), lambda data: int(str(data, "utf-8"))),
        Encoding("str_float", None, Field("float", "float64"), lambda data: float(str(data, "utf-8"))),
        Encoding("str_decimal", None, Field("str"), _decode_decimal),
        Encoding("json", None, Field("json"), _decode_json),
        Encoding("pil", None, Field("array"), _decode_pixels),
        Encoding("jpeg", None, Field("image"), _as_stored),
        Encoding("png", None, Field("image"), _as_stored),
        Encoding("jpeg_array", None, Field("json"), _list_of(_as_stored, 0)),
        Encoding("jpegarray", None, Field("json"), _list_of(_as_stored, 0)),
        Encoding("list[jpeg]", None, Field("json"), _list_of(_as_stored, 4)),
        Encoding("list[png]", None, Field("json"), _list_of(_as_stored, 4)),
        Encoding("list[pil]", None, Field("json"), _list_of(_decode_pixels, 4)),
    )
}
