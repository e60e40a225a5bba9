"""An encoded image made smaller, encoded again in its own format: what packing does to images.

An image that is small enough already is returned byte for byte: encoding again would only lose quality. A JPEG keeps
its EXIF data and its colour profile, so what a viewer shows (its rotation, say) stays; its EXIF thumbnail and sizes are
those of the larger image. It is decoded at the smallest scale of its own DCT that is not smaller than what is wanted,
and halved and averaged from there.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import simplejpeg

from headrace.errors import OptionError, TransformError
from headrace.transform.pixels import Pixels, decode_image
from headrace.transform.probe import JPEG_START, PNG_SIGNATURE, jpeg_header, probe_image

_EXIF, _PROFILE = 0xE1, 0xE2
_START_OF_SCAN = 0xDA


def shrink_image(data: bytes | memoryview, *, short: int | None, max_side: int | None, quality: int) -> bytes:
    """The image with its shorter side at most `short` and its longer at most `max_side` pixels, in its own format.

    The aspect ratio stays, to the nearest pixel. `quality` (1 to 100) is that of JPEG and lossy WebP. Raises
    TransformError for data that is no whole image, and for images to be made smaller that are no JPEG, PNG or WebP.
    """
    size = probe_image(data)
    wanted = smaller_size(size, short, max_side)
    if wanted == size:
        return bytes(data)
    if bytes(data[:3]) == JPEG_START:
        return _shrink_jpeg(bytes(data), wanted, quality)
    if bytes(data[:8]) == PNG_SIGNATURE:
        return _encoded(".png", _resized(_decoded(data), wanted), [])
    if bytes(data[:4]) == b"RIFF" and bytes(data[8:12]) == b"WEBP":
        return _encoded(".webp", _resized(_decoded(data), wanted), [cv2.IMWRITE_WEBP_QUALITY, quality])
    raise TransformError(
        f"is an image of {size[0]} x {size[1]} pixels that is no JPEG, PNG or WebP, and only those are made smaller: "
        "convert it in a transform"
    )


def smaller_size(size: tuple[int, int], short: int | None, max_side: int | None) -> tuple[int, int]:
    """(height, width) after shrinking; never larger than before, and at least one pixel."""
    factor = 1.0
    if short is not None:
        factor = min(factor, short / min(size))
    if max_side is not None:
        factor = min(factor, max_side / max(size))
    if factor == 1.0:
        return size
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def check_shrink_options(short: int | None, max_side: int | None, quality: int) -> None:
    """Raise OptionError for sizes under one pixel and a quality outside 1 to 100."""
    for name, value in (("resize_short", short), ("max_side", max_side)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"{name} must be a number of pixels, at least 1: got {value!r}")
    if type(quality) is not int or not 1 <= quality <= 100:
        raise OptionError(f"quality must be a whole number from 1 to 100: got {quality!r}")


def _shrink_jpeg(data: bytes, wanted: tuple[int, int], quality: int) -> bytes:
    space = jpeg_header(data)[2]
    if space == "Gray":
        pixels, color, subsampling = _decoded_jpeg(data, "GRAY", wanted), "GRAY", "Gray"
    elif space in ("CMYK", "YCCK"):
        pixels, color, subsampling = decode_image(data), "RGB", "420"
    else:
        pixels, color, subsampling = _decoded_jpeg(data, "RGB", wanted), "RGB", "420"
    made: bytes = simplejpeg.encode_jpeg(_resized(pixels, wanted), quality, color, subsampling)
    keeps_profile = space not in ("CMYK", "YCCK")  # a profile of inks does not describe the RGB that it became
    return made[:2] + b"".join(_kept_segments(data, keeps_profile)) + made[2:]


def _decoded_jpeg(data: bytes, color: str, wanted: tuple[int, int]) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            data, color, min_height=wanted[0], min_width=wanted[1]
        )
    except ValueError:  # a fault: the decoder for all tells harmless ones from a file that is cut off
        return decode_image(data, "gray" if color == "GRAY" else "rgb")


def _decoded(data: bytes | memoryview) -> Any:
    """Pixels as they are stored: with transparency, and with 16 bits if there are so many."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise TransformError("is a broken image: its pixels cannot be decoded")
    return pixels


def _resized(pixels: Any, wanted: tuple[int, int]) -> Any:
    made = cv2.resize(pixels, (wanted[1], wanted[0]), interpolation=cv2.INTER_AREA)
    return made.reshape(*wanted, -1) if pixels.ndim == 3 else made


def _encoded(extension: str, pixels: Any, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, pixels, options)
    if not done:
        raise TransformError(f"cannot be encoded as {extension[1:]}")
    return data.tobytes()


def _kept_segments(data: bytes, keeps_profile: bool) -> list[bytes]:
    """The EXIF and colour profile segments of a JPEG, as they lie in front of its pixels."""
    kept, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_exif = data[at + 1] == _EXIF and data[at + 4 : at + 10] == b"Exif\0\0"
        is_profile = data[at + 1] == _PROFILE and data[at + 4 : at + 16] == b"ICC_PROFILE\0"
        if end <= len(data) and (is_exif or (is_profile and keeps_profile)):
            kept.append(data[at:end])
        at = end
    return kept
