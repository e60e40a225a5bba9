"""Samples on their way into a Parquet file: each value as bytes of its own, with its type, until a row group is full.

    bool, int, float, str, bytes   as they are
    list of numbers                an array
    array                          its numbers in order, with its shape
    any other list, dict           JSON

What samples may hold is what Parquet has a type for; anything else is refused with a hint what to make of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.errors import SourceError
from headrace.formats.fields import Field
from headrace.formats.parquet.fields import KEY, is_image
from headrace.formats.parquet.kinds import (
    ARRAY_DTYPES,
    BOOL,
    BYTES,
    FLOAT,
    INT,
    NULL,
    SMALL_INT,
    TEXT,
    Kind,
    MismatchError,
    joined,
    parsed,
)
from headrace.formats.shard import Encoded
from headrace.storage import quoted

MAX_EXACT = 2**53
"""Whole numbers up to it are exact as floats."""

_MAX_DEPTH = 32
_SIZE = struct.Struct("<q")
_HINTS = {
    "datetime": "give its isoformat()",
    "date": "give its isoformat()",
    "time": "give its isoformat()",
    "datetime64": "give str(value)",
    "Decimal": "give it as a float or a str",
    "Tensor": "give its .numpy()",
    "set": "give a list",
    "frozenset": "give a list",
}


def encode_parquet(sample: Mapping[str, Any]) -> Encoded:
    """A sample as it will lie in a row group, each field's value as a member. Raises SourceError for what does not."""
    key = sample[KEY]
    parts: list[bytes] = []
    fields: dict[str, Field] = {}
    members: list[tuple[str, int, int]] = []
    at = 0
    for name in sorted(field for field in sample if field != KEY):
        try:
            name.encode()
            fields[name], data = _encoded(sample[name])
        except (ValueError, MismatchError) as err:
            raise SourceError(f"sample {quoted(key)}: field {name!r} {_reason(err)}") from err
        members.append((name, at, len(data)))
        parts.append(data)
        at += len(data)
    if not members:
        raise SourceError(f"sample {quoted(key)} has no fields; return None from the transform to drop it")
    return Encoded(key, b"".join(parts), fields, tuple(members))


def decoded(field: Field, data: memoryview) -> Any:
    """The value that `encode_parquet` made a member of."""
    if field.type == "null":
        return None
    if field.type in ("bytes", "image"):
        return data
    if field.type == "str":
        return str(data, "utf-8")
    if field.type == "array":
        return _array(np.dtype(field.dtype).newbyteorder("<"), data)
    if field.type == "json":
        return _with_bytes(parsed(field.dtype or ""), json.loads(bytes(data[_SIZE.size :])))
    return struct.unpack({"bool": "<?", "int": "<q", "float": "<d"}[field.type], data)[0]


def member_bytes(field: Field, blob: bytes, start: int, length: int) -> int:
    """What a member takes in a row group before it is packed, at most."""
    if field.type == "json":
        return int(_SIZE.unpack_from(blob, start)[0])
    if field.type == "array" and blob[start] == 1:
        itemsize = np.dtype(field.dtype).itemsize
        return length * max(4, itemsize) // itemsize  # Parquet has no numbers of less than 32 bits
    return length


def _encoded(value: Any) -> tuple[Field, bytes]:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        value = value.item() if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 else value
    if value is None:
        return Field("null", nullable=True), b""
    if isinstance(value, bool):
        return Field("bool", BOOL), struct.pack("<?", value)
    if isinstance(value, int):
        return Field("int", INT), _int_bytes(value)
    if isinstance(value, float):
        return Field("float", FLOAT), struct.pack("<d", value)
    if isinstance(value, str):
        return Field("str"), value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return Field("image" if is_image(value) else "bytes"), bytes(value)
    if isinstance(value, list | tuple):
        value = _numbers(value)
    if isinstance(value, np.ndarray):
        return _array_field(value)
    plain, kind = _nested(value, 0)
    text = json.dumps(plain, ensure_ascii=False).encode()
    return Field("json", orjson.dumps(kind).decode()), _SIZE.pack(_nested_bytes(plain)) + text


def _int_bytes(value: int) -> bytes:
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"is {value}, which 64 bits do not hold; give a float or a str")
    return struct.pack("<q", value)


def _numbers(value: list[Any] | tuple[Any, ...]) -> Any:
    """A list of whole numbers, of floats or of bools as an array; any other as it is."""
    types = set(map(type, value))
    if types == {bool}:
        return np.array(value, np.bool_)
    if types == {int} and min(value) >= -(2**63) and max(value) < 2**63:
        return np.array(value, np.int64)
    if types == {float} or (types == {int, float} and all(_is_exact(item) for item in value)):
        return np.array(value, np.float64)
    return value


def _is_exact(value: Any) -> bool:
    return isinstance(value, float) or abs(value) <= MAX_EXACT


def _array_field(value: npt.NDArray[Any]) -> tuple[Field, bytes]:
    _check_dtype(value)
    if value.ndim > 1 and not value.size:
        raise ValueError(f"is an array of shape {value.shape}, without a number in it; give None")
    value = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    shape = struct.pack(f"<B{value.ndim}Q", value.ndim, *value.shape)
    return Field("array", value.dtype.name, value.shape), shape + value.tobytes()


def _check_dtype(value: npt.NDArray[Any]) -> None:
    if value.dtype.name not in ARRAY_DTYPES:
        raise ValueError(f"is an array of {value.dtype}, and columns hold bools, integers and floats: cast it")


def _array(dtype: np.dtype[Any], data: memoryview) -> npt.NDArray[Any]:
    shape = struct.unpack_from(f"<{data[0]}Q", data, 1)
    return np.frombuffer(data[1 + 8 * data[0] :], dtype).reshape(shape)


def _nested(value: Any, depth: int) -> tuple[Any, Kind]:
    """A value as JSON has it, and its kind; bytes are text of as many characters."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"is more than {_MAX_DEPTH} lists and objects deep")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        value = value.item() if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 else value
    if value is None:
        return None, NULL
    if isinstance(value, bool | float):
        return value, BOOL if isinstance(value, bool) else FLOAT
    if isinstance(value, int):
        _int_bytes(value)
        return value, SMALL_INT if abs(value) <= MAX_EXACT else INT
    if isinstance(value, str):
        value.encode()
        return value, TEXT
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("latin-1"), BYTES
    if isinstance(value, np.ndarray):
        _check_dtype(value)
        kind: Kind = value.dtype.name
        for _ in range(value.ndim):
            kind = [kind]
        return value.tolist(), kind
    if isinstance(value, list | tuple):
        return _nested_list(value, depth)
    if isinstance(value, dict):
        return _nested_dict(value, depth)
    name = type(value).__name__
    hint = _HINTS.get(name, "give None, bool, int, float, str, bytes, an array, or lists and dicts of these")
    raise ValueError(f"{'is' if not depth else 'holds'} a {name}, for which Parquet has no type here: {hint}")


def _nested_bytes(plain: Any) -> int:
    if isinstance(plain, list):
        return 4 + sum(map(_nested_bytes, plain))
    if isinstance(plain, dict):
        return 1 + sum(map(_nested_bytes, plain.values()))
    return 4 + len(plain.encode()) if isinstance(plain, str) else 9


def _nested_list(value: list[Any] | tuple[Any, ...], depth: int) -> tuple[Any, Kind]:
    items: list[Any] = []
    kind: Kind = NULL
    for item in value:
        plain, inner = _nested(item, depth + 1)
        items.append(plain)
        kind = joined(kind, inner)
    return items, [kind]


def _nested_dict(value: dict[Any, Any], depth: int) -> tuple[Any, Kind]:
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"holds an object with the name {name!r}, and names are text")
        name.encode()
    made = {name: _nested(inner, depth + 1) for name, inner in value.items()}
    return {name: plain for name, (plain, _) in made.items()}, {name: kind for name, (_, kind) in made.items()}


def _with_bytes(kind: Kind, value: Any) -> Any:
    """A value out of JSON, with text where its kind is bytes turned back."""
    if value is None:
        return None
    if isinstance(kind, list):
        is_plain = isinstance(kind[0], str) and kind[0] != BYTES
        return value if is_plain else [_with_bytes(kind[0], item) for item in value]
    if isinstance(kind, dict):
        return {name: _with_bytes(kind[name], inner) for name, inner in value.items()}
    return value.encode("latin-1") if kind == BYTES else value


def _reason(err: Exception) -> str:
    if isinstance(err, UnicodeEncodeError):
        return "holds text, or is named by text, that is not UTF-8; give bytes"
    if isinstance(err, MismatchError):
        return f"is a list of different things ({err}), and a column has one type: give them fields of their own"
    return str(err)
