"""Stored audio to arrays, by soundfile (libsndfile): WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError, TransformError
from headrace.transform.clips import Clip, check_clip, clip_start, stored_field, stored_field_of
from headrace.transform.spec import Fields, Sample, array_spec

EXTENSIONS = frozenset({"wav", "flac", "ogg", "opus", "mp3", "aif", "aiff"})
MAX_VALUES = 2**28
"""Of more values than this (1 GiB as float32) a part must be asked for: a few bytes of a header can claim terabytes."""


@dataclass(frozen=True)
class DecodeAudio:
    """Stored audio as float32 of (channels, length), from -1 to 1; `mono=True` averages the channels to one.

    `length_sec` takes a part of so many seconds, as `clip` says: "random", "first" or "middle". Shorter audio is filled
    up with silence at its end. None takes all of it. `field=None` finds the one field that ends in an extension of
    audio. Raises OptionError where soundfile is missing, TransformError for audio of another rate than `sample_rate`
    (Hz), or that is broken.
    """

    sample_rate: int
    length_sec: float | None = None
    clip: Clip = "random"
    mono: bool = False
    field: str | None = None
    takes_rng: bool = dataclass_field(init=False)

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if type(self.sample_rate) is not int or self.sample_rate < 1:
            raise OptionError(f"sample_rate is a whole number of Hz, at least 1: got {self.sample_rate!r}")
        if self.length_sec is not None and not 1 <= round(self.length_sec * self.sample_rate) <= MAX_VALUES:
            raise OptionError(
                f"length_sec is a time of 1 to {MAX_VALUES:,} values at {self.sample_rate:,} Hz, or None for all: "
                f"got {self.length_sec!r}"
            )
        _soundfile()
        object.__setattr__(self, "takes_rng", self.length_sec is not None and self.clip == "random")

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        name = stored_field(sample, self.field, EXTENSIONS, "audio")
        soundfile = _soundfile()
        try:
            with soundfile.SoundFile(BytesIO(sample[name])) as stored:
                return {**sample, name: self._decode(stored, rng)}
        except TransformError as err:
            raise TransformError(f"field {name!r} {err}") from err
        except soundfile.SoundFileError as err:
            reason = getattr(err, "error_string", err)  # without the name of our buffer, where there is one
            raise TransformError(f"field {name!r} is no audio that libsndfile reads: {reason}") from err

    def output_fields(self, fields: Fields) -> Fields:
        """The length is known where one is asked for, the channels for mono; else it is known when it has run."""
        name = stored_field_of(fields, self.field, EXTENSIONS)
        if name is None:
            return fields
        if self.length_sec is None:
            return {**fields, name: array_spec("float32", (1 if self.mono else None, None))}
        if self.mono:
            return {**fields, name: array_spec("float32", (1, self._length))}
        return {other: spec for other, spec in fields.items() if other != name}

    @property
    def _length(self) -> int:
        assert self.length_sec is not None
        return round(self.length_sec * self.sample_rate)

    def _decode(self, stored: Any, rng: np.random.Generator | None) -> NDArray[np.float32]:
        if stored.samplerate != self.sample_rate:
            raise TransformError(
                f"has {stored.samplerate:,} values a second, not {self.sample_rate:,}: resample it before packing"
            )
        is_all = self.length_sec is None
        length = stored.frames if is_all else self._length
        taken = min(length, stored.frames)
        if taken * stored.channels > MAX_VALUES:
            raise TransformError(
                f"is audio of {stored.frames:,} x {stored.channels} values: take a part by length_sec="
            )
        start = 0 if is_all else clip_start(self.clip, stored.frames - taken, rng)
        stored.seek(start)
        values = stored.read(taken, dtype="float32", always_2d=True)
        if len(values) < taken:
            raise TransformError(f"ends early: {start + len(values):,} of {stored.frames:,} values a channel")
        made = np.zeros((1 if self.mono else stored.channels, length), np.float32)
        made[:, :taken] = values.mean(axis=1) if self.mono else values.T
        return made


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as err:
        raise OptionError("audio is decoded by soundfile: pip install 'headrace[audio]'") from err
    return soundfile
