"""What is known of a field before any sample is looked at.

Whether a field of a batch is a tensor or a list must not depend on the luck of the samples that met in it, so every
step says beforehand what it makes of each field. A set of fields is a dict from field name to one of:

    ArraySpec   arrays of one dtype and one shape: the batch is a tensor
    Ragged      arrays of one dtype whose shape varies in the axes that are None: the batch is a list
    Encoded     stored bytes that have not been decoded
    None        anything else: text, objects, unknown

A field that is missing from the dict is one of which nothing is known, because a function without declared shapes
came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError

Sample: TypeAlias = dict[str, Any]
"""One sample: `__key__` (str) and its fields by name."""

Rows: TypeAlias = Mapping[str, NDArray[Any]]
"""Where fields of a sample are to lie in their batch, by name."""

NO_ROWS: Rows = MappingProxyType({})


@dataclass(frozen=True)
class ArraySpec:
    """Arrays of one dtype and one shape. `()` is the shape of a number."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))


@dataclass(frozen=True)
class Ragged:
    """Arrays of one dtype and rank whose size varies along the axes that are None: `(None, None, 3)` are images."""

    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _dtype_name(self.dtype))


@dataclass(frozen=True)
class Encoded:
    """Stored bytes. `image_size` is (height, width) where every image of the field has the same one, else None."""

    image_size: tuple[int, int] | None = None


FieldSpec: TypeAlias = ArraySpec | Ragged | Encoded | None
Fields: TypeAlias = dict[str, FieldSpec]


class Op(Protocol):
    """One step of a chain: a small frozen description that is called on samples, from several threads at once.

    One that has `into(rows, sample)` or `into(rows, sample, rng)` too may, as the last of a chain, write what it makes
    of a field into the field's row, and give that very array; what it does not, is copied there.
    """

    @property
    def takes_rng(self) -> bool:
        """Whether it is called as `op(sample, rng)` instead of `op(sample)`."""

    # `(sample)` or `(sample, rng)`: the one signature that a type checker takes for both.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The sample that it makes of this one, or (a filter) whether to keep it."""

    def output_fields(self, fields: Fields) -> Fields:
        """What is known of the fields after this step, from what is known before it."""


def array_spec(dtype: str, shape: tuple[int | None, ...]) -> ArraySpec | Ragged:
    """The spec of arrays of this dtype and shape: Ragged where an axis is None."""
    sizes = tuple(size for size in shape if size is not None)
    return ArraySpec(dtype, sizes) if len(sizes) == len(shape) else Ragged(dtype, shape)


def spec_of(value: object) -> ArraySpec | None:
    """What a value of a real sample shows: arrays and numbers have a spec, anything else has none.

    Nor has a whole number that int64 does not hold: it goes into no tensor.
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return ArraySpec(value.dtype.name, value.shape)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    for kind, dtype in ((bool, "bool"), (int, "int64"), (float, "float64")):
        if isinstance(value, kind):
            return ArraySpec(dtype, ())
    return None


def _dtype_name(dtype: object) -> str:
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload, no-any-return]
    except TypeError as err:
        raise OptionError(f"a dtype is a numpy name such as 'float32': got {dtype!r}") from err
