"""`tf.train.Example`, read and written without TensorFlow: a protobuf of named lists of bytes, floats or integers.

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }          each entry: { string key = 1; Feature value = 2; }
    Feature  { oneof { BytesList = 1; FloatList = 2; Int64List = 3; } }
    each list: { repeated ... value = 1; }                  floats and integers packed, or one by one

Reading follows protobuf: unknown fields are passed over, of two entries with one key the last one counts, a list that
comes in parts is joined. Whatever the bytes are, it ends with features or an ExampleError, and what it makes is no
larger than a small multiple of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

BYTES, FLOATS, INTS = 1, 2, 3
"""The kinds of lists, by their field in Feature."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# Tags: a field's number, then its wire type in the lowest three bits.
_FIRST = 1 << 3 | _LENGTH  # Example.features, Features.feature, an entry's key, BytesList.value, packed numbers
_SECOND = 2 << 3 | _LENGTH  # an entry's value; SequenceExample.feature_lists, its first field being like Example's
_ONE_FLOAT = 1 << 3 | _FIXED32
_ONE_INT = 1 << 3 | _VARINT
_KINDS = {kind << 3 | _LENGTH: kind for kind in (BYTES, FLOATS, INTS)}
_FEW = 16
"""So many numbers are handled faster one by one than by numpy."""

Span: TypeAlias = tuple[int, int]
_T = TypeVar("_T")


class Feature(NamedTuple):
    """One named list."""

    kind: int
    """BYTES, FLOATS or INTS; 0 for a feature without a list."""
    values: Sequence[Any] | npt.NDArray[Any]
    """Views of bytes, floats, or integers of 64 bits with their sign; numbers as a list if they are few, else as an
    array of float32 or int64."""


Example: TypeAlias = dict[str, Feature]


class ExampleError(ValueError):
    """Bytes that are no Example."""


def parse_example(data: memoryview) -> Example:
    """The features of a serialized Example, by name; bytes are views into `data`. Raises ExampleError."""
    features: Example = {}
    at, end, is_example = 0, len(data), not len(data)
    while at < end:
        tag, start, at = _next(data, at, end)
        if tag == _FIRST:
            is_example = True
            while start < at:
                inner, entry, start = _next(data, start, at)
                if inner == _FIRST:
                    name, feature = _entry(data, entry, start)
                    features[name] = feature
        elif tag == _SECOND:
            raise ExampleError("it is a SequenceExample")
    if not is_example:
        raise ExampleError("it has no features")
    return features


def serialize_example(features: Mapping[str, Feature]) -> tuple[bytes, dict[str, int]]:
    """The bytes of an Example, its features in order of their names, numbers packed; and where each feature ends."""
    entries = {
        name: _field(_FIRST, _field(_FIRST, name.encode()) + _field(_SECOND, _serialize_feature(features[name])))
        for name in sorted(features)
    }
    data = _field(_FIRST, b"".join(entries.values()))
    ends = accumulate(map(len, entries.values()), initial=len(data) - sum(map(len, entries.values())))
    return data, dict(zip(entries, islice(ends, 1, None), strict=True))


def _entry(data: memoryview, at: int, end: int) -> tuple[str, Feature]:
    name, values = "", list[Span]()
    while at < end:
        tag, start, at = _next(data, at, end)
        if tag == _FIRST:
            try:
                name = str(data[start:at], "utf-8")
            except UnicodeDecodeError as err:
                raise ExampleError("a feature's name is not UTF-8") from err
        elif tag == _SECOND:
            values.append((start, at))
    return name, _feature(data, values)


def _feature(data: memoryview, parts: list[Span]) -> Feature:
    """The feature of a message, which is in one part unless an odd writer has repeated it."""
    kind, lists = 0, list[Span]()
    for at, end in parts:
        while at < end:
            tag, start, at = _next(data, at, end)
            if tag in _KINDS:
                if _KINDS[tag] != kind:  # of a oneof the last one counts
                    kind, lists = _KINDS[tag], []
                lists.append((start, at))
    return Feature(kind, _READERS[kind](data, lists))


def _bytes_list(data: memoryview, lists: list[Span]) -> list[memoryview]:
    values = []
    for at, end in lists:
        while at < end:
            tag, start, at = _next(data, at, end)
            if tag == _FIRST:
                values.append(data[start:at])
    return values


def _float_list(data: memoryview, lists: list[Span]) -> list[float] | npt.NDArray[np.float32]:
    runs = []
    for at, end in lists:
        while at < end:
            tag, start, at = _next(data, at, end)
            if tag in (_FIRST, _ONE_FLOAT):
                if (at - start) % 4:
                    raise ExampleError(f"a packed list of floats has {at - start} bytes")
                runs.append((start, at))
    return _joined(runs, lambda start, to: _floats(data, start, to), np.float32)


def _int_list(data: memoryview, lists: list[Span]) -> list[int] | npt.NDArray[np.int64]:
    runs = []
    for at, end in lists:
        while at < end:
            tag, start, at = _next(data, at, end)
            if tag in (_FIRST, _ONE_INT):
                runs.append((start, at))
    return _joined(runs, lambda start, to: _ints(data, start, to), np.int64)


def _joined(
    runs: list[Span], read: Callable[[int, int], list[_T] | npt.NDArray[Any]], dtype: type
) -> list[_T] | npt.NDArray[Any]:
    """The numbers of all runs; one run unless they are not packed."""
    if len(runs) == 1:
        return read(*runs[0])
    if len(runs) <= _FEW:
        parts = [read(start, to) for start, to in runs]
        if all(isinstance(part, list) for part in parts):
            return [value for part in parts for value in part]
    return np.concatenate([np.array(read(start, to), dtype) for start, to in runs])


def _floats(data: memoryview, start: int, end: int) -> list[float] | npt.NDArray[np.float32]:
    count = (end - start) // 4
    if count <= _FEW:
        return list(struct.unpack_from(f"<{count}f", data, start))
    return np.frombuffer(data, "<f4", count, start)


def _ints(data: memoryview, at: int, end: int) -> list[int] | npt.NDArray[np.int64]:
    """The varints that lie one behind the other in a range."""
    if end - at > _FEW:
        return _many_ints(np.frombuffer(data[at:end], np.uint8))
    values = []
    while at < end:
        value, at = _varint(data, at, end)
        values.append(value - (1 << 64) if value >> 63 else value)
    return values


def _many_ints(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(data < 0x80)
    if len(ends) == len(data):
        return data.astype(np.int64)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise ExampleError("a number without an end")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        raise ExampleError("a number without an end")
    values = np.zeros(len(starts), np.uint64)
    for k in range(longest):
        # Seven bits of each byte, the first ones lowest; what is more than 64 bits falls away, as protobuf has it.
        has = lengths > k
        values[has] |= (data[starts[has] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return values.view(np.int64)


def _next(data: memoryview, at: int, end: int) -> tuple[int, int, int]:
    """The field at `at` of a message that ends at `end`: (tag, where its value begins, where it ends)."""
    tag = data[at]
    at += 1
    if tag >= 0x80:
        tag, at = _varint(data, at - 1, end)
    if not 8 <= tag < 1 << 32:
        raise ExampleError(f"a field numbered {tag >> 3}")
    wire = tag & 7
    if wire == _LENGTH:
        if at < end and data[at] < 0x80:
            to = at + 1 + data[at]
            at += 1
        else:
            length, at = _varint(data, at, end)
            to = at + length
    elif wire == _VARINT:
        to = _varint(data, at, end)[1]
    elif wire in (_FIXED32, _FIXED64):
        to = at + (4 if wire == _FIXED32 else 8)
    else:
        raise ExampleError(f"a field of wire type {wire}")
    if to > end:
        raise ExampleError("a field that reaches behind the end")
    return tag, at, to


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, of 64 bits, and where it ends."""
    value = shift = 0
    for byte in data[at : min(at + 10, end)]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ExampleError("a number without an end")


_READERS: dict[int, Callable[[memoryview, list[Span]], Sequence[Any] | npt.NDArray[Any]]] = {
    0: lambda data, lists: [],
    BYTES: _bytes_list,
    FLOATS: _float_list,
    INTS: _int_list,
}


def _serialize_feature(feature: Feature) -> bytes:
    kind, values = feature
    if kind == 0:
        return b""
    tag = kind << 3 | _LENGTH
    if kind == BYTES:
        return _field(tag, b"".join(_field(_FIRST, value) for value in values))
    if not len(values):
        return _field(tag, b"")
    if kind == FLOATS:
        return _field(tag, _field(_FIRST, np.asarray(values, "<f4").tobytes()))
    if len(values) <= _FEW:
        return _field(tag, _field(_FIRST, b"".join(_to_varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values)))
    return _field(tag, _field(_FIRST, _pack_ints(np.asarray(values, np.int64))))


def _pack_ints(values: npt.NDArray[np.int64]) -> bytes:
    """Integers as varints, negative ones in ten bytes."""
    rest = values.view(np.uint64)
    groups, lengths = [], np.ones(len(rest), np.int64)
    while True:
        groups.append((rest & np.uint64(0x7F)).astype(np.uint8))
        rest = rest >> np.uint64(7)
        more = rest != 0
        if not more.any():
            break
        lengths += more
        groups[-1] |= more.astype(np.uint8) << 7
    table = np.stack(groups, axis=1)
    return table[np.arange(len(groups)) < lengths[:, None]].tobytes()


def _field(tag: int, value: bytes | memoryview) -> bytes:
    """A field of one of the first 15 numbers, with its length in front."""
    return b"".join((bytes((tag,)), _to_varint(len(value)), value))


def _to_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
