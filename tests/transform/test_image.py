"""Image steps: torchvision's meaning, determined by the generator, shapes known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import OptionError, TransformError
from headrace.transform import (
    ArraySpec,
    CenterCrop,
    Normalize,
    Ragged,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    apply,
    sample_rng,
)

STEPS = [
    RandomResizedCrop(24),
    RandomResizedCrop((10, 30), scale=(0.5, 1)),
    Resize(20),
    Resize((11, 13)),
    CenterCrop(16),
    CenterCrop((90, 8)),
    RandomHorizontalFlip(),
    Normalize((0.5,), (0.25,)),
]


def image(height=40, width=60, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def run(step, pixels, position=0):
    return apply([step], {"__key__": "k", "jpg": pixels}, lambda: sample_rng(1, 2, position))["jpg"]


def positions(height, width):
    """An image whose first two channels tell where a pixel came from."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_output_is_as_declared(step, channels):
    pixels = image(channels=channels)
    out = run(step, pixels)
    assert step.output_fields({"jpg": ArraySpec("uint8", pixels.shape)}) == {
        "jpg": ArraySpec(out.dtype.name, out.shape)
    }


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_same_generator_same_result_and_input_untouched(step):
    pixels = image()
    before = pixels.copy()
    pixels.setflags(write=False)
    assert np.array_equal(run(step, pixels, 5), run(step, pixels, 5))
    assert np.array_equal(pixels, before)


def test_sizes_are_fixed_where_images_vary():
    varying = {"jpg": Ragged("uint8", (None, None, 3)), "cls": ArraySpec("int64", ())}
    assert RandomResizedCrop(24).output_fields(varying)["jpg"] == ArraySpec("uint8", (24, 24, 3))
    assert CenterCrop(24).output_fields(varying)["jpg"] == ArraySpec("uint8", (24, 24, 3))
    assert Resize(24).output_fields(varying)["jpg"] == Ragged("uint8", (None, None, 3))
    assert Resize((24, 20)).output_fields(varying)["jpg"] == ArraySpec("uint8", (24, 20, 3))
    assert Normalize([0.5], [0.5]).output_fields(varying)["jpg"] == Ragged("float32", (3, None, None))


def test_crops_cover_the_areas_and_aspects_asked_for():
    step = RandomResizedCrop(8, scale=(0.2, 0.6), ratio=(0.5, 2))
    parts = np.array([step.part(300, 400, sample_rng(0, 0, position)) for position in range(2000)])
    top, left, height, width = parts.T
    area, aspect = height * width / (300 * 400), width / height
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    assert 0.195 < area.min() < 0.21
    assert 0.585 < area.max() < 0.605
    assert abs(area.mean() - 0.4) < 0.02
    assert aspect.min() > 0.49
    assert aspect.max() < 2.05
    assert abs(np.log(aspect).mean()) < 0.06
    centre = top + height / 2
    assert abs(centre.mean() - 150) < 5


def test_crop_that_cannot_fit_falls_back_to_the_middle():
    step = RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1))
    assert step.part(100, 300, sample_rng(0, 0, 0)) == (0, 100, 100, 100)
    assert step.part(300, 100, sample_rng(0, 0, 0)) == (100, 0, 100, 100)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))
def test_crops_work_on_any_size(height, width, position):
    assert run(RandomResizedCrop(5), image(height, width), position).shape == (5, 5, 3)


def test_full_crop_of_the_right_size_is_the_image():
    pixels = image(24, 24)
    assert np.array_equal(run(RandomResizedCrop(24, scale=(1, 1), ratio=(1, 1)), pixels), pixels)


@pytest.mark.parametrize("sides", [(224, 224), (300, 300), (160, 200), (415, 450), (500, 230)])
def test_resizing_is_near_pillows_bilinear(sides):
    """Mean absolute error under 2 of 255 on an image with a natural spectrum."""
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((*sides, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(sides[0])[:, None, None], np.fft.rfftfreq(sides[1])[None, :, None])
    frequency[0, 0] = np.inf
    natural = np.fft.irfft2(noise / frequency, s=sides, axes=(0, 1))
    pixels = np.interp(natural, (natural.min(), natural.max()), (0, 255)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(run(Resize((224, 224)), pixels).astype(int) - expected).mean() < 2


@pytest.mark.parametrize(("sides", "expected"), [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((41, 60), (20, 29))])
def test_int_size_is_the_short_side(sides, expected):
    assert run(Resize(20), image(*sides)).shape[:2] == expected


def test_center_crop_takes_the_middle_and_pads_with_black():
    out = run(CenterCrop(10), positions(40, 60))
    assert out[0, 0, :2].tolist() == [15, 25]
    padded = run(CenterCrop(50), image(40, 60) | 1)
    assert (padded[:5] == 0).all()
    assert (padded[45:] == 0).all()
    assert (padded[5:45] > 0).all()


def test_flip_mirrors_left_to_right_half_of_the_time():
    pixels = positions(4, 6)
    flipped = [not np.array_equal(run(RandomHorizontalFlip(), pixels, p), pixels) for p in range(400)]
    assert 150 < sum(flipped) < 250
    assert np.array_equal(run(RandomHorizontalFlip(1), pixels), pixels[:, ::-1])
    assert np.array_equal(run(RandomHorizontalFlip(0), pixels), pixels)


def test_normalize_is_torchvisions_formula():
    pixels, mean, std = image(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    out = run(Normalize(mean, std), pixels)
    assert out.dtype == np.float32
    assert np.allclose(out, expected, atol=1e-5)
    assert np.allclose(run(Normalize(0.5, 0.5), pixels).min(), -1)


def test_several_images_need_a_name():
    sample = {"__key__": "k", "jpg": image(), "seg.png": image(channels=1), "cls": 3}
    with pytest.raises(TransformError, match=r"several images \(jpg, seg\.png\): say which with field="):
        apply([Resize(8)], sample, None)
    out = apply([Resize(8, field="seg.png")], sample, None)
    assert out["seg.png"].shape == (8, 12, 1)
    assert out["jpg"] is sample["jpg"]


@pytest.mark.parametrize(
    ("sample", "step", "message"),
    [
        ({"jpg": b"raw"}, Resize(8), "there is no image"),
        ({"jpg": b"raw"}, Resize(8, field="jpg"), r"got bytes; put \.decode\(\) before"),
        ({"jpg": np.zeros((3, 4))}, Resize(8, field="jpg"), r"got float64 of \(3, 4\)"),
        ({"jpg": image()}, Resize(8, field="png"), "there is no field 'png': the sample has jpg"),
        ({"jpg": image()}, Normalize((0.5, 0.5), (0.5,)), "3 channels, but mean has 2 values"),
    ],
)
def test_what_does_not_fit_is_named(sample, step, message):
    with pytest.raises(TransformError, match=f"{type(step).__name__} failed: .*{message}"):
        apply([step], {"__key__": "k", **sample}, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(8, ratio=(0, 1)),
        lambda: Resize((1, 2, 3)),
        lambda: Resize(2.5),
        lambda: CenterCrop(-1),
        lambda: RandomHorizontalFlip(1.5),
        lambda: Normalize((0.5,), (0,)),
        lambda: Normalize((), (1,)),
    ],
)
def test_impossible_options_are_refused_when_made(make):
    with pytest.raises(OptionError):
        make()
