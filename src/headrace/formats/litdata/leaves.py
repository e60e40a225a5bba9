"""The leaves of LitData samples: what each encoding's bytes mean. Numbers are little-endian where nothing is said.

    str text                  UTF-8
    int float bool            int64, float64, one byte
    bytes file:X video:X audio:X image:X jpeg tifffile nifti:X mesh:X pdf      as they are
    no_header_numpy:D no_header_tensor:D     a flat array; D is the number of its type in LitData's tables
    numpy                     u32 D, u32 axes, u32 lengths, then the array
    tensor                    the same, but these numbers big-endian
    pil                       u32 width, height and length of the mode's name; the mode, the pixels
    jpeg_array                u32 count, u32 lengths, then the images
    json                      a list or an object, see `json_leaves`

`pickle` and `graph` hold pickled objects: they are refused. An encoding that is not known gives the bytes.
Whatever the bytes are, reading one ends with a value or a ValueError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.errors import DatasetError
from headrace.formats.fields import Field
from headrace.formats.litdata.json_leaves import read_json

Reader = Callable[[memoryview], Any]

# By their numbers in LitData's `constants.py`, whose order is part of the format; None is a type that is not read.
_NUMPY = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bool", None, None, None, None),
)
_TORCH = (
    *("float32", "float32", "float64", "float64", "complex64", "complex64", "complex128", "complex128"),
    *("float16", "float16", None, "uint8", "int8", "int16", "int16", "int32", "int32", "int64", "int64", "bool"),
    "uint16",
)
_PICKLED = ("pickle", "graph")
_IMAGES = ("image", "jpeg")
_MOST_AXES = 32
_MODES = {"I": ("<i4", 1), "F": ("<f4", 1), "I;16": ("<u2", 1), "I;16L": ("<u2", 1), "I;16B": (">u2", 1)}
_BYTE_MODES = ("L P", "LA PA La", "RGB YCbCr LAB HSV", "RGBA RGBX CMYK RGBa")  # of one, two, three, four channels
_MODES |= {mode: ("u1", count) for count, modes in enumerate(_BYTE_MODES, 1) for mode in modes.split()}


def check_encoding(encoding: str, where: str) -> None:
    """Raises DatasetError for leaves that are not read: `where` begins the message."""
    kind = encoding.partition(":")[0]
    if kind in _PICKLED:
        raise DatasetError(
            f"{where}: a leaf is stored as {kind!r}, which holds pickled objects, and reading those may run anything: "
            "write the dataset anew with values that need no pickle (numbers, str, bytes, arrays, images)"
        )
    if kind in ("no_header_numpy", "no_header_tensor") and _dtype_of(encoding) is None:
        raise DatasetError(f"{where}: a leaf is stored as {encoding!r}, a type that is not known, or not a number's")


def leaf_field(encoding: str) -> Field:
    """What a leaf of this encoding is, as far as the encoding says."""
    kind = encoding.partition(":")[0]
    if kind in _IMAGES:
        return Field("image")
    if kind in ("numpy", "tensor", "pil"):
        return Field("array")
    if kind in ("no_header_numpy", "no_header_tensor"):
        return Field("array", _dtype_of(encoding))
    return _FIELDS.get(kind, Field("bytes"))


def leaf_reader(encoding: str) -> Reader:
    """What makes a value of a leaf's bytes, or raises ValueError."""
    kind = encoding.partition(":")[0]
    if kind in ("no_header_numpy", "no_header_tensor"):
        dtype = np.dtype(_dtype_of(encoding))
        return lambda data: np.frombuffer(data, dtype)
    return _READERS.get(kind, lambda data: data)


def observed(field: Field, value: Any) -> Field:
    """The field with what one value adds to it: an array's type and shape."""
    return Field("array", value.dtype.name, value.shape) if isinstance(value, np.ndarray) else field


def _dtype_of(encoding: str) -> str | None:
    kind, _, number = encoding.partition(":")
    table = _NUMPY if kind == "no_header_numpy" else _TORCH
    return table[int(number)] if number.isascii() and number.isdigit() and int(number) < len(table) else None


def _text(data: memoryview) -> str:
    return str(data, "utf-8")


def _number(form: str) -> Reader:
    layout = struct.Struct(form)

    def read(data: memoryview) -> Any:
        if len(data) != layout.size:
            raise ValueError(f"a number of {len(data)} bytes instead of {layout.size}")
        return layout.unpack(data)[0]

    return read


def _array(order: str, table: tuple[str | None, ...]) -> Reader:
    def read(data: memoryview) -> Any:
        number, num_axes = _numbers(data, order, 0, 2)
        dtype = table[number] if number < len(table) else None
        if dtype is None or num_axes > _MOST_AXES:
            raise ValueError(f"an array of type {number} with {num_axes} axes")
        shape = _numbers(data, order, 8, num_axes)
        return _shaped(data[8 + 4 * num_axes :], np.dtype(dtype), shape)

    return read


def _pixels(data: memoryview) -> Any:
    width, height, length = _numbers(data, "<", 0, 3)
    mode, pixels = str(data[12 : 12 + length], "utf-8"), data[12 + length :]
    if mode == "1":  # eight pixels a byte, each row begins with one
        rows = _shaped(pixels, np.dtype("u1"), (height, -(-width // 8)))
        return np.unpackbits(rows, axis=1, count=width).astype(bool)
    if mode not in _MODES:
        raise ValueError(f"an image of mode {mode[:20]!r}")
    dtype, channels = _MODES[mode]
    return _shaped(pixels, np.dtype(dtype), (height, width) if channels == 1 else (height, width, channels))


def _images(data: memoryview) -> list[memoryview]:
    (count,) = _numbers(data, "<", 0, 1)
    lengths = _numbers(data, "<", 4, count)
    at, images = 4 + 4 * count, []
    for length in lengths:
        images.append(data[at : at + length])
        at += length
    if at != len(data):
        raise ValueError(f"images of {at:,} bytes in {len(data):,}")
    return images


def _numbers(data: memoryview, order: str, at: int, count: int) -> tuple[int, ...]:
    if at + 4 * count > len(data):
        raise ValueError(f"{count:,} numbers that reach behind the end of {len(data):,} bytes")
    return struct.unpack_from(f"{order}{count}I", data, at)


def _shaped(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of {dtype} of shape {shape} in {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


_FIELDS = {
    "str": Field("str"),
    "text": Field("str"),
    "int": Field("int", "int64"),
    "float": Field("float", "float64"),
    "bool": Field("bool", "bool"),
    "json": Field("json"),
    "jpeg_array": Field("json", "bytes"),
}
_READERS: dict[str, Reader] = {
    "str": _text,
    "text": _text,
    "int": _number("<q"),
    "float": _number("<d"),
    "bool": _number("<?"),
    "json": read_json,
    "numpy": _array("<", _NUMPY),
    "tensor": _array(">", _TORCH),
    "pil": _pixels,
    "jpeg_array": _images,
}
