"""Decoding no larger than a crop needs, in a loader: the same batches whoever reads them."""

import cv2
import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import OptionError
from headrace.transform import RandomHorizontalFlip, RandomResizedCrop, Resize


def jpeg(number):
    """200 x 300, or 160 x 240, of smooth colours."""
    sides = (300, 200) if number % 2 else (240, 160)
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(coarse, sides, interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    target = tmp_path_factory.mktemp("scaled") / "packed"
    hr.pack(({"__key__": f"{i:03d}", "jpg": jpeg(i), "cls": i} for i in range(48)), target)
    return hr.open(target)


def read(stream, **options):
    with hr.Loader(stream, batch_size=8, **options) as loader:
        return torch.cat([batch["jpg"].clone() for batch in loader])


@pytest.mark.parametrize("last", [RandomResizedCrop(32), RandomHorizontalFlip()], ids=repr)
def test_the_same_samples_in_threads_processes_and_a_dataloader(dataset, last):
    stream = hr.Stream(dataset, seed=3).decode(scaled=True).map(RandomResizedCrop(32)).map(last)
    expected = torch.from_numpy(np.stack([sample["jpg"] for sample in stream]))
    assert expected.shape == (48, 32, 32, 3)
    for options in ({"threads": 1}, {"threads": 4}, {"processes": 2}):
        assert torch.equal(read(stream, **options), expected)


def test_it_is_asked_for_and_changes_pixels_a_little(dataset):
    plain, scaled = (
        read(hr.Stream(dataset, seed=3).decode(**options).map(RandomResizedCrop(16))).int()
        for options in ({}, {"scaled": True})
    )
    difference = (plain - scaled).abs().float().mean()
    assert 0 < difference < 6


def test_a_cache_keeps_what_is_decoded_for_a_size(dataset):
    stream = hr.Stream(dataset, seed=3, shuffle=False, epochs=2).decode(scaled=True).map(Resize((20, 24)))
    expected = read(stream, cache_decoded=None)
    assert torch.equal(read(stream, cache_decoded="ram"), expected)
    assert torch.equal(expected[:48], expected[48:])


def test_other_values_are_refused(dataset):
    with pytest.raises(OptionError, match="scaled"):
        hr.Stream(dataset).decode(scaled=2)
