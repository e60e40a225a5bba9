"""Images made smaller while packing: the right size, the same picture, and nothing touched that is small enough."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import OptionError, TransformError
from headrace.transform.pixels import decode_image
from headrace.transform.probe import probe_image
from headrace.transform.reencode import check_shrink_options, shrink_image, smaller_size


def picture(height, width, mode="RGB"):
    """A smooth picture, so that resizing and lossy formats change it little."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / width * 6)], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encoded(image, format, **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("WEBP", "RGB")],
)
@pytest.mark.parametrize("size", [(301, 450), (640, 410), (1000, 300)])
def test_the_shorter_side_becomes_what_was_asked_and_the_picture_stays(format, mode, size):
    data = encoded(picture(*size, mode), format)
    made = shrink_image(data, short=128, max_side=None, quality=90)
    height, width = probe_image(made)
    assert min(height, width) == 128
    assert abs(height / width - size[0] / size[1]) < 0.02
    assert Image.open(BytesIO(made)).format == format
    assert Image.open(BytesIO(made)).mode == ("RGB" if mode == "CMYK" else mode)
    reference = np.asarray(
        Image.open(BytesIO(data)).convert("RGB").resize((width, height), Image.Resampling.BOX), float
    )
    assert np.abs(decode_image(made).astype(float) - reference).mean() < 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_what_is_small_enough_is_not_touched(format):
    data = encoded(picture(100, 120), format)
    assert shrink_image(data, short=100, max_side=120, quality=10) == data


def test_a_16_bit_png_keeps_its_depth():
    pixels = (np.arange(200 * 300, dtype=np.uint32).reshape(200, 300) % 65536).astype(np.uint16)
    made = shrink_image(encoded(Image.fromarray(pixels), "PNG"), short=50, max_side=None, quality=90)
    assert Image.open(BytesIO(made)).mode.startswith("I")


def test_a_jpeg_keeps_exif_and_colour_profile():
    image = picture(300, 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif, icc_profile=b"profile" * 50)
    made = Image.open(BytesIO(shrink_image(data, short=100, max_side=None, quality=90)))
    assert made.getexif()[0x0112] == 6
    assert made.info["icc_profile"] == b"profile" * 50


def test_quality_decides_the_size():
    data = encoded(picture(600, 800), "JPEG", quality=95)
    sizes = [len(shrink_image(data, short=300, max_side=None, quality=quality)) for quality in (30, 60, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_other_formats_are_refused_when_they_are_too_large():
    with pytest.raises(TransformError, match="no JPEG, PNG or WebP, and only those are made smaller"):
        shrink_image(encoded(picture(100, 120), "BMP"), short=50, max_side=None, quality=90)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_image_is_refused(format):
    data = encoded(picture(300, 400), format)
    with pytest.raises(TransformError):
        shrink_image(data[: len(data) // 2], short=100, max_side=None, quality=90)


@given(st.integers(1, 5000), st.integers(1, 5000), st.none() | st.integers(1, 6000), st.none() | st.integers(1, 6000))
def test_sizes_shrink_to_the_bounds_and_never_grow(height, width, short, max_side):
    made = smaller_size((height, width), short, max_side)
    assert all(1 <= new <= old for new, old in zip(made, (height, width), strict=True))
    if short is not None:
        assert min(made) <= short
    if max_side is not None:
        assert max(made) <= max_side
    if (short or 9999) >= min(height, width) and (max_side or 9999) >= max(height, width):
        assert made == (height, width)


@pytest.mark.parametrize(("short", "max_side", "quality"), [(0, None, 90), (None, -1, 90), (1, 1, 0), (1, 1, 101)])
def test_wrong_options_are_refused(short, max_side, quality):
    with pytest.raises(OptionError, match="must be a"):
        check_shrink_options(short, max_side, quality)
