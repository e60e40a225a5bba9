"""Is this an image, and how large? Answered from headers and structure, without decoding pixels.

Packing asks this of every image. Reading the header alone would pass a file whose download stopped half-way, so the
structure is followed to its end, which costs microseconds: a JPEG's segments up to its end marker, a PNG's chunks with
their checksums, a WebP's or TIFF's own account of where its bytes lie.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import simplejpeg

from headrace.errors import TransformError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970
"""Images of more pixels are refused: a few kilobytes can claim gigabytes. It is the limit at which Pillow refuses."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats left to Pillow. No others: some of its readers start programs (EPS) or are rarely used and rarely checked."""

_START_OF_SCAN = 0xDA
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325


def probe_image(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width of an encoded image, in pixels as stored (an EXIF rotation is not applied).

    Raises TransformError with a short reason, to be put behind the file's name, for data that is empty, cut off,
    broken or no image. Damage inside compressed pixels is not noticed where the format has no checksum.
    """
    data = bytes(data)
    if data.startswith(JPEG_START):
        size = jpeg_header(data)[:2]
        _check_jpeg_end(data)
    elif data.startswith(PNG_SIGNATURE):
        size = _walk_png(data)
    else:
        size = _probe_other(data)
    return size


def jpeg_header(data: bytes | memoryview) -> tuple[int, int, str]:
    """Height, width and colour space of a JPEG, from its header."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # broken, or of an unusual subsampling, which Pillow reads
        with open_with_pillow(data, ("JPEG",)) as image:
            height, width, colorspace = image.height, image.width, image.mode
    check_pixels(height, width)
    return height, width, colorspace


def png_size(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width of a PNG, from its first chunk."""
    if len(data) < 33:
        raise TransformError("ends early: no IHDR chunk")
    if bytes(data[12:16]) != b"IHDR":
        raise TransformError("is not a PNG: its first chunk is not IHDR")
    width, height = struct.unpack(">II", data[16:24])
    check_pixels(height, width)
    return height, width


def open_other(data: bytes | memoryview) -> Image:
    """A Pillow image over the data, its header read: one of OTHER_FORMATS, within MAX_PIXELS."""
    return open_with_pillow(data, OTHER_FORMATS)


def open_with_pillow(data: bytes | memoryview, formats: tuple[str, ...]) -> Image:
    """A Pillow image over the data, its header read."""
    from PIL import Image, UnidentifiedImageError

    if not len(data):
        raise TransformError("is empty")
    try:
        return Image.open(BytesIO(data), formats=formats)
    except UnidentifiedImageError as err:
        known = "a known format (JPEG, PNG, WebP, BMP, TIFF, PPM, GIF)" if formats == OTHER_FORMATS else formats[0]
        raise TransformError(f"is not an image of {known}, or its header is cut off") from err
    except Image.DecompressionBombError as err:
        raise TransformError(_too_large("more")) from err
    except Exception as err:  # Pillow's readers let struct, index, syntax and other errors through on broken headers
        raise TransformError(f"is a broken image: {_reason(err)}") from err


def check_pixels(height: int, width: int) -> None:
    """Refuse a size of no pixels, or of more than MAX_PIXELS."""
    if height <= 0 or width <= 0:
        raise TransformError(f"is an image without pixels: {height} x {width}")
    if height * width > MAX_PIXELS:
        raise TransformError(_too_large(f"{height} x {width}"))


def _check_jpeg_end(data: bytes) -> None:
    # The end marker is searched behind the header: a thumbnail inside it has an end marker of its own. Cameras append
    # data behind the end, so its place is free. Within a scan FF is always escaped, so the marker cannot be pixels.
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            if data.rfind(_JPEG_END, at) >= 0:
                return
            break
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE_MARKERS:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise TransformError("ends early: no end of image marker")


def _walk_png(data: bytes) -> tuple[int, int]:
    size = png_size(data)
    at = len(PNG_SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise TransformError("ends early: no IEND chunk")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise TransformError(f"ends early: its {_chunk_name(name)} chunk is cut off")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise TransformError(f"is damaged: the checksum of its {_chunk_name(name)} chunk differs")
        if name == b"IEND":
            return size
        at = end


def _chunk_name(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _probe_other(data: bytes) -> tuple[int, int]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_length(8 + int.from_bytes(data[4:8], "little"), data)
    with open_other(data) as image:
        check_pixels(image.height, image.width)
        try:
            _check_end(image, data)
        except TransformError:
            raise
        except Exception as err:  # as in open_with_pillow
            raise TransformError(f"is a broken image: {_reason(err)}") from err
        return image.height, image.width


def _check_end(image: Image, data: bytes) -> None:
    if image.format == "TIFF":
        _check_length(_tiff_end(image), data)
    elif image.format == "GIF":
        if not data.rstrip(b"\0").endswith(b";"):
            raise TransformError("ends early: no trailer")
    elif image.format in ("BMP", "PPM"):
        image.load()  # uncompressed: reading is a copy


def _check_length(expected: int, data: bytes) -> None:
    if expected > len(data):
        raise TransformError(f"ends early: {len(data)} bytes of {expected}")


def _tiff_end(image: Image) -> int:
    tags = image.tag_v2  # type: ignore[attr-defined]
    strips = zip(_numbers(tags, _STRIP_OFFSETS), _numbers(tags, _STRIP_BYTES), strict=True)
    tiles = zip(_numbers(tags, _TILE_OFFSETS), _numbers(tags, _TILE_BYTES), strict=True)
    return max((offset + length for offset, length in (*strips, *tiles)), default=0)


def _numbers(tags: object, tag: int) -> tuple[int, ...]:
    return tuple(tags.get(tag, ()))  # type: ignore[attr-defined]


def _too_large(size: str) -> str:
    return f"is an image of {size} pixels: at most {MAX_PIXELS:,} are decoded; read it in a .map function of your own"


def _reason(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
