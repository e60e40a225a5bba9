"""Parquet columns as fields of samples: what each is called, what type it has, and what gives its values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from headrace.errors import DatasetError
from headrace.formats.fields import Field
from headrace.formats.parquet.columns import (
    Get,
    fixed_shape,
    get_arrays,
    get_numbers,
    get_values,
    is_bytes,
    is_float_decimal,
    is_list,
    is_number,
    is_text,
    is_time,
)
from headrace.formats.parquet.footer import Footer
from headrace.formats.parquet.schema import Column, FileSchema
from headrace.formats.table import objects

KEY = "__key__"
ARRAY_FACT = b"headrace.array"
"""In the metadata of a column of bytes that are arrays: their dtype and shape, as JSON."""

_PRIVATE = re.compile(r"__.*__", re.DOTALL)
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def data_columns(schema: FileSchema) -> dict[str, Column]:
    """The columns that are fields of samples: all but the key and what other tools keep for themselves."""
    return {name: column for name, column in schema.columns.items() if not _PRIVATE.fullmatch(name)}


def fields_of(footer: Footer) -> dict[str, Field]:
    """What samples have, by field name, as far as the footer says it."""
    features = footer.features
    return {
        name: _field(footer, column, str(features.get(name, {}).get("_type")))
        for name, column in data_columns(footer.schema).items()
    }


def class_names(footer: Footer) -> dict[str, tuple[str, ...]]:
    """What the whole numbers of a field stand for, where Hugging Face `datasets` noted it."""
    found = {}
    for name, feature in footer.features.items():
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list) and all(isinstance(n, str) for n in names):
            found[name] = tuple(names)
    return found


def values_of(column: Column, array: pa.Array) -> Get:
    """What gives a field's values, by row. Raises DatasetError for types that have none."""
    try:
        if is_file_struct(column.type):
            return get_values(array.field("bytes"))
        if (stored := stored_array(column.field)) is not None:
            return _stored_arrays(array, *stored)
        if (fixed := fixed_shape(column.type)) is not None:
            return get_arrays(array, column.type, fixed[1])
        return get_values(array)
    except DatasetError as err:
        raise type(err)(f"column {column.name!r} is not read: {err}") from err


def column_of(column: Column, array: pa.Array, get: Get) -> npt.NDArray[Any] | None:
    """A field's values as the column of a Table, without a Python call for each number; None where that cannot be.

    `get` gives the values one by one.
    """
    kind = array.type
    if array.null_count or isinstance(kind, pa.BaseExtensionType):
        return None
    if is_number(kind):
        return get_numbers(array)
    if pa.types.is_dictionary(kind) and is_text(kind.value_type) and not array.dictionary.null_count:
        texts: npt.NDArray[Any] = objects(array.dictionary.to_pylist(), len(array.dictionary))
        values: npt.NDArray[Any] = texts[get_numbers(array.indices)]
        return values
    if is_text(kind):
        return objects(array.to_pylist(), len(array))
    if is_bytes(kind) and stored_array(column.field) is None:
        return objects(map(get, range(len(array))), len(array))
    return None


def is_file_struct(kind: pa.DataType) -> bool:
    """Whether it is what Hugging Face `datasets` stores images and sounds as: a file's bytes, and its path.

    As a field of a sample it is the bytes.
    """
    if not pa.types.is_struct(kind) or {kind.field(n).name for n in range(kind.num_fields)} != {"bytes", "path"}:
        return False
    return is_bytes(kind.field("bytes").type) and is_text(kind.field("path").type)


def missing_files(column: Column, array: pa.Array) -> Iterator[int]:
    """The rows of a column of files that hold a path alone: the file is not in the dataset."""
    if is_file_struct(column.type) and array.field("bytes").null_count:
        missing = array.field("bytes").is_null().to_numpy(zero_copy_only=False)
        named = array.field("path").is_valid().to_numpy(zero_copy_only=False)
        yield from np.flatnonzero(missing & named).tolist()


def is_image(data: bytes | bytearray | memoryview) -> bool:
    """Whether bytes begin like an image of a kind that is decoded."""
    head = bytes(data[:16])
    return head.startswith(_IMAGE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def stored_array(field: pa.Field) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """The type and shape of the arrays in a column of bytes that says it holds some."""
    note = (field.metadata or {}).get(ARRAY_FACT)
    if note is None or not pa.types.is_fixed_size_binary(field.type):
        return None
    try:
        value = orjson.loads(note)
        dtype, shape = np.dtype(value["dtype"]).newbyteorder("<"), tuple(value["shape"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    sizes = all(isinstance(size, int) and size >= 0 for size in shape)
    fits = sizes and dtype.kind in "biuf" and dtype.itemsize * int(np.prod(shape)) == field.type.byte_width
    return (dtype, shape) if fits else None


def _stored_arrays(array: pa.Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Get:
    data = get_values(array)

    def get(i: int) -> Any:
        value = data(i)
        return None if value is None else np.frombuffer(value, dtype).reshape(shape)

    return get


def _field(footer: Footer, column: Column, feature: str) -> Field:
    if is_file_struct(column.type):
        first = column.type.get_field_index("bytes")
        return Field("image" if feature == "Image" else "bytes", nullable=_is_nullable(footer, column, first))
    nullable = _is_nullable(footer, column)
    if (stored := stored_array(column.field)) is not None:
        return Field("array", stored[0].name, stored[1], nullable=nullable)
    return _plain_field(column.type, nullable)


def _plain_field(kind: pa.DataType, nullable: bool) -> Field:
    if (fixed := fixed_shape(kind)) is not None:
        return Field("array", _dtype(fixed[0]), fixed[1], nullable=nullable)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_field(kind.storage_type, nullable)
    if pa.types.is_dictionary(kind):
        return _plain_field(kind.value_type, nullable)
    if is_list(kind) and is_number(kind.value_type):
        return Field("array", _dtype(kind.value_type), nullable=nullable)
    if is_number(kind):
        return Field(_number_type(kind), _dtype(kind), nullable=nullable)
    if pa.types.is_null(kind):
        return Field("null", nullable=True)
    return Field(*_other_type(kind), nullable=nullable)


def _number_type(kind: pa.DataType) -> str:
    return "bool" if pa.types.is_boolean(kind) else "int" if pa.types.is_integer(kind) else "float"


def _other_type(kind: pa.DataType) -> tuple[str, str | None]:
    if pa.types.is_decimal(kind):
        return ("float", "float64") if is_float_decimal(kind) else ("str", None)
    if pa.types.is_duration(kind):
        return "int", "int64"
    return "str" if is_text(kind) or is_time(kind) else "bytes" if is_bytes(kind) else "json", None


def _dtype(kind: pa.DataType) -> str:
    return str(np.dtype(kind.to_pandas_dtype()).name)


def _is_nullable(footer: Footer, column: Column, leaf: int | None = None) -> bool:
    """Whether a column may hold None: whether it does, where the footer counts."""
    if not column.field.nullable:
        return False
    leaves = column.leaves if leaf is None else column.leaves[leaf : leaf + 1]
    return any(footer.has_nulls(number) for number in leaves)
