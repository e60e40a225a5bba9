"""Which field of a batch a step is for: the one that is named, or the only one that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from headrace.errors import TransformError
from headrace.ondevice.steps import Batch


def find_field(batch: Batch, field: str | None, fits: Callable[[Any], bool], wanted: str) -> str:
    """The field's name. TransformError if it is missing or does not fit, or if several fit and none is named."""
    if field is not None:
        if field in batch and fits(batch[field]):
            return field
        found = describe_value(batch[field]) if field in batch else f"no such field among {names(batch)}"
        raise TransformError(f"field {field!r} must be {wanted}: got {found}")
    fitting = [name for name, value in batch.items() if not name.startswith("__") and fits(value)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise TransformError(f"several fields are {wanted} ({', '.join(fitting)}): say which with field=")
    shown = ", ".join(f"{name} ({describe_value(value)})" for name, value in batch.items() if name != "__key__")
    raise TransformError(f"a field must be {wanted}: got {shown}")


def is_pixels(value: Any) -> bool:
    """Whether it is a uint8 tensor of (batch, height, width, channels)."""
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.dim() == 4


def is_images(value: Any) -> bool:
    """Whether it is a floating tensor of (batch, channels, height, width)."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 4


def names(batch: Batch) -> str:
    """The fields' names, for messages."""
    return ", ".join(name for name in batch if name != "__key__") or "none"


def describe_value(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of {tuple(value.shape)}"
    if isinstance(value, list):
        return f"list of {type(value[0]).__name__}" if value else "empty list"
    return type(value).__name__
