"""Borders around images, and crops that may lie partly in them: what small images (CIFAR's, say) are augmented by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import cv2
import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.image_field import Shape, Size, change_image, change_spec, check_levels, pair_of, with_channels
from headrace.transform.pixels import Pixels
from headrace.transform.spec import Fields, Sample

Padding: TypeAlias = int | tuple[int, int] | tuple[int, int, int, int]
"""Pixels at each side; or at (left and right, top and bottom); or at (left, top, right, bottom)."""

PaddingMode: TypeAlias = Literal["constant", "edge", "reflect", "symmetric"]

_BORDERS: dict[PaddingMode, int] = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}


@dataclass(frozen=True)
class Pad:
    """The image with borders of `padding` pixels.

    `padding_mode` says what they show: "constant" the level or colour `fill` (0 to 255), "edge" the outermost pixels,
    "reflect" the image mirrored without its outermost pixels, "symmetric" with them.
    """

    padding: Padding
    fill: int | tuple[int, ...] = 0
    padding_mode: PaddingMode = "constant"
    field: str | None = None

    takes_rng: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", _sides(self.padding))
        _check_look(self.fill, self.padding_mode)

    def __call__(self, sample: Sample) -> Sample:
        sides = _sides(self.padding)
        return change_image(sample, self.field, lambda image: pad(image, sides, self.fill, self.padding_mode))

    def output_fields(self, fields: Fields) -> Fields:
        """The image is larger by its borders."""
        return change_spec(fields, self.field, self._shape)

    def _shape(self, shape: Shape) -> Shape:
        left, top, right, bottom = _sides(self.padding)
        height, width, channels = shape
        return height and height + top + bottom, width and width + left + right, channels


@dataclass(frozen=True)
class RandomCrop:
    """A part of the image, `size` large, from a random place; the image first gets borders of `padding`, as by `Pad`.

    An image that is smaller even so is an error (TransformError), unless `pad_if_needed`: then what it lacks is added
    on both sides.
    """

    size: Size
    padding: Padding = 0
    pad_if_needed: bool = False
    fill: int | tuple[int, ...] = 0
    padding_mode: PaddingMode = "constant"
    field: str | None = None

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair_of(self.size))
        object.__setattr__(self, "padding", _sides(self.padding))
        _check_look(self.fill, self.padding_mode)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return change_image(sample, self.field, lambda image: self._crop(image, rng))

    def output_fields(self, fields: Fields) -> Fields:
        """The image is `size`."""
        return change_spec(fields, self.field, lambda shape: (*pair_of(self.size), shape[2]))

    def _crop(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        height, width = pair_of(self.size)
        image = pad(image, self._borders(*image.shape[:2]), self.fill, self.padding_mode)
        if image.shape[0] < height or image.shape[1] < width:
            raise TransformError(
                f"the image is {image.shape[0]} x {image.shape[1]} pixels with its borders, less than the crop of "
                f"{height} x {width}: give padding=, or pad_if_needed=True"
            )
        top = int(rng.random() * (image.shape[0] - height + 1))
        left = int(rng.random() * (image.shape[1] - width + 1))
        return image[top : top + height, left : left + width]

    def _borders(self, height: int, width: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = _sides(self.padding)
        if not self.pad_if_needed:
            return left, top, right, bottom
        lacks_y = max(0, pair_of(self.size)[0] - (top + height + bottom))
        lacks_x = max(0, pair_of(self.size)[1] - (left + width + right))
        return left + lacks_x, top + lacks_y, right + lacks_x, bottom + lacks_y


def pad(
    image: Pixels, sides: tuple[int, int, int, int], fill: int | tuple[int, ...] = 0, mode: PaddingMode = "constant"
) -> Pixels:
    """The image with borders of (left, top, right, bottom) pixels."""
    left, top, right, bottom = sides
    if not any(sides):
        return image
    if mode != "constant":
        return with_channels(cv2.copyMakeBorder(image, top, bottom, left, right, _BORDERS[mode]))
    height, width, channels = image.shape
    out = np.empty((top + height + bottom, left + width + right, channels), np.uint8)
    out[...] = levels_of(fill, channels)
    out[top : top + height, left : left + width] = image
    return out


def levels_of(fill: int | tuple[int, ...], channels: int) -> Pixels:
    """One level a channel, or one for all; raises TransformError where their number is not the image's."""
    levels = np.asarray(fill, np.uint8)
    if levels.size not in (1, channels):
        raise TransformError(f"the image has {channels} channels, but the colour {fill} has {levels.size} values")
    return levels


def _sides(padding: Padding) -> tuple[int, int, int, int]:
    sides = tuple(padding) if isinstance(padding, tuple | list) else (padding,) * 4
    if len(sides) == 2:
        sides = (*sides, *sides)
    if len(sides) != 4 or not all(isinstance(side, int) and side >= 0 for side in sides):
        raise OptionError(
            "padding is a number of pixels, 0 or more, or a pair (left and right, top and bottom), or "
            f"(left, top, right, bottom): got {padding!r}"
        )
    return sides


def _check_look(fill: int | tuple[int, ...], mode: str) -> None:
    check_levels("fill", fill)
    if mode not in _BORDERS:
        raise OptionError(f"padding_mode is one of {', '.join(_BORDERS)}: got {mode!r}")
    if fill != 0 and mode != "constant":
        raise OptionError(f"fill is what borders of padding_mode='constant' show: got fill={fill} and {mode!r}")
