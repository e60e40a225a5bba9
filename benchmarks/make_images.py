"""Natural-like JPEGs for benchmarks: 450 x 415 pixels, 117 KB on average, the same on every machine.

    python benchmarks/make_images.py FOLDER --count 3000 --classes 10

Decoders and loaders must not be measured on noise, which JPEG cannot compress, nor on flat colour, which costs
nothing. Photographs have spectra of about 1/f, smooth colour, and edges: so each image is a part of a large 1/f
texture, tinted and overlaid with shapes. Contrast varies from image to image, and so do the sizes, as in a real folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

WIDTH, HEIGHT = 450, 415
QUALITY = 95

_TEXTURE_SIDE = 2048
_CONTRAST = (17.5, 37.5)  # standard deviation of the brightness, of 255; set so that the mean size is 117 KB
_NUM_SHAPES = (4, 12)


def make_image(index: int, seed: int = 0) -> bytes:
    """The JPEG number `index`: the same bytes for the same numbers (and the same libjpeg-turbo)."""
    rng = np.random.default_rng((seed, index))
    canvas = _part(_texture(seed), rng) * rng.uniform(*_CONTRAST)
    image = canvas[:, :, np.newaxis] + _colour(seed, rng) + rng.uniform(90, 165, 3).astype(np.float32)
    for _ in range(rng.integers(*_NUM_SHAPES)):
        _draw_shape(image, rng)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420")


def make_images(count: int = 3000, seed: int = 0) -> Iterator[bytes]:
    """`count` JPEGs, one by one, made by two threads."""
    _texture(seed)  # once, before two threads ask for it
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda index: make_image(index, seed), range(count))


def write_images(folder: str | Path, count: int = 3000, classes: int = 10, seed: int = 0) -> list[int]:
    """Write `count` JPEGs into one folder a class, FOLDER/class-03/000123.jpg; gives their sizes in bytes."""
    sizes = []
    for index, data in enumerate(make_images(count, seed)):
        path = Path(folder) / f"class-{index % classes:02d}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sizes.append(len(data))
    return sizes


@lru_cache(maxsize=4)
def _texture(seed: int) -> NDArray[np.float32]:
    """A field with a spectrum of 1/f, mean 0 and standard deviation 1; it wraps around."""
    rng = np.random.default_rng((seed, 2**32))
    spectrum = np.fft.rfft2(rng.standard_normal((_TEXTURE_SIDE, _TEXTURE_SIDE), np.float32))
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE_SIDE)[:, np.newaxis], np.fft.rfftfreq(_TEXTURE_SIDE)[np.newaxis])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / frequency)
    return np.ascontiguousarray((field - field.mean()) / field.std(), np.float32)


def _part(texture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    top, left = rng.integers(0, _TEXTURE_SIDE - HEIGHT), rng.integers(0, _TEXTURE_SIDE - WIDTH)
    part = texture[top : top + HEIGHT, left : left + WIDTH]
    part = part[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    return (part - part.mean()) / part.std()


def _colour(seed: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Colour varies slowly in photographs: a quarter of the texture's detail, stretched."""
    small = _part(_texture(seed), rng)[: HEIGHT // 4, : WIDTH // 4]
    smooth = cv2.resize(np.ascontiguousarray(small), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return smooth[:, :, np.newaxis] * rng.uniform(-12, 12, 3).astype(np.float32)


def _draw_shape(image: NDArray[np.float32], rng: np.random.Generator) -> None:
    """One ellipse or box with smooth edges, of another colour, through which the texture shows."""
    centre = (int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT)))
    half = (int(rng.integers(12, WIDTH // 4)), int(rng.integers(12, HEIGHT // 4)))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if rng.random() < 0.5:
        cv2.ellipse(mask, centre, half, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
    else:
        corners = cv2.boxPoints((centre, half, float(rng.uniform(0, 90)))).astype(np.int32)
        cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA)
    shift = rng.uniform(-60, 60, 3).astype(np.float32) / 255
    image += mask[:, :, np.newaxis] * shift


def main() -> None:
    """Write a folder and say how large the images became."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = write_images(args.folder, args.count, args.classes, args.seed)
    mean_kb = np.mean(sizes) / 1000
    print(f"{len(sizes)} images in {args.folder}, {mean_kb:.1f} KB on average ({min(sizes)} to {max(sizes)} bytes)")


if __name__ == "__main__":
    main()
