"""A folder of small real images, one folder a class, as a person would have them."""

import io

import numpy as np
import pytest
from PIL import Image


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A gray PNG whose pixels depend on `value`."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, size, np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def make_png():
    """The function that makes a PNG."""
    return png


@pytest.fixture(scope="session")
def pngs():
    """Sixty small PNGs, made once."""
    return [png(value) for value in range(60)]


@pytest.fixture
def images(tmp_path, pngs):
    """60 images in the class folders `cat`, `dog` and `eel`."""
    folder = tmp_path / "images"
    for number, data in enumerate(pngs):
        path = folder / ("cat", "dog", "eel")[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def content():
    """A function from a folder to the bytes of every file below it."""
    return _content
