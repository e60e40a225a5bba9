"""What the image steps share: finding the sample's image, saying what becomes of it, checking options.

An image is a uint8 array of (height, width, channels), as `.decode()` makes it. Where a step names no field, it means
the sample's one image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError, TransformError
from headrace.transform.decode import field_kind
from headrace.transform.pixels import Pixels
from headrace.transform.spec import NO_ROWS, ArraySpec, Fields, FieldSpec, Ragged, Rows, Sample, array_spec

Size: TypeAlias = int | tuple[int, int]
"""An int is both sides of a square, unless said otherwise; a pair is (height, width). In pixels."""

Shape: TypeAlias = tuple[int | None, ...]
"""(height, width, channels); None where it varies."""


Place: TypeAlias = NDArray[Any] | None
"""Where an image is to lie in its batch, if that is known."""


def change_image(sample: Sample, field: str | None, change: Callable[[Pixels], Any]) -> Sample:
    """The sample with its image changed; raises TransformError where there is none, or several."""
    return image_into(NO_ROWS, sample, field, lambda image, _: change(image))


def image_into(rows: Rows, sample: Sample, field: str | None, change: Callable[[Pixels, Place], Any]) -> Sample:
    """The sample with its image changed by `change(image, place)`, which may write what it makes into the place.

    Raises TransformError where there is no image, or several.
    """
    name = image_field(sample, field)
    return {**sample, name: change(sample[name], rows.get(name))}


def image_field(sample: Sample, field: str | None) -> str:
    """The field that holds the image; raises TransformError where there is none, or several."""
    if field is not None:
        if field not in sample:
            raise TransformError(f"there is no field {field!r}: the sample has {_names(sample)}")
        if not is_image(sample[field]):
            raise TransformError(
                f"field {field!r} must be a uint8 array of (height, width, channels): "
                f"got {_describe(sample[field])}; put .decode() before"
            )
        return field
    return _only([name for name, value in sample.items() if is_image(value)], list(sample))


def is_image(value: object) -> bool:
    """Whether a value is a uint8 array of three axes."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3


def _only(images: list[str], names: list[str]) -> str:
    if len(images) == 1:
        return images[0]
    if images:
        raise TransformError(f"there are several images ({', '.join(images)}): say which with field=")
    raise TransformError(
        "there is no image, a uint8 array of (height, width, channels): "
        f"the sample has {_names(names)}; put .decode() before, and Normalize last"
    )


def _names(names: Sample | list[str]) -> str:
    return ", ".join(name for name in names if name != "__key__") or "no fields"


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of {value.shape}"
    return type(value).__name__


def change_spec(fields: Fields, field: str | None, change: Callable[[Shape], Shape], dtype: str = "uint8") -> Fields:
    """What is known of the fields once the image has another shape, and this dtype."""
    name = image_field_of(fields, field)
    if name is None:
        return fields  # a function of the user's came before; what it makes is known at the first sample
    spec = fields.get(name)
    shape = spec.shape if isinstance(spec, ArraySpec | Ragged) and len(spec.shape) == 3 else (None, None, None)
    return {**fields, name: array_spec(dtype, change(shape))}


def image_field_of(fields: Fields, field: str | None) -> str | None:
    """The field that will hold the image, from what is known of the fields; None where that does not tell."""
    if field is not None:
        return field
    images = [name for name, spec in fields.items() if _may_be_image(name, spec)]
    return images[0] if len(images) == 1 else None


def _may_be_image(name: str, spec: FieldSpec) -> bool:
    if isinstance(spec, ArraySpec | Ragged):
        return spec.dtype == "uint8" and len(spec.shape) == 3
    return spec is None and field_kind(name) == "image"


def pair_of(size: Size) -> tuple[int, int]:
    """(height, width) in pixels; raises OptionError for what is no size."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise OptionError(f"size is a whole number of pixels above 0, or a pair (height, width): got {size!r}")
    return pair


def check_probability(p: float) -> None:
    """Raise OptionError for what is no probability."""
    if not 0 <= p <= 1:
        raise OptionError(f"p is a probability, from 0 to 1: got {p}")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Raise OptionError for what is no pair (smallest, largest) of numbers above 0."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise OptionError(f"{name} is a pair (smallest, largest), both above 0: got {bounds!r}")


def with_channels(image: Any) -> Pixels:
    """The image of three axes: OpenCV drops the last one where there is one channel."""
    return image if image.ndim == 3 else image[:, :, np.newaxis]  # type: ignore[no-any-return]


def check_levels(name: str, levels: int | tuple[int, ...]) -> None:
    """Raise OptionError for what is no level of a uint8 image (0 to 255), nor one a channel."""
    values = levels if isinstance(levels, tuple) else (levels,)
    if not values or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise OptionError(f"{name} is a level from 0 to 255, or one a channel in a tuple: got {levels!r}")
