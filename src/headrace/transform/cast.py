"""Numbers of another type: of what may be rounded, at most; never of what would be cut off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError, TransformError
from headrace.transform.spec import ArraySpec, Fields, Ragged, Sample

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Cast:
    """Gives fields of numbers, or arrays of them, other types: ((field, dtype), ...).

    Whole numbers become wider ones or floats, floats become floats of any width, rounded. Raises OptionError for a
    dtype that numbers do not have, TransformError for a field that is missing or cannot be cast so.
    """

    dtypes: tuple[tuple[str, str], ...]

    takes_rng: ClassVar[bool] = False

    @classmethod
    def of(cls, dtypes: Mapping[str, Any]) -> Cast:
        """From field -> dtype, by name or as numpy or PyTorch have it."""
        return cls(tuple((name, _name(name, dtype)) for name, dtype in dtypes.items()))

    def __call__(self, sample: Sample) -> Sample:
        return {**sample, **{name: _cast(name, sample, dtype) for name, dtype in self.dtypes}}

    def output_fields(self, fields: Fields) -> Fields:
        """The same shapes, of the new types."""
        found = {}
        for name, dtype in self.dtypes:
            spec = fields.get(name)
            if isinstance(spec, ArraySpec | Ragged):
                found[name] = replace(spec, dtype=dtype)
        return {**fields, **found}

    def leaves(self, name: str) -> bool:
        """Whether bytes in this field stay what they are."""
        return True

    def column(self, name: str, column: Numbers) -> Numbers | None:
        """A column of many samples, whose numbers take the new type where they are stored; None if they cannot."""
        dtype = dict(self.dtypes).get(name)
        return column if dtype is None or may_cast(column.dtype, np.dtype(dtype)) else None


def may_cast(found: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    """Whether numbers of one type may become numbers of the other."""
    return np.can_cast(found, dtype, "safe") or (dtype.kind == "f" and found.kind in "biuf")


def _cast(name: str, sample: Sample, dtype: str) -> Any:
    if name not in sample:
        raise TransformError(
            f"there is no field {name!r} to cast: got {', '.join(sorted(sample.keys() - {'__key__'}))}"
        )
    value = np.asarray(sample[name])
    if value.dtype.kind not in "biuf" or not may_cast(value.dtype, np.dtype(dtype)):
        raise TransformError(f"field {name!r} of {value.dtype} does not become {dtype} without being cut off: use .map")
    cast = value.astype(dtype)
    return cast if value.ndim else cast[()]


def _name(name: str, dtype: Any) -> str:
    named = str(dtype).removeprefix("torch.") if dtype is None or str(dtype).startswith("torch.") else dtype
    try:
        found = np.dtype(named)
    except TypeError as err:
        raise OptionError(f"cast({name!r}: ...) takes a dtype such as 'int64' or 'float32': got {dtype!r}") from err
    if found.kind not in "biuf" or found.itemsize > np.dtype("int64").itemsize:
        raise OptionError(f"cast({name!r}: ...) takes a type of numbers, such as 'int64' or 'float32': got {dtype!r}")
    return found.name
