"""The rate by threads as a PNG, drawn by Pillow: medians, with error bars from the least to the most."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from headrace.bench.rates import Rate
from headrace.bench.result import Bench
from headrace.report import formatting as fmt
from headrace.report.series import nice_ticks

_WIDTH, _HEIGHT = 1280, 840
_LEFT, _TOP, _RIGHT, _BOTTOM = 150, 120, 40, 110
_INK, _PALE, _ACCENT, _CEILING = "#24292f", "#d8dee4", "#0b62c4", "#c2410c"
_CAP = 12  # half the width of an error bar's ends


class _Axes:
    """From thread counts and samples/s to pixels."""

    def __init__(self, by_threads: Mapping[int, Rate], ceiling: float) -> None:
        counts = list(by_threads)
        self.low, self.high = min(counts) - 0.5, max(counts) + 0.5
        self.top = 1.08 * max(ceiling, *(rate.high for rate in by_threads.values()))

    def x(self, threads: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (threads - self.low) / (self.high - self.low)

    def y(self, samples_per_sec: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * samples_per_sec / self.top


def draw(bench: Bench) -> bytes:
    """The picture of a bench: 1,280 x 840 pixels of PNG. The bounding stage's ceiling is drawn if it is within reach:
    at most three times the highest rate."""
    highest = max(rate.high for rate in bench.by_threads.values())
    ceiling = bench.bound.rate.samples_per_sec
    shown = ceiling <= 3 * highest
    axes = _Axes(bench.by_threads, ceiling if shown else 0.0)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    _grid(pen, axes, list(bench.by_threads))
    if shown:
        _ceiling(pen, axes, bench, ceiling)
    _curve(pen, axes, bench.by_threads)
    pen.text((_LEFT, 30), f"Samples a second by threads: {_short(bench.url)}", _INK, _font(30))
    below = f"batches of {bench.batch_size:,}; the median of three repeats, bars from the least to the most"
    pen.text((_LEFT, 74), below, _INK, _font(22))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _grid(pen: ImageDraw.ImageDraw, axes: _Axes, counts: list[int]) -> None:
    for value in nice_ticks(0, axes.top, 6):
        y = axes.y(value)
        pen.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _PALE, 2)
        pen.text((_LEFT - 14, y), fmt.tick(value), _INK, _font(22), anchor="rm")
    for count in counts:
        pen.text((axes.x(count), _HEIGHT - _BOTTOM + 14), str(count), _INK, _font(22), anchor="mt")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    pen.text((middle, _HEIGHT - 30), "threads that transform", _INK, _font(22), anchor="ms")


def _curve(pen: ImageDraw.ImageDraw, axes: _Axes, by_threads: Mapping[int, Rate]) -> None:
    points = [(axes.x(count), axes.y(rate.samples_per_sec)) for count, rate in by_threads.items()]
    if len(points) > 1:
        pen.line(points, _ACCENT, 4, joint="curve")
    for (x, y), rate in zip(points, by_threads.values(), strict=True):
        low, high = axes.y(rate.low), axes.y(rate.high)
        pen.line([(x, low), (x, high)], _ACCENT, 3)
        for end in (low, high):
            pen.line([(x - _CAP, end), (x + _CAP, end)], _ACCENT, 3)
        pen.ellipse([x - 7, y - 7, x + 7, y + 7], _ACCENT)


def _ceiling(pen: ImageDraw.ImageDraw, axes: _Axes, bench: Bench, ceiling: float) -> None:
    y = axes.y(ceiling)
    for x in range(_LEFT, _WIDTH - _RIGHT, 24):
        pen.line([(x, y), (min(x + 14, _WIDTH - _RIGHT), y)], _CEILING, 3)
    words = f"{bench.bound.name} by itself, {fmt.plural(bench.bound.threads, 'thread')}"
    pen.text((_WIDTH - _RIGHT, y - 8), words, _CEILING, _font(22), anchor="rs")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _short(url: str, most: int = 50) -> str:
    """What Pillow's own font has letters for, and no more than fits."""
    shown = url.encode("ascii", "replace").decode()
    return shown if len(shown) <= most else f"...{shown[-most:]}"
