"""Which first steps of a stream make the same of a sample every time, so that what they make can be kept.

Only steps of this room are known to: a function of the user's may draw from global generators, or look at the time,
even where it takes no `rng`. Of them those count that decode an image or make it smaller. `Normalize` and `Cast` make
four bytes of one and take little time, so they are done anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import cv2
import PIL
import simplejpeg

from headrace.transform.cast import Cast
from headrace.transform.decode import Decode
from headrace.transform.image import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize
from headrace.transform.scaled import ScaledDecode
from headrace.transform.spec import Op

_LASTING = (Decode, Resize, CenterCrop)
_LEAVES_ARRAYS = (*_LASTING, Cast, Normalize, RandomHorizontalFlip, RandomResizedCrop, ScaledDecode)


def lasting_steps(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The first steps, as far as what they make of a sample is worth keeping; none unless one of them decodes."""
    number = next((i for i, op in enumerate(ops) if not _lasts(op)), len(ops))
    return tuple(ops[:number]) if any(isinstance(op, Decode | ScaledDecode) for op in ops[:number]) else ()


def _lasts(op: Op) -> bool:
    return type(op) in _LASTING or (isinstance(op, ScaledDecode) and type(op.step) in _LASTING)


def may_write_arrays(ops: Sequence[Op]) -> bool:
    """Whether a step may change the arrays that it is given, in place."""
    return any(type(op) not in _LEAVES_ARRAYS for op in ops)


def describe_steps(ops: Sequence[Op]) -> str:
    """The steps with their parameters, and the libraries that do the work: what decides the pixels that come out."""
    libraries = f"simplejpeg {simplejpeg.__version__} OpenCV {cv2.__version__} Pillow {PIL.__version__}"
    return " ".join([libraries, *map(_described, ops)])


def _described(op: Op) -> str:
    parameters = {field.name: getattr(op, field.name) for field in fields(op)}  # type: ignore[arg-type]
    return f"{type(op).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in parameters.items())})"


def _shown(value: Any) -> str:
    """The same in every process, which the order of a set's elements is not."""
    if isinstance(value, Decode | RandomResizedCrop | Resize):
        return _described(value)
    return repr(sorted(value) if isinstance(value, frozenset) else value)
