"""A JPEG decoded no larger than its crop needs: the same crop, nearly the same pixels, and only where asked for."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import TransformError
from headrace.transform import (
    Decode,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ScaledDecode,
    apply,
    describe_steps,
    lasting_steps,
    sample_rng,
    with_step,
)
from headrace.transform.cut import Cut

CROP = RandomResizedCrop(32)
TO_COPY = [CROP, RandomResizedCrop((20, 50), scale=(0.5, 1)), Resize(40), Resize((30, 24))]


def natural(height, width, seed=0):
    """Pixels with the spectrum of photographs, 1/f."""
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(noise / frequency, s=(height, width), axes=(0, 1))
    return np.interp(field, (field.min(), field.max()), (0, 255)).astype(np.uint8)


def ramps(height, width):
    """Pixels that tell where they are: red from top to bottom, green from left to right."""
    rows, columns = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None] * 255
    return np.stack([rows, columns, np.full_like(rows, 128)], -1).astype(np.uint8)


def encode(pixels, image_format="JPEG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **options)
    return out.getvalue()


def run(ops, sample, position=0):
    return apply(ops, {"__key__": "k", **sample}, lambda: sample_rng(1, 2, position))


def by_pillow(data, crop, position):
    """What Pillow makes of the part that the crop draws at this position."""
    image = Image.open(io.BytesIO(data))
    top, left, height, width = crop.part(image.height, image.width, sample_rng(1, 2, position))
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize(crop.size, Image.Resampling.BILINEAR, box), int)


def scaled(step, **options):
    return with_step([Decode(scaled=True, **options)], step)


def full(step, **options):
    return with_step([Decode(**options)], step)


def test_a_crop_or_size_directly_behind_becomes_one_step_with_the_decoding():
    decode = Decode(scaled=True)
    assert with_step([decode], CROP) == (ScaledDecode(decode, CROP),)
    assert with_step([decode], Resize(20)) == (ScaledDecode(decode, Resize(20)),)
    assert with_step([decode], RandomHorizontalFlip()) == (decode, RandomHorizontalFlip())
    assert with_step([decode, RandomHorizontalFlip()], CROP) == (decode, RandomHorizontalFlip(), CROP)
    assert with_step([Decode()], CROP) == (Decode(), CROP)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_the_part_is_never_smaller_than_what_it_becomes(height, width, out_height, out_width, position):
    cut = RandomResizedCrop((out_height, out_width)).cut(height, width, sample_rng(0, 0, position))
    small, n = cut.shrunk(cut.factor), cut.factor
    assert small.top + small.height <= -(-height // n)
    assert small.left + small.width <= -(-width // n)
    assert small.height >= min(out_height, cut.height)
    assert small.width >= min(out_width, cut.width)
    edges = [cut.top, cut.left, cut.top + cut.height, cut.left + cut.width]
    shrunk = [small.top, small.left, small.top + small.height, small.left + small.width]
    assert all(abs(edge - n * one) <= n / 2 for edge, one in zip(edges, shrunk, strict=True))
    assert n == 8 or cut.height < 2 * n * out_height or cut.width < 2 * n * out_width


def test_a_shrunk_cut_keeps_its_size_afterwards():
    assert Cut(16, 24, 64, 80, 7, 9).factor == 8
    assert Cut(16, 24, 64, 80, 7, 9).shrunk(8) == Cut(2, 3, 8, 10, 7, 9)
    assert Cut(16, 24, 64, 80, 17, 9).factor == 2
    assert Cut(16, 24, 64, 80, 65, 9).factor == 1


@pytest.mark.parametrize("step", TO_COPY, ids=repr)
@pytest.mark.parametrize("position", range(8))
def test_the_same_part_comes_with_and_without(step, position):
    """On ramps a pixel tells where it came from: within a pixel of the smaller image."""
    data = encode(ramps(415, 450), quality=98, subsampling=0)
    a, b = (run(ops, {"jpg": data}, position)["jpg"].astype(int) for ops in (scaled(step), full(step)))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 5  # 4 pixels of 415, where it is shrunk by 8, are 2.5 of 255


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["rgb", "gray"]), st.integers(0, 20))
def test_any_size_gives_what_is_declared(height, width, color, position):
    data, step = encode(ramps(height, width)), RandomResizedCrop((5, 8))
    out = run(scaled(step, color=color), {"jpg": data}, position)["jpg"]
    assert out.shape == (5, 8, 3 if color == "rgb" else 1)
    assert np.abs(out.astype(int) - run(full(step, color=color), {"jpg": data}, position)["jpg"]).mean() < 20


@pytest.mark.parametrize("sides", [(415, 450), (500, 375), (240, 320)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_in_full_it_is_near_pillows_bilinear(sides, subsampling):
    """Mean absolute error under 2 of 255, over crops to 224 pixels of images with a natural spectrum."""
    data, step = encode(natural(*sides), quality=92, subsampling=subsampling), RandomResizedCrop(224)
    for position in range(6):
        expected = by_pillow(data, step, position)
        for ops in (full(step), scaled(step)):  # nothing is decoded smaller here: no crop is twice as large as 224
            assert np.abs(run(ops, {"jpg": data}, position)["jpg"] - expected).mean() < 2


@pytest.mark.parametrize("size", [96, 32])
def test_scaled_it_is_not_far_from_pillows_bilinear(size):
    """Under 6 of 255, the worst of photographs and of images with a natural spectrum being 4 to 6."""
    data, step = encode(natural(415, 450), quality=92), RandomResizedCrop(size)
    for position in range(6):
        expected = by_pillow(data, step, position)
        assert np.abs(run(scaled(step), {"jpg": data}, position)["jpg"] - expected).mean() < 6


def test_later_steps_draw_the_same_numbers():
    data = encode(natural(300, 300))
    flips = [*scaled(CROP), RandomHorizontalFlip()], [*full(CROP), RandomHorizontalFlip()]
    for position in range(12):
        a, b = (run(ops, {"jpg": data}, position)["jpg"].astype(int) for ops in flips)
        assert np.abs(a - b).mean() < np.abs(a[:, ::-1] - b).mean()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_other_formats_are_decoded_in_full(image_format):
    data = encode(natural(200, 300), image_format)
    for step in TO_COPY:
        assert np.array_equal(run(scaled(step), {"png": data})["png"], run(full(step), {"png": data})["png"])


def test_what_only_pillow_reads_is_decoded_in_full():
    cmyk = io.BytesIO()
    Image.fromarray(natural(200, 300)).convert("CMYK").save(cmyk, "JPEG")
    sample = {"jpg": cmyk.getvalue()}
    for position in range(4):
        assert np.array_equal(run(scaled(CROP), sample, position)["jpg"], run(full(CROP), sample, position)["jpg"])


def test_the_other_fields_and_their_order_stay():
    sample = {"cls": b"3", "jpg": encode(natural(100, 100)), "txt": b"a"}
    out = run(scaled(CROP), sample)
    assert list(out) == ["__key__", "cls", "jpg", "txt"]
    assert (out["cls"], out["txt"]) == (3, "a")


def test_of_several_images_the_named_one_is_cut():
    sample = {"jpg": encode(natural(100, 100)), "seg.png": encode(natural(50, 60), "PNG"), "b.jpg": encode(ramps(9, 9))}
    step = RandomResizedCrop(16, field="jpg")
    out = run(scaled(step), sample)
    assert [out[name].shape for name in sample] == [(16, 16, 3), (50, 60, 3), (9, 9, 3)]
    with pytest.raises(TransformError, match=r"Decode with RandomResizedCrop failed: there are several images"):
        run(scaled(CROP), sample)
    with pytest.raises(TransformError, match=r"there are several images \(jpg, seg.png\)"):
        run(scaled(CROP), {name: sample[name] for name in ("jpg", "seg.png")})


@pytest.mark.parametrize("length", [3, 40, 2000])
def test_a_cut_off_jpeg_is_an_error_that_names_the_field(length):
    with pytest.raises(TransformError, match=r"Decode with RandomResizedCrop failed: field 'jpg' "):
        run(scaled(CROP), {"jpg": encode(natural(200, 200))[:length]})


def test_as_the_last_step_it_writes_into_the_row():
    data, row = encode(natural(300, 300)), np.zeros((32, 32, 3), np.uint8)
    out = apply(scaled(CROP), {"__key__": "k", "jpg": data}, lambda: sample_rng(1, 2, 0), {"jpg": row})
    assert out["jpg"] is row
    assert np.array_equal(row, run(scaled(CROP), {"jpg": data})["jpg"])


def test_what_is_made_of_it_is_kept_where_nothing_is_drawn():
    """A cache of decoded samples must not decode in full what the stream decodes smaller."""
    assert lasting_steps(scaled(CROP)) == ()
    ops = (*scaled(Resize(20)), Normalize((0.5,), (0.5,)))
    assert lasting_steps(ops) == ops[:1]
    assert describe_steps(ops[:1]) != describe_steps(full(Resize(20)))
    images = frozenset("abcdefgh")
    assert repr(sorted(images)) in describe_steps(scaled(Resize(20), images=images))
