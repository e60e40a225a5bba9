"""Whether a model trained on JPEGs decoded no larger than their crops need is as accurate as on ones decoded in full.

    python benchmarks/dct_accuracy.py [--seeds 5] [--epochs 12]

The photographs that scikit-learn and scikit-image ship (`pip install scikit-learn scikit-image`), without their
colours, since some are gray. Patches of 192 x 192 are JPEGs; which photograph is a patch of? Those to train on come
from the left half of each, those to test on from its right half, so no pixel is in both. It is a small task on real
pixels, not a collection of photographs of things: it shows whether the other pixels cost a small network accuracy at
recognising textures and edges, where every crop is decoded at half or quarter size.

Each seed trains two networks from the same weights, over the same crops to 32 x 32 in the same order, and tests each
on patches decoded in full and decoded smaller.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import headrace as hr
from headrace.transform import RandomHorizontalFlip, RandomResizedCrop, Resize
from measure import Spread, finish
from peers import versions

PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": (
        *("data/astronaut.png", "data/brick.png", "data/camera.png", "data/chelsea.png", "data/coffee.png"),
        *("data/coins.png", "data/grass.png", "data/gravel.png", "data/hubble_deep_field.jpg", "data/ihc.png"),
        *("data/moon.png", "data/motorcycle_left.png", "data/retina.jpg", "data/rocket.jpg"),
    ),
}
PATCH, SIZE, BATCH = 192, 32, 64
WAYS = {"in full": False, "scaled": True}


def photographs() -> list[Path]:
    """Those of the packages; SystemExit where one is not installed."""
    paths = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("the photographs come with: pip install scikit-learn scikit-image")
        paths += [Path(spec.submodule_search_locations[0]) / name for name in names]
    return paths


def write_patches(target: Path, *, num_each: int, right: bool) -> None:
    """Pack `num_each` patches of each photograph's left or right half, with the photograph's number as `cls`."""
    rng = np.random.default_rng(int(right))

    def samples() -> Any:
        for number, path in enumerate(photographs()):
            pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            half = pixels.shape[1] // 2
            pixels = pixels[:, half:] if right else pixels[:, :half]
            for index in range(num_each):
                top, left = (int(rng.integers(0, side - PATCH + 1)) for side in pixels.shape)
                patch = np.repeat(pixels[top : top + PATCH, left : left + PATCH, np.newaxis], 3, 2)
                data = cv2.imencode(".jpg", patch, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
                yield {"__key__": f"{number:02d}-{index:03d}", "jpg": data, "cls": number}

    hr.pack(samples(), target)


def network(num_classes: int) -> nn.Module:
    """Three convolutions and their mean."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, num_classes))


def inputs(batch: dict[str, Any]) -> torch.Tensor:
    """Pixels of (batch, 3, height, width), -1 to 1."""
    return batch["jpg"].permute(0, 3, 1, 2).float() / 127.5 - 1


def train(dataset: Any, scaled: bool, seed: int, epochs: int) -> nn.Module:
    """A network after so many epochs; everything that is drawn depends on the seed alone."""
    torch.manual_seed(seed)
    model = network(len(photographs()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    stream = hr.Stream(dataset, seed=seed, epochs=epochs).decode(scaled=scaled)
    stream = stream.map(RandomResizedCrop(SIZE, scale=(0.25, 1))).map(RandomHorizontalFlip())
    with hr.Loader(stream, batch_size=BATCH, threads=1, cache_decoded=None) as loader:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs(batch)), batch["cls"]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def whole(dataset: Any, scaled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches to test on, resized, and their classes."""
    stream = hr.Stream(dataset, shuffle=False).decode(scaled=scaled).map(Resize(SIZE))
    with hr.Loader(stream, batch_size=len(dataset), threads=1) as loader:
        batch = next(iter(loader))
        return inputs(batch), batch["cls"].clone()


def accuracy(model: nn.Module, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The share of patches that are told right, in percent."""
    with torch.no_grad():
        return 100 * (model(test[0]).argmax(1) == test[1]).float().mean().item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--patches", type=int, default=40, help="patches of each photograph to train on, and to test on"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folders = {half: Path(name) / half for half in ("left", "right")}
        for half, folder in folders.items():
            write_patches(folder, num_each=options.patches, right=half == "right")
        tests = {way: whole(hr.open(folders["right"]), scaled) for way, scaled in WAYS.items()}
        found: dict[tuple[str, str], list[float]] = {(a, b): [] for a in WAYS for b in WAYS}
        for seed in range(options.seeds):
            for way, scaled in WAYS.items():
                model = train(hr.open(folders["left"]), scaled, seed, options.epochs)
                for tested, test in tests.items():
                    found[way, tested].append(accuracy(model, test))
            print(seed, {" -> ".join(pair): round(values[-1], 1) for pair, values in found.items()}, flush=True)
    report(found, options)


def report(found: dict[tuple[str, str], list[float]], options: argparse.Namespace) -> None:
    """Means and standard deviations over the seeds, then the table of all."""
    for (way, tested), values in found.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        print(f"trained {way}, tested {tested}: {np.mean(values):.1f} % (standard deviation {spread:.1f})")
    figures = {f"trained {way}, tested {tested}": Spread(tuple(values)) for (way, tested), values in found.items()}
    for tested in ("in full", "scaled"):
        difference = np.subtract(found["scaled", tested], found["in full", "in full"])
        error = np.std(difference, ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        name = f"trained scaled, tested {tested}, less both in full"
        print(f"{name}: {difference.mean():+.2f} points (standard error {error:.2f})")
        figures[f"{name}, points"] = Spread(tuple(difference.tolist()))
    finish(
        f"accuracy in percent of a small network on patches of {len(photographs())} photographs",
        figures,
        versions=versions("scikit-learn", "scikit-image", "simplejpeg", "torch"),
        **vars(options),
    )


if __name__ == "__main__":
    main()
