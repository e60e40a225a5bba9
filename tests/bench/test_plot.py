"""The picture of samples/s by threads."""

import io

import numpy as np
import pytest
from PIL import Image

from headrace.bench import Bench, Rate, Stage, draw
from headrace.bench.rates import Count

BLUE = (11, 98, 196)
RED = (194, 65, 12)


def rate(*values):
    return Rate(tuple(Count(round(value), 100 * round(value), 1.0) for value in values))


def bench(ceiling, by_threads):
    return Bench(
        url="/data/photos",
        format="tar",
        samples=1000,
        batch_size=32,
        threads=max(by_threads),
        cores=8,
        is_cold=False,
        reached=by_threads[max(by_threads)],
        stored_bytes_per_sample=100.0,
        first_batch_sec=0.5,
        stages=[Stage("decode", 2, ceiling)],
        by_threads=by_threads,
        remedies=[],
        unknown=[],
        au=None,
        step_sec=None,
        sec=1.0,
    )


def pixels(picture, color):
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return np.argwhere((np.abs(image - color) <= 2).all(axis=2))


def spans(found):
    """How many pixels each column has."""
    columns, counts = np.unique(found[:, 1], return_counts=True)
    return dict(zip(columns.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("values", [(400, 600, 800), (400, 600, 620), (200, 600, 610)])
def test_error_bars_are_as_long_as_the_spread(values):
    """The axis ends at 1.08 times the ceiling, over 610 pixels; the other count's repeats do not differ."""
    strokes = spans(pixels(draw(bench(rate(900), {1: rate(*values), 2: rate(600)})), BLUE))
    assert max(strokes.values()) == pytest.approx(610 * (max(values) - min(values)) / (1.08 * 900), abs=10)


def test_a_ceiling_is_drawn_where_it_is_within_reach():
    assert len(pixels(draw(bench(rate(900), {1: rate(500), 2: rate(700)})), RED)) > 1000
    assert len(pixels(draw(bench(rate(90_000), {1: rate(500), 2: rate(700)})), RED)) == 0


def test_one_count_is_a_picture_too():
    assert Image.open(io.BytesIO(draw(bench(rate(900), {1: rate(500)})))).size == (1280, 840)
