"""Samples as a table to be written: the type of each column, and the values that wait as Arrow arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.errors import ManifestError, SourceError
from headrace.formats.fields import Field
from headrace.formats.parquet.encode import MAX_EXACT
from headrace.formats.parquet.fields import ARRAY_FACT, KEY
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
    arrow_type,
    fits,
    grid_in,
    grid_kind,
    has_empty_dict,
    is_kind,
    joined,
    parsed,
    settled,
    shown,
)
from headrace.storage import quoted

_SCALARS: Mapping[str, Kind] = {
    "null": NULL,
    "bool": BOOL,
    "int": INT,
    "float": FLOAT,
    "str": TEXT,
    "bytes": BYTES,
    "image": BYTES,
}
_NULL = Field("null", nullable=True)
_FILE_BYTES, _COLUMN_BYTES, _CHUNK_BYTES = 1024, 256, 384
# At most, of a footer and page headers: for the file, each leaf, and each of its chunks, besides their names.
# Statistics are written of numbers only, so no long text comes into it.


class Columns:
    """What samples have, as far as they were seen: open to change until a row group is written."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        """`fields` are those of the dataset's earlier shards: their types stay, but for what was always None."""
        self._seen = dict(fields)
        self._kinds = {name: _stored_kind(name, field) for name, field in fields.items()}
        self._is_free, self._may_fill, self._is_first = not fields, True, not fields
        self._bytes_per_file = self._bytes_per_group = 0
        self._change({})

    @property
    def fields(self) -> dict[str, Field]:
        """What all samples so far have, by name, in the order of the file."""
        return {name: _field(self._seen[name], kind) for name, kind in self.kinds.items()}

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns in the order of the file: small values first, so that some columns lie near to each other."""
        kinds = {name: settled(kind) for name, kind in self._kinds.items()}
        return dict(sorted(kinds.items(), key=lambda item: (_place(item[1]), item[0])))

    def add(self, key: str, fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
        """Note what a sample has. Raises SourceError if it does not go with those before it; then nothing is noted."""
        changed: dict[str, Kind] = {}
        for name, field in fields.items():
            kind = _value_kind(field, values[name])
            if kind == self._kinds.get(name):
                continue
            try:
                changed[name] = self._joined(name, kind)
            except MismatchError as err:
                raise SourceError(
                    f"sample {quoted(key)}: field {name!r} {err}: a column of a Parquet file has one type"
                ) from err
        self._change(changed)
        for name in self._kinds:
            before, field = self._seen.get(name, None if self._is_first else _NULL), fields.get(name, _NULL)
            if before != field:
                self._seen[name] = _merged(before, field)
        self._is_first = False

    def footer_bytes(self, num_groups: int) -> int:
        """What footer and page headers of a file with so many row groups take, at most."""
        return _FILE_BYTES + self._bytes_per_file + num_groups * self._bytes_per_group

    def fix(self) -> None:
        """From now on only what fits is added: the columns are being written."""
        self._is_free = self._may_fill = False

    def _change(self, changed: Mapping[str, Kind]) -> None:
        if all(self._kinds.get(name) == kind for name, kind in changed.items()) and self._bytes_per_file:
            return
        self._kinds |= changed
        paths = [len(path.encode()) for path, _ in [(KEY, TEXT), *leaves_of(self._kinds)]]
        self._bytes_per_file = sum(_COLUMN_BYTES + 4 * length for length in paths)
        self._bytes_per_group = sum(_CHUNK_BYTES + length for length in paths)

    def _joined(self, name: str, kind: Kind) -> Kind:
        column = self._kinds.get(name)
        if column is None and not self._is_free:
            raise MismatchError("is new, and the file's columns are written already; give it to every sample, or None")
        column = NULL if column is None else column
        if not self._is_free and not fits(column, kind, may_fill=self._may_fill):
            raise MismatchError(f"is {shown(kind)}, in the samples before it is {shown(column)}")
        try:
            found = joined(column, kind)
        except MismatchError as err:
            raise MismatchError(f"is {shown(kind)}, in the samples before it is {shown(column)}") from err
        if has_empty_dict(found):
            raise MismatchError("is or holds an object without members, of which none is known yet; give None")
        return found


def leaves_of(kinds: Mapping[str, Kind]) -> Iterator[tuple[str, str]]:
    """The leaves of columns, as pyarrow calls them, and their kinds."""
    for path, kind in kinds.items():
        if isinstance(kind, list):
            yield from leaves_of({f"{path}.list.element": kind[0]})
        elif isinstance(kind, dict):
            yield from leaves_of({f"{path}.{name}": inner for name, inner in kind.items()})
        else:
            yield path, kind


def schema_of(kinds: Mapping[str, Kind]) -> pa.Schema:
    """The schema of a file with these columns, in their order, behind the keys."""
    fields = [pa.field(KEY, pa.string(), nullable=False)]
    for name, kind in kinds.items():
        grid = grid_in(kind)
        note = None if grid is None else {ARRAY_FACT: orjson.dumps({"dtype": grid[0], "shape": grid[1]})}
        fields.append(pa.field(name, arrow_type(kind), metadata=note))
    return pa.schema(fields)


def column_array(kind: Kind, values: Sequence[Any]) -> pa.Array:
    """The values of a column, None where there is none."""
    if grid_in(kind) is not None:
        return pa.array([None if value is None else value.tobytes() for value in values], arrow_type(kind))
    if isinstance(kind, list) and _are_arrays(kind[0], values):
        return _lists(kind, values)
    plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return pa.array(plain, arrow_type(kind))


def _are_arrays(inner: Kind, values: Sequence[Any]) -> bool:
    return inner in ARRAY_DTYPES and all(value is None or isinstance(value, np.ndarray) for value in values)


def _lists(kind: Kind, values: Sequence[Any]) -> pa.Array:
    """Arrays of one dimension as a column of lists."""
    kept = [value for value in values if value is not None]
    starts = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
    item = arrow_type(kind).value_type
    numbers = np.concatenate(kept) if kept else np.zeros(0, item.to_pandas_dtype())
    missing = pa.array([value is None for value in values], pa.bool_()) if len(kept) < len(values) else None
    numbers = pa.array(np.asarray(numbers, item.to_pandas_dtype()), item)
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), numbers, type=arrow_type(kind), mask=missing)


def _place(kind: Kind) -> int:
    """Where in the file a column of this kind lies."""
    if grid_in(kind) is not None:
        return 3
    return {TEXT: 1, BYTES: 4}.get(kind, 0) if isinstance(kind, str) else 2


def _value_kind(field: Field, value: Any) -> Kind:
    if field.type == "int":
        return _int_kind(abs(value))
    if field.type == "json":
        return parsed(field.dtype or "")
    if field.type != "array":
        return _SCALARS[field.type]
    if value.ndim != 1:
        return grid_kind(value.dtype.name, value.shape)
    return [_int_kind(_largest(value)) if value.dtype.name == INT else value.dtype.name]


def _int_kind(largest: int) -> Kind:
    return SMALL_INT if largest <= MAX_EXACT else INT


def _largest(numbers: Any) -> int:
    return max(-int(numbers.min()), int(numbers.max())) if numbers.size else 0


def _stored_kind(name: str, field: Field) -> Kind:
    """The kind of a column of earlier shards. Raises ManifestError if it is not one that headrace wrote."""
    if field.type == "json":
        try:
            kind: Kind = orjson.loads(field.dtype or "")
        except orjson.JSONDecodeError:
            kind = ""
        if is_kind(kind):
            return kind
    if field.type == "array" and field.dtype in ARRAY_DTYPES:
        return [field.dtype] if field.shape is None or len(field.shape) == 1 else grid_kind(field.dtype, field.shape)
    if field.type in _SCALARS:
        return _SCALARS[field.type]
    raise ManifestError(
        f"field {name!r} of the shards so far is no column that headrace writes (type {field.type!r}, dtype "
        f"{field.dtype!r}): pack all of the dataset anew"
    )


def _merged(before: Field | None, field: Field) -> Field:
    if before is None:
        return field
    merged = before.merged(field)
    is_bytes = "bytes" in (before.type, field.type) and merged.type == "image"
    return Field("bytes", nullable=merged.nullable) if is_bytes else merged


def _field(seen: Field, kind: Kind) -> Field:
    """What a column is as a field: its type, and what all values have in common besides."""
    grid = grid_in(kind)
    if grid is not None:
        return Field("array", *grid, nullable=seen.nullable)
    if isinstance(kind, list) and kind[0] in ARRAY_DTYPES:
        return Field("array", str(kind[0]), seen.shape, nullable=seen.nullable)
    if not isinstance(kind, str):
        return Field("json", orjson.dumps(kind).decode(), nullable=seen.nullable)
    if kind == BYTES:
        return seen
    names = {NULL: "null", BOOL: "bool", INT: "int", FLOAT: "float", TEXT: "str"}
    dtype = kind if kind in (BOOL, INT, FLOAT) else None
    return Field(names[kind], dtype, nullable=seen.nullable)
