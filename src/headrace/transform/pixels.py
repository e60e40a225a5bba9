"""Encoded images to uint8 arrays of height x width x channels.

JPEG goes through simplejpeg, everything else through OpenCV; both release the interpreter lock. Pillow has the last
word where they give up: it reads files with harmless faults and refuses those that are cut off. What comes out does not
depend on which of them did the work:

- the content decides the format, not the name: a PNG called `.jpg` is read as a PNG;
- palettes are resolved; transparency is dropped, the colours under it kept;
- 16-bit samples keep their high byte; other number types than 8 and 16 bit are refused;
- CMYK becomes RGB; of an animation the first frame is taken;
- an EXIF rotation is not applied: pixels come as they are stored, as Pillow and torchvision give them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from headrace.errors import TransformError
from headrace.transform.probe import (
    JPEG_START,
    OTHER_FORMATS,
    PNG_SIGNATURE,
    check_pixels,
    jpeg_header,
    open_other,
    open_with_pillow,
    png_size,
)

Color: TypeAlias = Literal["rgb", "gray"]
Pixels: TypeAlias = NDArray[np.uint8]
NUM_CHANNELS: dict[Color, int] = {"rgb": 3, "gray": 1}

_JPEG_SPACES: dict[Color, str] = {"rgb": "RGB", "gray": "GRAY"}
_CV2_FLAGS: dict[Color, int] = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "gray": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}
_PILLOW_MODES: dict[Color, str] = {"rgb": "RGB", "gray": "L"}
_EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"}
)


def prepare_worker() -> None:
    """Settle OpenCV in a process whose threads each transform their own sample.

    Its own threads would compete with those; its log lines on stderr would repeat what the raised error says.
    """
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def is_jpeg(value: object) -> bool:
    """Whether a value is bytes that begin as a JPEG does."""
    return isinstance(value, bytes | memoryview | bytearray) and bytes(value[:3]) == JPEG_START


def decode_image(data: bytes | memoryview, color: Color = "rgb", factor: int = 1) -> Pixels:
    """The image as uint8 of (height, width, 3), or (height, width, 1) for gray; raises TransformError with a reason.

    A JPEG is decoded `factor` (1, 2, 4 or 8) times smaller, its sides rounded up; one that only Pillow reads, and any
    other image, in full.
    """
    if is_jpeg(data):
        return _decode_jpeg(data, color, factor)
    formats: tuple[str, ...] = OTHER_FORMATS
    if bytes(data[:8]) == PNG_SIGNATURE:
        formats = ("PNG",)
        png_size(data)
    else:
        with open_other(data) as image:
            check_pixels(image.height, image.width)
    pixels = _decode_by_cv2(data, color)
    return _decode_by_pillow(data, color, formats) if pixels is None else pixels


def _decode_jpeg(data: bytes | memoryview, color: Color, factor: int) -> Pixels:
    height, width, space = jpeg_header(data)
    if space in ("CMYK", "YCCK"):
        return _decode_by_pillow(data, color, ("JPEG",))
    try:
        # Of the sizes that libjpeg has, the smallest of at least these sides is taken; 0 is any.
        least = (-(-height // factor), -(-width // factor)) if factor > 1 else (0, 0)
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            data, _JPEG_SPACES[color], min_height=least[0], min_width=least[1], min_factor=factor
        )
    except ValueError:  # a fault: Pillow tells harmless ones from a file that is cut off
        return _decode_by_pillow(data, color, ("JPEG",))


def _decode_by_cv2(data: bytes | memoryview, color: Color) -> Pixels | None:
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_FLAGS[color])
    except cv2.error:  # a header that claims an impossible size
        return None
    if pixels is None or pixels.dtype != np.uint8:
        return None
    return pixels.reshape(*pixels.shape[:2], NUM_CHANNELS[color])  # type: ignore[no-any-return]


def _decode_by_pillow(data: bytes | memoryview, color: Color, formats: tuple[str, ...]) -> Pixels:
    with open_with_pillow(data, formats) as image:
        if image.mode not in _EIGHT_BIT_MODES:
            raise TransformError(
                f"holds pixels of Pillow's mode {image.mode!r}, which do not fit 8 bits: "
                "read it in a .map function of your own"
            )
        try:
            pixels = np.array(image.convert(_PILLOW_MODES[color]))
        except Exception as err:  # Pillow's readers let struct, index, syntax and other errors through
            raise TransformError(f"is a broken image: {' '.join(str(err).split())}") from err
    return pixels.reshape(*pixels.shape[:2], NUM_CHANNELS[color])
