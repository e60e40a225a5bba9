"""probe_image: the size of whole images, a reason for anything else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from headrace.errors import TransformError
from headrace.transform import probe_image

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"]


def encode(image_format, height=40, width=60, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **options)
    return out.getvalue()


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("as_type", [bytes, memoryview])
def test_size_is_height_then_width(image_format, as_type):
    assert probe_image(as_type(encode(image_format))) == (40, 60)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_cut_off_images_are_refused(image_format, share):
    data = encode(image_format)
    with pytest.raises(TransformError):
        probe_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file", "is not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>', "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "is not an image"),
        (b"\xff\xd8\xff", "is not an image of JPEG, or its header"),
        (b"\x89PNG\r\n\x1a\n", "ends early: no IHDR"),
        (encode("PNG")[:-12], "ends early: no IEND"),
        (encode("PNG")[:-20], "ends early: its IDAT chunk"),
        (encode("JPEG")[:-200], "ends early: no end of image"),
        (encode("WEBP")[:-10], "ends early: "),
    ],
)
def test_reason_says_what_was_found(data, reason):
    with pytest.raises(TransformError, match=reason):
        probe_image(data)


def test_damage_in_png_pixels_shows():
    data = bytearray(encode("PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(TransformError, match="checksum of its IDAT"):
        probe_image(bytes(data))


def test_thumbnail_does_not_hide_a_cut():
    """A camera's thumbnail has an end marker of its own, inside the header."""
    thumbnail = encode("JPEG", 8, 8)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = encode("JPEG")
    whole = data[:2] + segment + data[2:]
    assert probe_image(whole) == (40, 60)
    with pytest.raises(TransformError, match="ends early"):
        probe_image(whole[:-100])


def test_bytes_behind_the_end_are_allowed():
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert probe_image(encode(image_format) + b"trailer of a camera" * 20) == (40, 60)


def test_progressive_and_gray_jpegs_are_images():
    assert probe_image(encode("JPEG", progressive=True)) == (40, 60)
    out = io.BytesIO()
    Image.new("L", (7, 5)).save(out, "JPEG")
    assert probe_image(out.getvalue()) == (5, 7)


def test_a_bomb_is_refused_before_memory_is_taken():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    with pytest.raises(TransformError, match="at most 178,956,970"):
        probe_image(data)
