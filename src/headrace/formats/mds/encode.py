"""Samples as MDS holds them: each field is a column, whose encoding follows from the value's type.

int               int         whole numbers of 64 bits
float             float64
str               str
bytes             bytes       `jpeg` and `png` for fields of that extension
numpy array       ndarray     any shape; the dtype is that of the dataset's first sample
bool, None        json
dict, list        json
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from headrace.errors import SourceError
from headrace.formats.fields import Field
from headrace.formats.mds.columns import KEY, MAX_KEY_BYTES
from headrace.formats.mds.compression import MAX_SHARD_BYTES
from headrace.formats.mds.encodings import ARRAY_TYPE_NAMES, ARRAY_TYPES
from headrace.formats.shard import Encoded
from headrace.storage import quoted

_IMAGES = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png"}
_ENCODINGS = {
    "bytes": "bytes",
    "str": "str",
    "int": "int",
    "float": "float64",
    "array": "ndarray",
    "bool": "json",
    "null": "json",
    "json": "json",
}
_OF_FIXED_SIZE = ("int", "float")
_MAX_SAMPLE_BYTES = MAX_SHARD_BYTES - (64 << 20)  # the rest is for what a shard says of itself
_MAX_AXES = 63
_BYTES, _IMAGE, _STR, _BOOL, _NULL, _JSON = map(Field, ("bytes", "image", "str", "bool", "null", "json"))
_INT, _FLOAT = Field("int", "int64"), Field("float", "float64")
_SHAPE_TYPES = ("<u1", "<u2", "<u4", "<u8")


def encode_mds(sample: Mapping[str, Any]) -> Encoded:
    """A sample as a row of a shard. Raises SourceError for what MDS cannot hold."""
    key = sample[KEY]
    if len(sample) < 2:
        raise SourceError(f"sample {quoted(key)} has no fields; return None from the transform to drop it")
    fields: dict[str, Field] = {}
    lengths, bodies = [], []
    for name in sorted(sample):
        _check_name(key, name)
        field, data = _encoded(key, name, sample[name])
        if name != KEY:
            fields[name] = field
        if field.type not in _OF_FIXED_SIZE:
            lengths.append(len(data))
        bodies.append(data)
    num_bytes = sum(map(len, bodies))
    if num_bytes > _MAX_SAMPLE_BYTES:
        raise SourceError(f"sample {quoted(key)} has {num_bytes:,} bytes, more than a shard of MDS can hold; cut it up")
    blob = b"".join((struct.pack(f"<{len(lengths)}I", *lengths), *bodies))
    members = _members(fields, bodies, sorted(sample), len(blob) - num_bytes)
    return Encoded(key, blob, fields, members, xxhash.xxh3_64_intdigest(blob))


def encoding_of(name: str, field: Field) -> str:
    """The encoding of the column that is written for a field."""
    if field.type == "image":
        return _IMAGES.get(_extension(name), "jpeg")  # whose readers take every kind of image, by its content
    return _ENCODINGS[field.type]


def kind_of(name: str, field: Field) -> str:
    """What all values of a column have in common: its encoding, and the type of its arrays."""
    return f"ndarray of {field.dtype}" if field.type == "array" else encoding_of(name, field)


def _check_name(key: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as err:
        raise SourceError(f"sample {quoted(key)}: the name of field {name!r} is not UTF-8; rename it") from err


def _members(
    fields: Mapping[str, Field], bodies: list[bytes], names: list[str], at: int
) -> tuple[tuple[str, int, int], ...]:
    """Where the fields that are bytes lie in the sample."""
    members = []
    for name, body in zip(names, bodies, strict=True):
        if name in fields and fields[name].type in ("bytes", "image"):
            members.append((name, at, len(body)))
        at += len(body)
    return tuple(members)


def _encoded(key: str, name: str, value: Any) -> tuple[Field, bytes]:
    if isinstance(value, bytes | bytearray | memoryview):
        return (_IMAGE if _extension(name) in _IMAGES else _BYTES), bytes(value)
    if isinstance(value, str):
        return _STR, _text(key, name, value)
    if value is None or isinstance(value, bool | np.bool_):
        return (_NULL if value is None else _BOOL), orjson.dumps(None if value is None else bool(value))
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return _encoded(key, name, value[()])
    if isinstance(value, int | np.integer):
        return _INT, _whole_number(key, name, int(value))
    if isinstance(value, float | np.floating):
        return _FLOAT, struct.pack("<d", value)
    if isinstance(value, np.ndarray):
        return _array(key, name, value)
    if isinstance(value, dict | list | tuple):
        return _JSON, _object(key, name, value)
    raise _error(
        key,
        name,
        f"is a {type(value).__name__}; MDS holds bytes, str, numbers, dict, list and numpy arrays: convert it in the "
        "transform",
    )


def _error(key: str, name: str, what: str) -> SourceError:
    return SourceError(f"sample {quoted(key)}: field {name!r} {what}")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _text(key: str, name: str, value: str) -> bytes:
    try:
        data = value.encode()
    except UnicodeEncodeError as err:
        raise _error(key, name, "holds text that is not UTF-8; give bytes") from err
    if name == KEY and len(data) > MAX_KEY_BYTES:
        raise _error(key, name, f"has {len(data):,} bytes: a key of MDS has at most {MAX_KEY_BYTES:,}")
    return data


def _whole_number(key: str, name: str, value: int) -> bytes:
    try:
        return struct.pack("<q", value)
    except struct.error as err:
        raise _error(key, name, f"is {value:,}, which 64 bits cannot hold; give it as text") from err


def _array(key: str, name: str, value: npt.NDArray[Any]) -> tuple[Field, bytes]:
    code, dtype = ARRAY_TYPES.get((value.dtype.kind, value.dtype.itemsize), (None, ""))
    if code is None:
        way = "uint8" if value.dtype.kind == "b" else "one of them"
        raise _error(
            key, name, f"is an array of {value.dtype}; MDS has {', '.join(ARRAY_TYPE_NAMES)}: cast it to {way}"
        )
    if value.ndim > _MAX_AXES:
        raise _error(key, name, f"is an array of {value.ndim} axes; MDS has at most {_MAX_AXES}")
    width = next(power for power in range(4) if max(value.shape) < 1 << (8 << power))
    shape = np.array(value.shape, _SHAPE_TYPES[width]).tobytes()
    data = (value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))).tobytes()
    return Field("array", dtype, value.shape), bytes((code, value.ndim << 2 | width)) + shape + data


def _object(key: str, name: str, value: Any) -> bytes:
    try:
        data = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as err:
        raise _error(key, name, f"cannot be stored as JSON: {err}") from err
    if b"null" not in data:
        return data
    # orjson has written null for what is not finite too, which Python's own JSON keeps as NaN and Infinity.
    return json.dumps(value, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return orjson.loads(orjson.dumps(value))
