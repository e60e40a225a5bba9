"""Which fields a batch has, and which of them are tensors: decided once, before the first batch.

It follows from the dataset's schema and from what each step says of the shapes that it makes. Where a plain function
is silent, three samples of the dataset (first, middle, last) are transformed: the same ones on every rank and at every
start, so that the answer is never the luck of a batch. A later sample that does not fit is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from headrace.dataset import Dataset, Joined
from headrace.errors import HeadraceError, TransformError
from headrace.formats import Field
from headrace.load.marks import PROBED, Lane, Where
from headrace.transform import ArraySpec, Encoded, Fields, Filter, Op, Sample, apply, output_fields, spec_of
from headrace.transform.spec import FieldSpec, array_spec

MakeRng: TypeAlias = Callable[[int], np.random.Generator]
Specs: TypeAlias = dict[str, ArraySpec | None]
"""Field -> the shape and dtype of its tensor, or None for a list."""

_MAX_ITEM_BYTES = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}

_NUMBERS = {"int": "int64", "float": "float64", "bool": "bool"}
"""What Python's numbers become in a batch, by the field's type."""

NUM_PROBED = 3
NUM_TRIED = 16


def stored_fields(schema: Mapping[str, Field]) -> Fields:
    """What the manifest says of the fields as they are stored."""
    return {name: _stored(field) for name, field in schema.items()}


def resolve_specs(
    dataset: Dataset | Joined,
    ops: Sequence[Op],
    make_rng: Callable[[int], np.random.Generator],
    lane: Lane,
    condemned: Container[Where] = (),
) -> Specs | None:
    """The fields of a batch. `make_rng(position)` gives the randomness of a probed sample, `lane` tells which it is.

    None if nothing can be known: of no field beforehand, and no probed sample could be had (all damaged, say). Then
    whatever comes is a list.
    """
    known = output_fields(ops, stored_fields(dataset.schema))
    steps = [op for op in ops if not isinstance(op, Filter)]
    probed = _probe(dataset, steps, make_rng, lane, condemned)
    if not probed:
        return {name: _decide(name, known, []) for name in known} or None
    names = {name: None for sample in probed for name in sample if name != "__key__"}
    return {name: _decide(name, known, [sample.get(name) for sample in probed]) for name in names}


def checked_value(name: str, value: Any, spec: ArraySpec) -> Any:
    """A value that fits its place in the batch; TransformError if its shape or type differs."""
    found = spec_of(value)
    if found is not None and found.shape == spec.shape and np.can_cast(found.dtype, spec.dtype, "safe"):
        return value
    shown = f"{found.dtype} {found.shape}" if found else type(value).__name__
    if found is None and isinstance(value, int):
        shown = "an int that int64 does not hold"
    raise TransformError(
        f"field {name!r} is {shown}, but in this stream it is {spec.dtype} {spec.shape}: bring it to that type and "
        f"shape, or declare that it varies by .map(fn, shapes={{{name!r}: None}})"
    )


def as_plain(name: str, value: Any) -> Any:
    """A field's value as it goes into a batch: torch tensors and arrays as native arrays, anything else as it is.

    torch is not imported for it. Raises TransformError for arrays of what no tensor holds.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        try:
            value = value.detach().cpu().numpy()
        except TypeError as err:
            raise TransformError(f"field {name!r} is a tensor that numpy cannot hold ({err}): cast it") from err
    if isinstance(value, np.str_ | np.bytes_):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biufc" or value.dtype.itemsize > _MAX_ITEM_BYTES[value.dtype.kind]:
        raise TransformError(
            f"field {name!r} is an array of {value.dtype}, which no tensor can hold: convert it to numbers, or make it "
            "a list by .tolist()"
        )
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _stored(field: Field) -> FieldSpec:
    if field.nullable:
        return None
    if field.type in _NUMBERS:
        return ArraySpec(_NUMBERS[field.type], ())
    if field.type == "array" and field.dtype is not None and field.shape is not None:
        return array_spec(field.dtype, field.shape)
    return Encoded(field.image_size) if field.type in ("bytes", "image") else None


def _probe(
    dataset: Dataset | Joined,
    ops: Sequence[Op],
    make_rng: Callable[[int], np.random.Generator],
    lane: Lane,
    condemned: Container[Where],
) -> list[Sample]:
    last = len(dataset) - 1
    spread = [last * k // (NUM_TRIED - 1) for k in range(NUM_TRIED)]
    found: list[Sample] = []
    for number in dict.fromkeys([0, len(dataset) // 2, last, *spread]):
        if (PROBED, number) in condemned:
            continue  # it is reported, by the policy for errors, when its turn comes
        try:
            with lane.reading(dataset.is_remote):
                raw = dataset[number]
            lane.mark(PROBED, number)
            sample = apply(ops, raw, lambda number=number: make_rng(number)) or {}  # type: ignore[misc]
            found.append({name: as_plain(name, value) for name, value in sample.items()})
        except HeadraceError:
            continue  # as above
        finally:
            lane.clear()
        if len(found) == NUM_PROBED:
            break
    return found


def _decide(name: str, known: Fields, values: list[Any]) -> ArraySpec | None:
    if name in known:
        spec = known[name]
        return spec if isinstance(spec, ArraySpec) else None
    found = {spec_of(value) for value in values}
    return found.pop() if len(found) == 1 else None
