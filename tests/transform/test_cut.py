"""Image steps that end a chain write into the batch what they give otherwise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transform import (
    Map,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
    apply,
    sample_rng,
)

LAST = [
    RandomResizedCrop(24),
    Resize((11, 13)),
    RandomHorizontalFlip(1),
    RandomVerticalFlip(1),
    Normalize((0.5,), (0.25,)),
]


def image(height=40, width=60, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def run(steps, pixels, rows):
    return apply(steps, {"__key__": "k", "jpg": pixels, "cls": 3}, lambda: sample_rng(1, 2, 3), rows)


@pytest.mark.parametrize("step", LAST, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_last_step_writes_the_same_into_the_row(step, channels):
    pixels = image(channels=channels)
    expected = run([step], pixels, {})["jpg"]
    batch = np.zeros((3, *expected.shape), expected.dtype)
    row = batch[1, ...]
    assert run([step], pixels, {"jpg": row})["jpg"] is row
    assert np.array_equal(batch[1], expected)
    assert not batch[0].any()
    assert not batch[2].any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_any_size_becomes_the_same_in_the_row(height, width, out_height, out_width, channels):
    pixels, step = image(height, width, channels), Resize((out_height, out_width))
    row = np.zeros((out_height, out_width, channels), np.uint8)
    made = run([step], pixels, {"jpg": row})["jpg"]
    assert np.array_equal(made, run([step], pixels, {})["jpg"])
    assert made is row or made is pixels


@pytest.mark.parametrize("step", LAST, ids=repr)
def test_a_row_of_another_kind_is_left_alone(step):
    pixels = image()
    expected = run([step], pixels, {})["jpg"]
    strange = np.zeros(expected.shape, "float64"), np.zeros((5, 5, 3), "uint8"), np.zeros(expected.shape, "int8").T
    for row in strange:
        assert np.array_equal(run([step], pixels, {"jpg": row})["jpg"], expected)
        assert not row.any()


class Brighter:
    """A step of somebody's own that can write into its row."""

    takes_rng = False

    def __call__(self, sample):
        return self.into({}, sample)

    def into(self, rows, sample):
        return {**sample, "jpg": np.add(sample["jpg"], 1, out=rows.get("jpg"))}

    def output_fields(self, fields):
        return fields


def test_only_the_last_step_writes_even_where_one_comes_twice():
    """What an earlier one wrote, the last one would read while it writes there."""
    pixels, row, step = image(), np.zeros((40, 60, 3), np.uint8), Brighter()
    seen = []
    out = run([step, Map(lambda sample: seen.append(row.any()) or sample), step], pixels, {"jpg": row})
    assert seen == [False]
    assert out["jpg"] is row
    assert np.array_equal(row, pixels + 2)


def test_a_flip_that_is_not_drawn_leaves_the_image_and_the_row():
    pixels, row = image(), np.zeros((40, 60, 3), np.uint8)
    assert run([RandomHorizontalFlip(0)], pixels, {"jpg": row})["jpg"] is pixels
    assert not row.any()
