"""Types of values as they are found in samples: what two samples have in common, and what a column of it is.

A *kind* is a leaf's name, a list of one kind, or a dict of kinds by name; as JSON it stands in a manifest's fields.
Arrays of several dimensions are leaves such as `uint8[2,3]`, since all values of a column share the shape. A column has
one type in the whole dataset, though samples show it bit by bit: a field may be None at first, a list empty, a number
whole. So kinds are joined until the first row group is written, and from then on must fit.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa

Kind: TypeAlias = "str | list[Kind] | dict[str, Kind]"

NULL, BOOL, INT, FLOAT, TEXT, BYTES = "null", "bool", "int64", "float64", "string", "binary"
SMALL_INT = "int53"
"""Whole numbers that a float holds exactly: in a column with fractions they are floats."""

_LEAVES = {NULL: pa.null(), TEXT: pa.string(), BYTES: pa.binary()}
ARRAY_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""The numpy types that a column has."""


_GRID = re.compile(r"(\w+)\[(\d+(?:,\d+)+)\]")


class MismatchError(Exception):
    """Two kinds have nothing in common; says what they are."""


def joined(one: Kind, other: Kind) -> Kind:
    """What values of both kinds are. Raises MismatchError."""
    if one == other or other == NULL:
        return one
    if one == NULL:
        return other
    if isinstance(one, list) and isinstance(other, list):
        return [joined(one[0], other[0])]
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {name: joined(one.get(name, NULL), kind) for name, kind in other.items()}
    numbers = {one, other} if isinstance(one, str) and isinstance(other, str) else set()
    if numbers == {SMALL_INT, INT}:
        return INT
    if numbers == {SMALL_INT, FLOAT}:
        return FLOAT
    raise MismatchError(f"{shown(one)} and {shown(other)}")


def fits(column: Kind, kind: Kind, *, may_fill: bool) -> bool:
    """Whether a column that is written already takes values of this kind.

    With `may_fill` what was None in all values so far may become something.
    """
    if kind == NULL or column == kind:
        return True
    if column == NULL:
        return may_fill
    if isinstance(column, list) and isinstance(kind, list):
        return fits(column[0], kind[0], may_fill=may_fill)
    if isinstance(column, dict) and isinstance(kind, dict):
        return all(name in column and fits(column[name], inner, may_fill=may_fill) for name, inner in kind.items())
    return kind == SMALL_INT and column in (INT, FLOAT)


def settled(kind: Kind) -> Kind:
    """The kind of a column of such values: whole numbers have one type."""
    if isinstance(kind, list):
        return [settled(kind[0])]
    if isinstance(kind, dict):
        return {name: settled(inner) for name, inner in kind.items()}
    return INT if kind == SMALL_INT else kind


def has_empty_dict(kind: Kind) -> bool:
    """Whether some object has no members, for which Parquet has no type."""
    if isinstance(kind, list):
        return has_empty_dict(kind[0])
    return isinstance(kind, dict) and (not kind or any(map(has_empty_dict, kind.values())))


def grid_kind(dtype: str, shape: tuple[int, ...]) -> Kind:
    """The kind of an array of several dimensions."""
    return f"{dtype}[{','.join(map(str, shape))}]"


def grid_in(kind: Kind) -> tuple[str, tuple[int, ...]] | None:
    """Type and shape of an array of several dimensions; None for anything else."""
    found = _GRID.fullmatch(kind) if isinstance(kind, str) else None
    return (found[1], tuple(map(int, found[2].split(",")))) if found else None


def arrow_type(kind: Kind) -> pa.DataType:
    """The type of a column."""
    if (grid := grid_in(kind)) is not None:
        return pa.binary(np.dtype(grid[0]).itemsize * math.prod(grid[1]))
    if isinstance(kind, list):
        return pa.list_(pa.field("element", arrow_type(kind[0])))
    if isinstance(kind, dict):
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in kind.items()])
    return _LEAVES[kind] if kind in _LEAVES else pa.from_numpy_dtype(np.dtype(INT if kind == SMALL_INT else kind))


@lru_cache(maxsize=256)
def parsed(text: str) -> Kind:
    """The kind that a text is, which `encode` or this module made."""
    kind: Kind = orjson.loads(text)
    return kind


def is_kind(value: Any, depth: int = 0) -> bool:
    """Whether what was read from JSON is a kind."""
    if isinstance(value, list):
        return depth < 32 and len(value) == 1 and is_kind(value[0], depth + 1)
    if isinstance(value, dict):
        return depth < 32 and all(is_kind(inner, depth + 1) for inner in value.values())
    return value in (*_LEAVES, *ARRAY_DTYPES)


def shown(kind: Kind) -> str:
    """A kind in an error."""
    text = str(settled(kind)).replace("'", "")
    return text if len(text) <= 80 else text[:80] + "..."
