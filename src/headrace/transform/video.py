"""Stored video to arrays of frames, by torchcodec (FFmpeg)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.clips import Clip, check_clip, clip_start, stored_field, stored_field_of
from headrace.transform.cut import Cut
from headrace.transform.image import RandomResizedCrop, Resize
from headrace.transform.pixels import Pixels
from headrace.transform.probe import MAX_PIXELS
from headrace.transform.spec import ArraySpec, Fields, Ragged, Sample

EXTENSIONS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi"})
_PLACE_IN_SOURCE = re.compile(r"^.*?\.cpp:\d+, ")


@dataclass(frozen=True)
class DecodeVideo:
    """Frames of a stored video as uint8 of (num_frames, height, width, 3), RGB.

    Every `step`-th frame of a part of it is taken: `clip` is "random", "first" or "middle". Where the video is too
    short, its last frame is repeated. `cut` is a RandomResizedCrop or Resize, which does the same to every frame.
    `field=None` finds the one field that ends in an extension of video. Raises OptionError where torchcodec or FFmpeg's
    libraries are missing, TransformError for what is no video, or broken.
    """

    num_frames: int
    step: int = 1
    clip: Clip = "random"
    cut: RandomResizedCrop | Resize | None = None
    field: str | None = None
    takes_rng: bool = dataclass_field(init=False)

    def __post_init__(self) -> None:
        for name in ("num_frames", "step"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise OptionError(f"{name} is a whole number of frames, at least 1: got {getattr(self, name)!r}")
        check_clip(self.clip)
        if not isinstance(self.cut, RandomResizedCrop | Resize | None):
            raise OptionError(f"cut is a RandomResizedCrop or a Resize, the same for every frame: got {self.cut!r}")
        _decoder_type()
        object.__setattr__(self, "takes_rng", self.clip == "random" or isinstance(self.cut, RandomResizedCrop))

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        name = stored_field(sample, self.field, EXTENSIONS, "video")
        decoder_type = _decoder_type()
        try:
            decoder = decoder_type(bytes(sample[name]), dimension_order="NHWC")
            return {**sample, name: self._frames(decoder, rng)}
        except TransformError as err:
            raise TransformError(f"field {name!r} {err}") from err
        except (RuntimeError, ValueError, IndexError) as err:  # torchcodec has no errors of its own
            raise TransformError(f"field {name!r} is no video that FFmpeg reads: {_reason(err)}") from err

    def output_fields(self, fields: Fields) -> Fields:
        """The frames have the size that `cut` gives, where that does not depend on theirs; else it is known later."""
        name = stored_field_of(fields, self.field, EXTENSIONS)
        if name is None:
            return fields
        rest = {other: spec for other, spec in fields.items() if other != name}
        if self.cut is None:
            return rest
        frame = self.cut.output_fields({"frame": Ragged("uint8", (None, None, 3))})["frame"]
        if isinstance(frame, ArraySpec):
            rest[name] = ArraySpec("uint8", (self.num_frames, *frame.shape))
        return rest

    def _frames(self, decoder: Any, rng: np.random.Generator | None) -> Pixels:
        height, width = decoder.metadata.height or 0, decoder.metadata.width or 0
        if height * width > MAX_PIXELS:
            raise TransformError(f"has frames of {height} x {width} pixels: at most {MAX_PIXELS:,} are decoded")
        numbers = self._numbers(len(decoder), rng)
        # One at a time, since frames as stored take far more memory than what is made of them.
        frame = decoder.get_frame_at(numbers[0]).data.numpy()
        cut = self._cut(frame.shape[0], frame.shape[1], rng)
        made = np.empty((self.num_frames, cut.out_height, cut.out_width, 3), np.uint8)
        for at, number in enumerate(numbers):
            if at and number != numbers[at - 1]:
                frame = decoder.get_frame_at(number).data.numpy()
            row = made[at]
            if (cut_frame := cut.of(frame, row)) is not row:
                row[...] = cut_frame
        return made

    def _numbers(self, total: int, rng: np.random.Generator | None) -> list[int]:
        if total < 1:
            raise TransformError("is a video without frames")
        start = clip_start(self.clip, max(0, total - 1 - (self.num_frames - 1) * self.step), rng)
        return [min(start + self.step * at, total - 1) for at in range(self.num_frames)]

    def _cut(self, height: int, width: int, rng: np.random.Generator | None) -> Cut:
        if isinstance(self.cut, RandomResizedCrop):
            assert rng is not None  # such a step takes one
            return self.cut.cut(height, width, rng)
        return self.cut.cut(height, width) if self.cut else Cut(0, 0, height, width, height, width)


def _decoder_type() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as err:
        raise OptionError("video is decoded by torchcodec: pip install 'headrace[video]'") from err
    except (OSError, RuntimeError) as err:
        raise OptionError(
            "torchcodec is there, but its libraries do not load: it needs FFmpeg's (apt-get install ffmpeg), and "
            f"a release that fits torch: {_reason(err)}"
        ) from err
    return VideoDecoder


def _reason(err: Exception) -> str:
    """What torchcodec says, on one line, without the place in its source; it may add pages of traceback."""
    return _PLACE_IN_SOURCE.sub("", " ".join(str(err).split()))[:300]
