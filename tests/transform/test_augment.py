"""Colours, borders, crops and erased parts: torchvision's meaning, Pillow's results, determined by the generator."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from headrace.errors import OptionError, TransformError
from headrace.transform import (
    ArraySpec,
    ColorJitter,
    Pad,
    Ragged,
    RandomCrop,
    RandomErasing,
    RandomVerticalFlip,
    apply,
    sample_rng,
)
from headrace.transform.augment import change_brightness, change_contrast, change_saturation, shift_hue
from torchvision_here import transforms

STEPS = [
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandomVerticalFlip(),
    RandomErasing(p=1),
    RandomErasing(value=7),
    Pad(3),
    Pad((1, 2, 3, 4), fill=9),
    Pad(2, padding_mode="reflect"),
    RandomCrop(16),
    RandomCrop((48, 70), padding=8, padding_mode="symmetric"),
    RandomCrop(100, pad_if_needed=True),
]
FACTORS = [0.0, 0.3, 0.9, 1.0, 1.4, 2.5]


def image(height=40, width=60, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def run(step, pixels, position=0):
    return apply([step], {"__key__": "k", "jpg": pixels}, lambda: sample_rng(1, 2, position))["jpg"]


def largest_difference(pixels, expected):
    return np.abs(pixels.astype(int) - np.asarray(expected).reshape(pixels.shape)).max()


@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_output_is_as_declared(step, channels):
    pixels = image(channels=channels)
    out = run(step, pixels)
    assert out.dtype == np.uint8
    assert step.output_fields({"jpg": ArraySpec("uint8", pixels.shape)}) == {"jpg": ArraySpec("uint8", out.shape)}


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_same_generator_same_result_and_input_untouched(step):
    pixels = image()
    before = pixels.copy()
    pixels.setflags(write=False)
    assert np.array_equal(run(step, pixels, 5), run(step, pixels, 5))
    assert np.array_equal(pixels, before)


def test_sizes_that_vary_vary_after_borders_and_are_fixed_by_crops():
    varying = {"jpg": Ragged("uint8", (None, None, 3))}
    assert Pad(2).output_fields(varying) == varying
    assert RandomCrop(8).output_fields(varying)["jpg"] == ArraySpec("uint8", (8, 8, 3))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("change", "enhance"),
    [
        (change_brightness, ImageEnhance.Brightness),
        (change_contrast, ImageEnhance.Contrast),
        (change_saturation, ImageEnhance.Color),
    ],
)
def test_colours_change_as_pillow_changes_them(change, enhance, factor):
    pixels = image() // 2 + 40
    expected = enhance(Image.fromarray(pixels)).enhance(factor)
    assert largest_difference(change(pixels, factor), expected) <= max(1, factor)  # Pillow's gray is rounded by 1 too


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("change", "enhance"), [(change_brightness, ImageEnhance.Brightness), (change_contrast, ImageEnhance.Contrast)]
)
def test_gray_images_change_as_pillow_changes_them(change, enhance, factor):
    pixels = image(channels=1)
    expected = enhance(Image.fromarray(pixels[:, :, 0])).enhance(factor)
    assert largest_difference(change(pixels, factor), expected) <= 1


@pytest.mark.parametrize(
    ("turns", "expected"), [(1 / 3, [0, 255, 0]), (-1 / 3, [0, 0, 255]), (0.5, [0, 255, 255]), (-0.5, [0, 255, 255])]
)
def test_hues_move_along_the_circle(turns, expected):
    red = np.full((4, 6, 3), (255, 0, 0), np.uint8)
    assert largest_difference(shift_hue(red, turns), np.full((4, 6, 3), expected)) <= 6  # one step of hue


def test_hue_is_pillows_hue_of_8_bits():
    pixels = image(seed=3)
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[:, :, 0] += 51
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    assert np.abs(shift_hue(pixels, 0.2).astype(int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("change", "name", "amounts"),
    [
        (change_brightness, "adjust_brightness", FACTORS),
        (change_contrast, "adjust_contrast", FACTORS),
        (change_saturation, "adjust_saturation", FACTORS),
        (shift_hue, "adjust_hue", [-0.5, -0.2, 0.1, 0.4]),
    ],
)
def test_colours_change_as_torchvision_changes_them(change, name, amounts):
    adjust = getattr(transforms("v2").functional, name)
    pixels = image(seed=4)
    for amount in amounts:
        expected = adjust(torch.from_numpy(pixels).permute(2, 0, 1), amount).permute(1, 2, 0).numpy()
        # Pillow rounds the mean that contrast is about, torchvision cuts it off: one level.
        assert np.abs(change(pixels, amount).astype(int) - expected).mean() <= (2 if name == "adjust_hue" else 1)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_borders_are_torchvisions(mode):
    pixels = image()
    expected = transforms("v2").Pad((1, 2, 3, 4), padding_mode=mode)(torch.from_numpy(pixels).permute(2, 0, 1))
    assert np.array_equal(run(Pad((1, 2, 3, 4), padding_mode=mode), pixels), expected.permute(1, 2, 0).numpy())


def test_jitter_without_strength_leaves_the_image():
    pixels = image()
    assert run(ColorJitter(), pixels) is pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_draws_from_the_range_asked_for(channels):
    pixels = np.full((4, 4, channels), 100, np.uint8)
    levels = np.array([run(ColorJitter(brightness=(0.5, 1.5)), pixels, p)[0, 0, 0] for p in range(500)])
    assert 50 <= levels.min() < 55
    assert 145 < levels.max() <= 150
    assert abs(levels.mean() - 100) < 4


def test_jitter_takes_its_changes_in_any_order():
    """Brightness that cuts off at 255 and contrast around the mean give two results, one for each order."""
    pixels = image()
    bright, flat = {"brightness": (2, 2)}, {"contrast": (0.2, 0.2)}
    found = {run(ColorJitter(**bright, **flat), pixels, p).tobytes() for p in range(30)}
    one, other = run(ColorJitter(**flat), run(ColorJitter(**bright), pixels)), change_contrast(pixels, 0.2)
    assert found == {one.tobytes(), change_brightness(other, 2).tobytes()}


def test_gray_images_have_no_colour_to_change():
    pixels = image(channels=1)
    assert np.array_equal(run(ColorJitter(saturation=0.9, hue=0.5), pixels), pixels)


def test_vertical_flip_mirrors_top_to_bottom_half_of_the_time():
    pixels = image()
    flipped = [not np.array_equal(run(RandomVerticalFlip(), pixels, p), pixels) for p in range(400)]
    assert 150 < sum(flipped) < 250
    assert np.array_equal(run(RandomVerticalFlip(1), pixels), pixels[::-1])


@pytest.mark.parametrize(("mode", "numpy_mode"), [("edge", "edge"), ("reflect", "reflect"), ("symmetric", "symmetric")])
def test_borders_show_what_the_mode_says(mode, numpy_mode):
    pixels = image()
    expected = np.pad(pixels, ((2, 4), (1, 3), (0, 0)), numpy_mode)
    assert np.array_equal(run(Pad((1, 2, 3, 4), padding_mode=mode), pixels), expected)


def test_borders_of_a_colour_are_pillows():
    pixels = image()
    expected = ImageOps.expand(Image.fromarray(pixels), (1, 2, 1, 2), (10, 20, 30))
    assert np.array_equal(run(Pad((1, 2), fill=(10, 20, 30)), pixels), np.asarray(expected))


def test_crops_come_from_every_place():
    rows, columns = np.mgrid[0:12, 0:10]
    pixels = np.stack([rows, columns, rows], -1).astype(np.uint8)
    crops = [run(RandomCrop((8, 8)), pixels, p) for p in range(300)]
    assert {(int(c[0, 0, 0]), int(c[0, 0, 1])) for c in crops} == {(y, x) for y in range(5) for x in range(3)}
    assert all(np.array_equal(c, pixels[c[0, 0, 0] :, c[0, 0, 1] :][:8, :8]) for c in crops)


def test_crops_reach_into_the_borders():
    pixels = image(32, 32)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    parts = {padded[y : y + 32, x : x + 32].tobytes() for y in range(9) for x in range(9)}
    crops = {run(RandomCrop(32, padding=4), pixels, p).tobytes() for p in range(200)}
    assert crops <= parts
    assert len(crops) > 50


def test_erased_rectangles_have_the_areas_and_aspects_asked_for():
    step = RandomErasing(p=1, scale=(0.1, 0.2), ratio=(0.5, 2))
    parts = np.array([step.part(300, 400, sample_rng(0, 0, position)) for position in range(1000)])
    top, left, height, width = parts.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    assert 0.097 < (height * width / 120_000).min() < 0.11
    assert 0.19 < (height * width / 120_000).max() < 0.203
    assert (height / width).min() > 0.49
    assert (height / width).max() < 2.05


def test_what_is_erased_has_the_colour_and_nothing_else_changes():
    pixels = image() // 2
    out = run(RandomErasing(p=1, value=(200, 210, 220)), pixels)
    erased = (out == (200, 210, 220)).all(-1)
    assert 0 < erased.sum() < 40 * 60
    assert np.array_equal(out[~erased], pixels[~erased])
    rows, columns = np.nonzero(erased)
    assert erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_erasing_happens_as_often_as_asked():
    pixels = image() | 1
    erased = [not np.array_equal(run(RandomErasing(p=0.25), pixels, p), pixels) for p in range(400)]
    assert 65 < sum(erased) < 135


@pytest.mark.parametrize(
    ("step", "channels", "message"),
    [
        (ColorJitter(0.1), 4, "the image has 4 channels: colours are those of 1"),
        (RandomErasing(1, value=(1, 2)), 3, "the image has 3 channels, but the colour .* has 2 values"),
        (Pad(1, fill=(1, 2, 3)), 1, "the image has 1 channels, but the colour"),
        (RandomCrop(50, padding=2), 3, "the image is 44 x 64 pixels with its borders, less than the crop of 50 x 50"),
    ],
)
def test_what_does_not_fit_is_named(step, channels, message):
    with pytest.raises(TransformError, match=f"{type(step).__name__} failed: .*{message}"):
        run(step, image(channels=channels))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ColorJitter(-0.1),
        lambda: ColorJitter(contrast=(2, 1)),
        lambda: ColorJitter(saturation=float("nan")),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(hue=(-0.6, 0)),
        lambda: RandomVerticalFlip(-1),
        lambda: RandomErasing(2),
        lambda: RandomErasing(scale=(0.1, 2)),
        lambda: RandomErasing(value=256),
        lambda: Pad(-1),
        lambda: Pad((1, 2, 3)),
        lambda: Pad(1, padding_mode="wrap"),
        lambda: Pad(1, fill=()),
        lambda: Pad(1, fill=7, padding_mode="edge"),
        lambda: RandomCrop(0),
        lambda: RandomCrop(8, padding=1.5),
    ],
)
def test_impossible_options_are_refused_when_made(make):
    with pytest.raises(OptionError):
        make()
