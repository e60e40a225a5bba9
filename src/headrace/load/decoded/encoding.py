"""A decoded sample as one stretch of bytes, from which its arrays are taken as views.

    length of the head (4 bytes)  head: JSON, one entry a field  arrays and byte strings, each from a multiple of 64 on

What comes back is what was put in, to the type. A sample with a value of which that cannot be said is not kept.
Nothing is pickled: the bytes may come from a folder.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.transform import Sample

Blob: TypeAlias = NDArray[np.uint8]

ALIGNMENT = 64
_LENGTH = struct.Struct("<I")
_ARRAY_KINDS = "biufcSUmM"
_JSON = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


class _NotKeptError(Exception):
    """A value that would not come back as it was."""


def aligned(num_bytes: int) -> int:
    """The number of bytes rounded up to where the next array, or sample, may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def encode(sample: Sample) -> Blob | None:
    """The sample's bytes; None for one that cannot be kept."""
    payloads: list[Blob] = []
    try:
        head = orjson.dumps([[name, *_entry(value, payloads)] for name, value in sample.items()], option=_JSON)
    except (_NotKeptError, TypeError):  # TypeError: orjson's, for what JSON has not
        return None
    at = aligned(_LENGTH.size + len(head))
    blob = np.zeros(at + sum(aligned(len(one)) for one in payloads), np.uint8)
    _LENGTH.pack_into(blob.data, 0, len(head))
    blob[_LENGTH.size : _LENGTH.size + len(head)] = np.frombuffer(head, np.uint8)
    for one in payloads:
        blob[at : at + len(one)] = one
        at += aligned(len(one))
    return blob


def decode(data: memoryview, *, copies: bool) -> Sample:
    """The sample in `data`, made by `encode`. Arrays are views of `data`, or with `copies` ones of their own."""
    (length,) = _LENGTH.unpack_from(data)
    at = aligned(_LENGTH.size + length)
    sample: Sample = {}
    for name, kind, *known in orjson.loads(data[_LENGTH.size : _LENGTH.size + length]):
        if kind not in _PAYLOADS:
            sample[name] = _plain(kind, *known)
            continue
        part = data[at : at + known[0]]
        at += aligned(known[0])
        sample[name] = _payload(kind, part, *known[1:])
        if copies and kind == "array":
            sample[name] = sample[name].copy()
    return sample


_PAYLOADS = ("array", "number", "view", "bytes")


def _entry(value: Any, payloads: list[Blob]) -> list[Any]:
    """What the head says of a value; its bytes, if it has some, are added to the payloads."""
    kind = type(value)
    if kind is np.ndarray or isinstance(value, np.generic):
        return _array_entry(value, payloads)
    if kind is bytes or (kind is memoryview and value.format == "B" and value.ndim == 1 and value.contiguous):
        payloads.append(np.frombuffer(value, np.uint8))
        return ["bytes" if kind is bytes else "view", len(value)]
    if kind in (bool, str) or value is None:
        return ["json", value]
    if kind is int:
        return ["int", str(value)]
    if kind is float:
        return ["float", value.hex()]
    if kind in (dict, list) and orjson.loads(orjson.dumps(value, option=_JSON)) == value:
        return ["json", value]
    raise _NotKeptError


def _array_entry(value: NDArray[Any] | np.generic, payloads: list[Blob]) -> list[Any]:
    if value.dtype.kind not in _ARRAY_KINDS or value.dtype.itemsize == 0:
        raise _NotKeptError
    payloads.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return ["number" if isinstance(value, np.generic) else "array", value.nbytes, value.dtype.str, value.shape]


def _payload(kind: str, part: memoryview, dtype: str = "", shape: tuple[int, ...] = ()) -> Any:
    if kind == "view":
        return part
    if kind == "bytes":
        return bytes(part)
    array: NDArray[Any] = np.frombuffer(part, dtype).reshape(shape)
    return array if kind == "array" else array[()]


def _plain(kind: str, value: Any) -> Any:
    if kind == "int":
        return int(value)
    return float.fromhex(value) if kind == "float" else value
