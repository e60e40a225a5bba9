"""What video and audio steps share: the field that holds a recording, and which part of it is taken."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.spec import Fields, Sample

Clip: TypeAlias = Literal["random", "first", "middle"]
"""Which part of a recording is taken, where it is longer than what is asked for."""

_CLIPS = ("random", "first", "middle")


def check_clip(clip: str) -> None:
    """Raise OptionError for what names no part of a recording."""
    if clip not in _CLIPS:
        raise OptionError(f"clip is one of {', '.join(_CLIPS)}: got {clip!r}")


def clip_start(clip: Clip, spare: int, rng: np.random.Generator | None) -> int:
    """Where the part begins that leaves out `spare` (0 or more) of the recording; `rng` is drawn from for "random"."""
    if clip == "random":
        assert rng is not None  # a step with a random clip takes one
        return int(rng.random() * (spare + 1))
    return spare // 2 if clip == "middle" else 0


def stored_field(sample: Sample, field: str | None, extensions: frozenset[str], what: str) -> str:
    """The field that holds the stored recording: `field`, or the one whose name ends in one of the extensions.

    Raises TransformError where there is none, or several, or where its value is not what is stored.
    """
    names = [name for name in sample if _ends_in(name, extensions)] if field is None else [field]
    if len(names) > 1:
        raise TransformError(f"there are several fields of {what} ({', '.join(names)}): say which with field=")
    if not names or names[0] not in sample:
        found = ", ".join(name for name in sample if name != "__key__") or "no fields"
        missing = f"no field {field!r}" if field else f"no {what}, a field that ends in {', '.join(sorted(extensions))}"
        raise TransformError(f"there is {missing}: the sample has {found}")
    name = names[0]
    if not isinstance(sample[name], bytes | memoryview | bytearray):
        raise TransformError(f"field {name!r} must be {what} as it is stored: got {type(sample[name]).__name__}")
    return name


def stored_field_of(fields: Fields, field: str | None, extensions: frozenset[str]) -> str | None:
    """The same from what is known of the fields; None where that does not tell."""
    if field is not None:
        return field
    names = [name for name in fields if _ends_in(name, extensions)]
    return names[0] if len(names) == 1 else None


def _ends_in(name: str, extensions: frozenset[str]) -> bool:
    return name.rpartition(".")[2].lower() in extensions
