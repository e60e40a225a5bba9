"""Arrow columns as Python values, one row at a time and without an object a value beforehand.

    bool, int, float               bool, int, float
    decimal                        float up to 15 digits, which a float holds exactly; else str
    date, time, timestamp          str, as 2024-05-01, 10:30:00.000001, 2024-05-01 10:30:00.000001; a moment in a time
                                   zone is given in UTC, with a Z behind it
    duration                       int, in the column's unit
    string                         str
    binary, of fixed size too      memoryview of the column, not copied
    list of numbers                array, a view of the column; a list where some of the numbers are None
    lists of fixed sizes, tensor   array of this shape, likewise
    any other list, struct, map    list, dict, dict; in them numbers are in lists, and bytes are bytes
    dictionary, extension          what it encodes, what it is stored as
    null                           None

Times are text because no other format of a shard has a type for them, and text keeps nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import DamagedError, DatasetError

Get = Callable[[int], Any]
"""A row's value, by its number."""

FLOAT_DIGITS = 15
"""Decimal digits that survive a double."""


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    types = pa.types
    views = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(views or types.is_fixed_size_binary(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether numpy has this type: a whole number, a float or a bool."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_time(kind: pa.DataType) -> bool:
    """Whether a column of this type holds dates or times of day."""
    return bool(pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    types = pa.types
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or views)


def is_float_decimal(kind: pa.DataType) -> bool:
    """Whether a column of this type holds decimals that a float can stand for."""
    return bool(pa.types.is_decimal(kind)) and kind.precision <= FLOAT_DIGITS


def get_values(array: pa.Array) -> Get:
    """What gives a column's values. Raises DatasetError for a type that has none here."""
    return _or_none(array, _getter(array, inside=False))


def get_numbers(array: pa.Array) -> npt.NDArray[Any]:
    """A column of numbers, none of which is missing, as an array."""
    return _dense(array)


def fixed_shape(kind: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]] | None:
    """The type of the numbers and the shape of an array of fixed size, such as a list of two lists of three."""
    shape: list[int] = []
    if isinstance(kind, pa.FixedShapeTensorType):
        straight = kind.permutation is None or list(kind.permutation) == sorted(kind.permutation)
        return (kind.value_type, tuple(kind.shape)) if straight and is_number(kind.value_type) else None
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return (kind, tuple(shape)) if shape and all(shape) and is_number(kind) else None


def _getter(array: pa.Array, *, inside: bool) -> Get:
    """Values of rows that are not None. `inside` a list or struct, numbers come in lists."""
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _getter(array.storage, inside=inside)
    if types.is_null(kind):
        return lambda i: None
    if types.is_dictionary(kind):
        return _entries(array, inside=inside)
    if types.is_duration(kind):
        return _numbers(array.view(pa.int64()))
    if is_number(kind):
        return _numbers(array)
    if types.is_decimal(kind):
        return _numbers(array.cast(pa.float64())) if is_float_decimal(kind) else _texts(array.cast(pa.large_string()))
    if is_text(kind) or is_time(kind):
        return _texts(_times(array) if is_time(kind) else array)
    if is_bytes(kind):
        return _bytes(array, inside=inside)
    if types.is_struct(kind):
        return _structs(array)
    if types.is_map(kind):
        return _maps(array)
    if is_list(kind):
        return _lists(array, inside=inside)
    raise DatasetError(f"it has the type {kind}, which headrace does not read")


def _or_none(array: pa.Array, get: Get) -> Get:
    if not array.null_count or pa.types.is_null(array.type):
        return get
    is_null = _numpy(array.is_null()).data
    return lambda i: None if is_null[i] else get(i)


def _numbers(array: pa.Array) -> Get:
    return _dense(array).data.__getitem__


def _dense(array: pa.Array) -> npt.NDArray[Any]:
    """Numbers as numpy has them, whatever stands where there is none."""
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    values = _numpy(array)
    return values.astype(np.float32) if values.dtype == np.float16 else values  # memoryviews have no half floats


def _numpy(array: pa.Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _times(array: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(array.type) or array.type.tz is None:
        return array.cast(pa.large_string())
    import pyarrow.compute as pc  # takes longer to import than all of this folder, and few files have such a column

    text = array.cast(pa.timestamp(array.type.unit)).cast(pa.large_string())
    return pc.binary_join_element_wise(text, pa.scalar("Z", pa.large_string()), pa.scalar("", pa.large_string()))


def _texts(array: pa.Array) -> Get:
    starts, text = _parts(array.cast(pa.large_string()) if pa.types.is_string_view(array.type) else array)
    return lambda i: str(text[starts[i] : starts[i + 1]], "utf-8")


def _bytes(array: pa.Array, *, inside: bool) -> Get:
    view = _fixed_views(array) if pa.types.is_fixed_size_binary(array.type) else _views(array)
    return (lambda i: bytes(view(i))) if inside else view


def _views(array: pa.Array) -> Get:
    starts, data = _parts(array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array)
    return lambda i: data[starts[i] : starts[i + 1]]


def _fixed_views(array: pa.Array) -> Get:
    width, first, data = array.type.byte_width, array.offset, _view(array.buffers()[1])
    return lambda i: data[(first + i) * width : (first + i + 1) * width]


def _parts(array: pa.Array) -> tuple[memoryview, memoryview]:
    """Where each value begins, and all their bytes."""
    _, offsets, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    return _starts(array, offsets, np.dtype(np.int64 if wide else np.int32)), _view(data)


def _starts(array: pa.Array, offsets: pa.Buffer | None, dtype: np.dtype[Any]) -> memoryview:
    if offsets is None or not len(array):
        return np.zeros(1, dtype).data
    return np.frombuffer(offsets, dtype)[array.offset : array.offset + len(array) + 1].data


def _view(buffer: pa.Buffer | None) -> memoryview:
    return memoryview(buffer if buffer is not None else b"").cast("B")


def _entries(array: pa.Array, *, inside: bool) -> Get:
    entry, number = _or_none(array.dictionary, _getter(array.dictionary, inside=inside)), _numbers(array.indices)
    return lambda i: entry(number(i))


def _structs(array: pa.Array) -> Get:
    fields = [array.type.field(number).name for number in range(array.type.num_fields)]
    gets = [(name, _inner(array.field(number))) for number, name in enumerate(fields)]
    return lambda i: {name: get(i) for name, get in gets}


def _maps(array: pa.Array) -> Get:
    starts = _numpy(array.offsets).data
    key, item = _inner(array.keys), _inner(array.items)
    # Of equal keys the last one counts: so Parquet has it.
    return lambda i: {key(at): item(at) for at in range(starts[i], starts[i + 1])}


def _inner(array: pa.Array) -> Get:
    return _or_none(array, _getter(array, inside=True))


def _lists(array: pa.Array, *, inside: bool) -> Get:
    starts, ends, values = _extents(array)
    if is_number(values.type):
        return _number_lists(starts, ends, values, inside=inside)
    item = _inner(values)
    return lambda i: [item(at) for at in range(starts[i], ends[i])]


def _number_lists(starts: memoryview, ends: memoryview, values: pa.Array, *, inside: bool) -> Get:
    if values.null_count:
        return _lists_with_holes(starts, ends, values, inside=inside)
    numbers = _numpy(values)
    return (lambda i: numbers[starts[i] : ends[i]].tolist()) if inside else (lambda i: numbers[starts[i] : ends[i]])


def _lists_with_holes(starts: memoryview, ends: memoryview, values: pa.Array, *, inside: bool) -> Get:
    item, holes = _inner(values), np.concatenate(([0], np.cumsum(_numpy(values.is_null())))).data
    numbers = _numpy(values.fill_null(False if pa.types.is_boolean(values.type) else 0))

    def get(i: int) -> Any:
        if inside or holes[starts[i]] != holes[ends[i]]:
            return [item(at) for at in range(starts[i], ends[i])]
        return numbers[starts[i] : ends[i]]

    return get


def _extents(array: pa.Array) -> tuple[memoryview, memoryview, pa.Array]:
    """Where each list begins and ends in the values of all."""
    kind, offsets = array.type, _numpy(array.offsets)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return offsets.data, (offsets + _numpy(array.sizes)).data, array.values
    return offsets[:-1].data, offsets[1:].data, array.values


def get_arrays(array: pa.Array, kind: pa.DataType, shape: tuple[int, ...]) -> Get:
    """What gives a column's values: lists that are arrays of one shape, as the type `kind` of fixed sizes has it.

    A value is a list where some of its numbers are None. Raises DamagedError for lists of other lengths.
    """
    starts, ends, numbers = _extents(array)
    sizes, has_holes = shape if pa.types.is_fixed_size_list(kind) else (math.prod(shape),), False
    _check_lengths(array, sizes[0])
    for size in sizes[1:]:
        _check_lengths(numbers, size)
        has_holes |= bool(numbers.null_count)
        numbers = numbers.flatten()
    if has_holes or numbers.null_count:
        return _or_none(array, _arrays_with_holes(_lists(array, inside=True), numbers.type, shape))
    dense, step = _numpy(numbers), math.prod(sizes[1:])
    return _or_none(array, lambda i: dense[starts[i] * step : ends[i] * step].reshape(shape))


def _arrays_with_holes(listed: Get, kind: pa.DataType, shape: tuple[int, ...]) -> Get:
    dtype = np.dtype(kind.to_pandas_dtype())

    def get(i: int) -> Any:
        value = listed(i)
        return value if _has_hole(value) else np.array(value, dtype).reshape(shape)

    return get


def _has_hole(value: Any) -> bool:
    return any(map(_has_hole, value)) if isinstance(value, list) else value is None


def _check_lengths(array: pa.Array, size: int) -> None:
    starts, ends, _ = _extents(array)
    lengths = np.asarray(ends) - np.asarray(starts)
    if np.any((lengths != size) & _numpy(array.is_valid())):
        raise DamagedError(f"it has lists of other lengths than {size}, which all should have")
