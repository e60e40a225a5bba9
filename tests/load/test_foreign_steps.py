"""Steps of other libraries in a loader: the same batches however many threads and processes there are."""

import random

import numpy as np
import pytest
import torch

import headrace as hr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    target = tmp_path_factory.mktemp("foreign") / "packed"
    hr.pack(({"__key__": f"{i:03d}", "bin": b"x", "cls": i} for i in range(48)), target)
    return hr.open(target)


def black(sample):
    return {"image": np.zeros((8, 8, 3), np.uint8), "cls": sample["cls"]}


def noisy(tensor):
    """As torchvision draws: from torch's global generator, and in v1 from that of `random`."""
    return torch.randint_like(tensor, 200) + random.randrange(50)


def read(stream, **options):
    with hr.Loader(stream, batch_size=8, **options) as loader:
        return [{"image": batch["image"].clone(), "cls": batch["cls"].tolist()} for batch in loader]


def test_global_generators_are_keyed_in_threads_and_processes_alike(dataset):
    stream = hr.Stream(dataset, seed=3).decode().map(black).map(hr.transform.Torchvision(noisy))
    expected = read(stream, threads=1)
    assert expected[0]["image"].shape == (8, 8, 8, 3)
    assert len({image.numpy().tobytes() for batch in expected for image in batch["image"]}) == 48
    for options in ({"threads": 4}, {"processes": 2}):
        for made, one in zip(read(stream, **options), expected, strict=True):
            assert made["cls"] == one["cls"]
            assert torch.equal(made["image"], one["image"])


def test_albumentations_gives_the_same_in_threads_and_processes(dataset, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    A = pytest.importorskip("albumentations")
    step = hr.transform.Albumentations(A.Compose([A.GaussNoise(p=1), A.RandomCrop(6, 6), A.HorizontalFlip()]))
    stream = hr.Stream(dataset, seed=3).decode().map(black).map(step)
    expected = read(stream, threads=1)
    assert expected[0]["image"].shape == (8, 6, 6, 3)
    for options in ({"threads": 4}, {"processes": 2}):
        for made, one in zip(read(stream, **options), expected, strict=True):
            assert torch.equal(made["image"], one["image"])
