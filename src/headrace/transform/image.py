"""Steps for images: crops, sizes, flips, normalisation, with the meaning that torchvision gives them.

They take uint8 arrays of (height, width, channels) as `.decode()` makes them. `field=None` finds the sample's one
image; a sample with several (an image and its mask) needs the name. Pixels stay uint8 up to `Normalize`: a quarter of
the bytes of float32, and so a quarter of what has to be moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.cut import Cut, flip, place_for, resize
from headrace.transform.image_field import (
    Place,
    Shape,
    Size,
    change_image,
    change_spec,
    check_probability,
    check_range,
    image_into,
    pair_of,
)
from headrace.transform.pixels import Pixels
from headrace.transform.spec import NO_ROWS, Fields, Rows, Sample


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to `size`.

    The part covers `scale` (smallest, largest) of the area, at an aspect (width to height) of `ratio`, drawn evenly on
    a log scale. Where no such part fits after ten tries, it is the central one of the nearest aspect.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair_of(self.size))
        check_range("scale", self.scale)
        check_range("ratio", self.ratio)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.into(NO_ROWS, sample, rng)

    def into(self, rows: Rows, sample: Sample, rng: np.random.Generator) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        return image_into(rows, sample, self.field, lambda image, row: self._crop(image, rng, row))

    def output_fields(self, fields: Fields) -> Fields:
        """The image is `size`."""
        return change_spec(fields, self.field, lambda shape: (*pair_of(self.size), shape[2]))

    def _crop(self, image: Pixels, rng: np.random.Generator, row: Place) -> Pixels:
        return self.cut(image.shape[0], image.shape[1], rng).of(image, row)

    def cut(self, height: int, width: int, rng: np.random.Generator) -> Cut:
        """Of an image of this size in pixels, the part that is drawn, and `size`."""
        return Cut(*self.part(height, width, rng), *pair_of(self.size))

    def part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Of an image of this size, the part that is drawn: top, left, height and width, in pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            aspect = math.exp(low + (high - low) * rng.random())
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
                return top, left, h, w
        h, w = height, width
        if width / height < self.ratio[0]:
            h = min(height, max(1, round(width / self.ratio[0])))
        elif width / height > self.ratio[1]:
            w = min(width, max(1, round(height * self.ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class Resize:
    """The image resized: an int is the length of the short side (the aspect is kept), a pair is (height, width)."""

    size: Size
    field: str | None = None

    takes_rng: ClassVar[bool] = False

    def __post_init__(self) -> None:
        pair_of(self.size)
        if not isinstance(self.size, int):
            object.__setattr__(self, "size", pair_of(self.size))

    def __call__(self, sample: Sample) -> Sample:
        return self.into(NO_ROWS, sample)

    def into(self, rows: Rows, sample: Sample) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        return image_into(rows, sample, self.field, self._resize)

    def output_fields(self, fields: Fields) -> Fields:
        """The size is known for a pair, and for images of one size."""
        return change_spec(fields, self.field, self._shape)

    def _resize(self, image: Pixels, row: Place) -> Pixels:
        return resize(image, *self._target(*image.shape[:2]), row)

    def cut(self, height: int, width: int) -> Cut:
        """Of an image of this size in pixels all of it, and the size that it becomes."""
        return Cut(0, 0, height, width, *self._target(height, width))

    def _shape(self, shape: Shape) -> Shape:
        height, width, channels = shape
        if not isinstance(self.size, int):
            return (*self.size, channels)
        if height is None or width is None:
            return (None, None, channels)
        return (*self._target(height, width), channels)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        if height <= width:
            return self.size, max(1, int(self.size * width / height))
        return max(1, int(self.size * height / width)), self.size


@dataclass(frozen=True)
class CenterCrop:
    """The middle of the image, `size` large; a smaller image gets black borders."""

    size: Size
    field: str | None = None

    takes_rng: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair_of(self.size))

    def __call__(self, sample: Sample) -> Sample:
        return change_image(sample, self.field, self._crop)

    def output_fields(self, fields: Fields) -> Fields:
        """The image is `size`."""
        return change_spec(fields, self.field, lambda shape: (*pair_of(self.size), shape[2]))

    def _crop(self, image: Pixels) -> Pixels:
        height, width = pair_of(self.size)
        pad_y, pad_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
        if pad_y or pad_x:
            borders = ((pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2), (0, 0))
            image = np.pad(image, borders)
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        return image[top : top + height, left : left + width]


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """The image, mirrored left to right with probability `p` (0 to 1)."""

    p: float = 0.5
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability(self.p)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.into(NO_ROWS, sample, rng)

    def into(self, rows: Rows, sample: Sample, rng: np.random.Generator) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        if rng.random() >= self.p:
            return sample
        return image_into(rows, sample, self.field, lambda image, row: flip(image, 1, row))

    def output_fields(self, fields: Fields) -> Fields:
        """Nothing changes."""
        return fields


@dataclass(frozen=True)
class RandomVerticalFlip:
    """The image, mirrored top to bottom with probability `p` (0 to 1)."""

    p: float = 0.5
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability(self.p)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.into(NO_ROWS, sample, rng)

    def into(self, rows: Rows, sample: Sample, rng: np.random.Generator) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        if rng.random() >= self.p:
            return sample
        return image_into(rows, sample, self.field, lambda image, row: flip(image, 0, row))

    def output_fields(self, fields: Fields) -> Fields:
        """Nothing changes."""
        return fields


@dataclass(frozen=True)
class Normalize:
    """The image as float32 of (channels, height, width), as PyTorch's models want it: (image / 255 - mean) / std.

    `mean` and `std` have one value a channel, or one for all, on a scale of 0 to 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    field: str | None = None

    takes_rng: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats(self.mean))
        object.__setattr__(self, "std", _floats(self.std))
        if not all(value > 0 for value in self.std):
            raise OptionError(f"std must be above 0 in every channel: got {self.std}")

    def __call__(self, sample: Sample) -> Sample:
        return self.into(NO_ROWS, sample)

    def into(self, rows: Rows, sample: Sample) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        return image_into(rows, sample, self.field, self._normalize)

    def output_fields(self, fields: Fields) -> Fields:
        """The image is float32, channels first."""
        return change_spec(fields, self.field, lambda shape: (shape[2], shape[0], shape[1]), "float32")

    def _normalize(self, image: Pixels, row: Place) -> np.ndarray[Any, np.dtype[np.float32]]:
        height, width, channels = image.shape
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise TransformError(f"the image has {channels} channels, but {name} has {len(values)} values")
        place = place_for((channels, height, width), "float32", row)
        out = np.empty((channels, height, width), np.float32) if place is None else place
        for channel in range(channels):
            mean, std = self.mean[channel % len(self.mean)], self.std[channel % len(self.std)]
            np.multiply(image[:, :, channel], np.float32(1 / (255 * std)), out=out[channel])
            out[channel] -= np.float32(mean / std)
        return out


def _floats(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in (values if hasattr(values, "__iter__") else (values,)))
    if not numbers:
        raise OptionError("mean and std need one value a channel, or one for all: got none")
    return numbers
