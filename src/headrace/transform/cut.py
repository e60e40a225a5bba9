"""A part of an image and the size that it becomes, written where it is to lie."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from headrace.transform.image_field import Place, with_channels
from headrace.transform.pixels import Pixels

# Against Pillow's bilinear filter, which averages where it shrinks, on images of natural (1/f) spectra, to 224 pixels:
# plain bilinear is off by 1.3 of 255 at a shrink of 1.16, 2.2 at 1.34 and 4.2 at 1.85; averaging by 0.6, 1.0 and 1.6,
# but it takes 0.4 ms instead of 0.06.
_ALIASES_FROM = 1.2


class Cut(NamedTuple):
    """A part of an image, and the size that it is to have afterwards; all in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    @property
    def factor(self) -> int:
        """By how much a JPEG may be shrunk in decoding so that the part is no smaller than what it becomes."""
        fits = (n for n in (8, 4, 2) if self.height >= n * self.out_height and self.width >= n * self.out_width)
        return next(fits, 1)

    def shrunk(self, factor: int) -> Cut:
        """The same part of the image shrunk by `factor`: its edges are rounded to pixels of that."""
        top, left, bottom, right = (
            (edge + factor // 2) // factor
            for edge in (self.top, self.left, self.top + self.height, self.left + self.width)
        )
        return self._replace(top=top, left=left, height=bottom - top, width=right - left)

    def of(self, image: Pixels, row: Place = None) -> Pixels:
        """The part, resized; in `row`, if it is one for such an image."""
        part = image[self.top : self.top + self.height, self.left : self.left + self.width]
        return resize(part, self.out_height, self.out_width, row)


def resize(image: Pixels, height: int, width: int, row: Place = None) -> Pixels:
    """The image resized: bilinear where it grows or hardly shrinks, averaged over areas where it shrinks more.

    It is written into `row`, if that is a place for an image of this size, and is the image itself where it has it.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] / height, image.shape[1] / width
    method = cv2.INTER_AREA if min(shrinks) >= 1 and max(shrinks) > _ALIASES_FROM else cv2.INTER_LINEAR
    place = place_for((height, width, image.shape[2]), "uint8", row)
    made = cv2.resize(image, (width, height), dst=place, interpolation=method)
    return with_channels(made) if place is None else place


def flip(image: Pixels, axis: int, row: Place = None) -> Pixels:
    """The image turned around: axis 0 top to bottom, 1 left to right. It is written into `row`, if it fits there."""
    place = place_for(image.shape, "uint8", row)
    made = cv2.flip(image, axis, dst=place)
    return with_channels(made) if place is None else place


def place_for(shape: tuple[int, ...], dtype: str, row: Place) -> Place:
    """The row, if an array of this shape and type can be written there as OpenCV writes; else None."""
    if row is None or row.shape != shape or row.dtype != np.dtype(dtype) or not row.flags.c_contiguous:
        return None
    return row
