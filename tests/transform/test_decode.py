"""Decode: fields become values by their extension, images as Pillow reads them."""

import io

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from headrace.errors import OptionError, TransformError
from headrace.transform import ArraySpec, Decode, Encoded, Ragged

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def encode(image_format, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, image_format, **options)
    return out.getvalue()


def smooth_jpeg(mode="RGB", **options):
    ramp = np.linspace(0, 255, 96)
    pixels = np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (96, 1)), np.tile(ramp[::-1, None], (1, 96))], -1)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def by_pillow(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def decode(field, data, **options):
    return Decode(**options)({"__key__": "k", field: data})[field]


@pytest.mark.parametrize(
    ("field", "image_format", "mode"),
    [
        ("png", "PNG", "RGB"),
        ("png", "PNG", "L"),
        ("png", "PNG", "LA"),
        ("png", "PNG", "RGBA"),
        ("png", "PNG", "P"),
        ("png", "PNG", "1"),
        ("gif", "GIF", "P"),
        ("bmp", "BMP", "RGB"),
        ("tiff", "TIFF", "RGB"),
        ("tif", "TIFF", "CMYK"),
        ("ppm", "PPM", "RGB"),
    ],
)
def test_lossless_images_are_exactly_pillows(field, image_format, mode):
    data = encode(image_format, mode)
    assert np.array_equal(decode(field, data), by_pillow(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_nearly_pillows(mode, options):
    data = smooth_jpeg(mode, **options)
    difference = np.abs(decode("jpg", data).astype(int) - by_pillow(data))
    assert difference.mean() < 0.6
    assert difference.max() <= 4


def test_harmless_faults_in_a_jpeg_are_read_over():
    """Stray bytes before the end marker: simplejpeg refuses, Pillow reads."""
    data = smooth_jpeg()
    assert np.array_equal(decode("jpg", data[:-2] + b"\0\0\0" + data[-2:]), by_pillow(data))


def test_webp_is_nearly_pillows():
    data = encode("WEBP", quality=90)
    assert np.abs(decode("webp", data).astype(int) - by_pillow(data)).mean() < 1


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_gray_has_one_channel(image_format):
    data = encode(image_format)
    image = decode("x.png", data, color="gray")
    assert image.shape == (40, 60, 1)
    assert np.abs(image[..., 0].astype(int) - by_pillow(data, "L")).mean() < 1


def test_content_decides_the_format():
    data = encode("PNG")
    assert np.array_equal(decode("jpg", data), PIXELS)


def test_16_bit_keeps_the_high_byte():
    out = io.BytesIO()
    Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 77).save(out, "PNG")
    assert np.array_equal(decode("png", out.getvalue())[..., 1], PIXELS[..., 0])


def test_float_images_are_refused():
    out = io.BytesIO()
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(out, "TIFF")
    with pytest.raises(TransformError, match="field 'tif' holds pixels of Pillow's mode 'F'"):
        decode("tif", out.getvalue())


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert decode("png", encode(image_format, exif=exif)).shape == (40, 60, 3)


def test_first_frame_of_an_animation():
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert decode("gif", out.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_cut_off_images_are_errors_that_name_the_field(image_format):
    data = encode(image_format)
    with pytest.raises(TransformError, match=r"field 'seg\.png' "):
        decode("seg.png", data[: len(data) * 3 // 4])


def test_read_only_memory_decodes_as_bytes_do():
    for data in (encode("PNG"), smooth_jpeg()):
        assert np.array_equal(decode("png", memoryview(data)), decode("png", data))
        assert np.array_equal(decode("png", bytearray(data)), decode("png", data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_damage_is_a_transform_error_or_an_image_of_some_size(image_format):
    """Whatever the bytes hold: no other error, and no array of another kind."""
    whole = encode(image_format)
    rng = np.random.default_rng(0)
    for number in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data) if number % 2 else 120, 4):
            data[place] = rng.integers(0, 256)
        try:
            pixels, reason = decode("png", bytes(data)), ""
        except TransformError as err:
            pixels, reason = PIXELS, str(err)
        assert "\n" not in reason
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


def test_a_png_with_a_wrong_checksum_does_not_decode():
    data = bytearray(encode("PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(TransformError, match="field 'png' is a broken image"):
        decode("png", bytes(data))


def npy(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("field", "data", "value"),
    [
        ("json", b'{"a": [1, 2]}', {"a": [1, 2]}),
        ("meta.json", b"null", None),
        ("txt", "grün".encode(), "grün"),
        ("md", b"# title", "# title"),
        ("cls", b"7\n", 7),
        ("id", b"-1", -1),
        ("bin", b"\0\1", b"\0\1"),
        ("", b"x", b"x"),
        ("TXT", b"x", "x"),
    ],
)
@pytest.mark.parametrize("as_type", [bytes, memoryview])
def test_values_by_extension(field, data, value, as_type):
    assert decode(field, as_type(data)) == value


def test_npy_gives_the_array():
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert np.array_equal(decode("emb.npy", npy(array)), array)


@pytest.mark.parametrize(
    ("field", "data", "reason"),
    [
        ("json", b"{", "field 'json' is not JSON"),
        ("txt", b"\xff\xfe", "field 'txt' is not UTF-8 text"),
        ("cls", b"cat", "field 'cls' is not a whole number"),
        ("cls", b"1.5", "field 'cls' is not a whole number"),
        ("npy", b"PK\3\4", "field 'npy' is not an array"),
        ("npy", npy(np.array([{}]), allow_pickle=True), "field 'npy' is not an array without Python objects"),
        ("npy", npy(np.arange(100))[:-8], "field 'npy' is not an array"),
        ("jpg", b"", "field 'jpg' is empty"),
        ("jpg", b"<svg/>", "field 'jpg' is not an image"),
    ],
)
def test_broken_values_name_field_and_reason(field, data, reason):
    with pytest.raises(TransformError, match=reason):
        decode(field, data)


@pytest.mark.parametrize("field", ["pkl", "pickle", "pyd", "pth", "pt", "x.PKL"])
def test_pickles_are_refused(field):
    with pytest.raises(TransformError, match="would run code"):
        decode(field, b"cos\nsystem\n(S'true'\ntR.")


def test_typed_values_pass_as_they_are():
    tokens = np.arange(4, dtype=np.uint16)
    sample = {"__key__": "k.json", "tokens": tokens, "cls": 3, "txt": "ready"}
    assert Decode()(sample) == sample
    assert Decode()(sample)["tokens"] is tokens


def test_output_fields_say_what_comes_out():
    fields = {
        "jpg": Encoded((40, 60)),
        "seg.png": Encoded(),
        "cls": Encoded(),
        "txt": Encoded(),
        "bin": Encoded(),
        "tokens": ArraySpec("uint16", (8,)),
        "odd": None,
    }
    assert Decode().output_fields(fields) == {
        "jpg": ArraySpec("uint8", (40, 60, 3)),
        "seg.png": Ragged("uint8", (None, None, 3)),
        "cls": ArraySpec("int64", ()),
        "txt": None,
        "bin": Encoded(),
        "tokens": ArraySpec("uint16", (8,)),
        "odd": None,
    }
    assert Decode("gray").output_fields({"jpg": Encoded((4, 6))})["jpg"] == ArraySpec("uint8", (4, 6, 1))


def test_of_stored_arrays_nothing_is_known():
    """A stored array's shape lies in the data: it is left out, so that the loader looks at samples."""
    assert Decode().output_fields({"emb.npy": Encoded(), "cls": Encoded()}) == {"cls": ArraySpec("int64", ())}
    typed = {"tokens": ArraySpec("uint16", (8,))}
    assert Decode().output_fields(typed) == typed


def test_unknown_color_is_refused():
    with pytest.raises(OptionError, match="rgb, gray"):
        Decode(color="bgr")


def test_pickles_small():
    assert cloudpickle.loads(cloudpickle.dumps(Decode("gray"))) == Decode("gray")
