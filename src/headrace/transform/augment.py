"""Steps that change colours or hide parts: ColorJitter and RandomErasing, with the meaning that torchvision gives them.

Levels change by a table of 256, a weighted sum or a conversion of OpenCV's: all of them uint8 in and out, within the
rounding of Pillow's `ImageEnhance`, and without the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import cv2
import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.borders import levels_of
from headrace.transform.image_field import change_image, check_levels, check_probability, check_range, with_channels
from headrace.transform.pixels import Pixels
from headrace.transform.spec import Fields, Sample

Strength: TypeAlias = float | tuple[float, float]
"""How much at most, or the range (smallest, largest) that is drawn from."""

_LEVELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue of the image, changed by random amounts in random order.

    The first three are factors: `b` (0 or more) draws from 1 - b (at least 0) to 1 + b, a pair is the range itself. At
    1 the image stays; at 0 it is black, or of its mean level, or without colour. `hue` is a shift in turns of the
    colour circle: `h` (0 to 0.5) draws from -h to h, a pair is the range, within -0.5 to 0.5. Images of one channel
    have neither saturation nor hue. Raises TransformError for images of other than 1 or 3 channels.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Strength = 0.0
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            object.__setattr__(self, name, _factors(name, getattr(self, name)))
        object.__setattr__(self, "hue", _shifts(self.hue))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return change_image(sample, self.field, lambda image: self._jitter(image, rng))

    def output_fields(self, fields: Fields) -> Fields:
        """Nothing changes."""
        return fields

    def _jitter(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        if image.shape[2] not in (1, 3):
            raise TransformError(f"the image has {image.shape[2]} channels: colours are those of 1 (gray) or 3 (RGB)")
        order, draws = rng.permutation(len(_CHANGES)), rng.random(len(_CHANGES))
        for at in order:
            name, change, neutral = _CHANGES[at]
            low, high = getattr(self, name)
            if (low, high) != (neutral, neutral):
                image = change(image, low + (high - low) * draws[at])
        return image


@dataclass(frozen=True)
class RandomErasing:
    """With probability `p`, a random rectangle of the image is replaced by the level or colour `value` (0 to 255).

    It covers `scale` (smallest, largest) of the area, at an aspect (height to width) of `ratio`, drawn evenly on a log
    scale. Where no such rectangle fits after ten tries, the image stays as it is. Put it before `Normalize`.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int | tuple[int, ...] = 0
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range("scale", self.scale)
        check_range("ratio", self.ratio)
        if self.scale[1] > 1:
            raise OptionError(f"scale is a part of the area, at most 1: got {self.scale!r}")
        check_levels("value", self.value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return (
            change_image(sample, self.field, lambda image: self._erase(image, rng)) if rng.random() < self.p else sample
        )

    def output_fields(self, fields: Fields) -> Fields:
        """Nothing changes."""
        return fields

    def part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """Of an image of this size, the rectangle that is drawn: top, left, height and width, in pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            aspect = math.exp(low + (high - low) * rng.random())
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
        return None

    def _erase(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        levels = levels_of(self.value, image.shape[2])
        found = self.part(image.shape[0], image.shape[1], rng)
        if found is None:
            return image
        top, left, height, width = found
        erased = image.copy()
        erased[top : top + height, left : left + width] = levels
        return erased


def change_brightness(image: Pixels, factor: float) -> Pixels:
    """Every level times `factor`: 0 is black."""
    return _by_table(image, _LEVELS * factor)


def change_contrast(image: Pixels, factor: float) -> Pixels:
    """Every level's distance from the mean of the gray image times `factor`: 0 is all of that mean."""
    mean = round(cv2.mean(_gray(image))[0])
    return _by_table(image, mean + (_LEVELS - mean) * factor)


def change_saturation(image: Pixels, factor: float) -> Pixels:
    """Every colour's distance from its gray times `factor`: 0 is gray."""
    if image.shape[2] == 1:
        return image
    gray = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
    return with_channels(cv2.addWeighted(image, factor, gray, 1 - factor, 0))


def shift_hue(image: Pixels, turns: float) -> Pixels:
    """Every colour moved along the circle of hues by so many turns; in steps of 1/256."""
    if image.shape[2] == 1:
        return image
    hsv = with_channels(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    hsv[:, :, 0] += np.uint8(round(turns * 256) % 256)  # wraps around, as the circle does
    return with_channels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


_CHANGES: tuple[tuple[str, Callable[[Pixels, float], Pixels], float], ...] = (
    ("brightness", change_brightness, 1.0),
    ("contrast", change_contrast, 1.0),
    ("saturation", change_saturation, 1.0),
    ("hue", shift_hue, 0.0),
)
"""In the order of torchvision's arguments: the option, what it does, and the amount that does nothing."""


def _gray(image: Pixels) -> Any:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image


def _by_table(image: Pixels, levels: Any) -> Pixels:
    # Pillow cuts the fraction off; so does the conversion to uint8.
    return with_channels(cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8)))


def _factors(name: str, strength: Strength) -> tuple[float, float]:
    low, high = strength if isinstance(strength, tuple | list) else (max(0.0, 1.0 - strength), 1.0 + strength)
    if not 0 <= low <= high < math.inf:
        raise OptionError(f"{name} is a number of 0 or more, or a pair (smallest, largest) of such: got {strength!r}")
    return float(low), float(high)


def _shifts(strength: Strength) -> tuple[float, float]:
    low, high = strength if isinstance(strength, tuple | list) else (-strength, strength)
    if not -0.5 <= low <= high <= 0.5:
        raise OptionError(
            f"hue is a number from 0 to 0.5, or a pair (smallest, largest) within -0.5 to 0.5: got {strength!r}"
        )
    return float(low), float(high)
