"""A large batch that learns as much as a small one: SGD at 64 against SGD and LAMB at 1,024, on handwritten digits.

    python benchmarks/large_batch.py [--epochs 40] [--seeds 5]

scikit-learn's 1,797 digits, every fifth held out; a small convolutional network; the same epochs for all, so the large
batch has 80 steps where the small one has 920. The small batch is SGD with momentum, its learning rate falling in a
line. The large one is tried with that, with 16 times its learning rate (linear scaling), and with LAMB, without and
with a warm-up of a tenth of the steps. Printed is the accuracy on the held-out digits, median and range over seeds;
nothing here depends on the machine's speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import headrace as hr

SMALL, LARGE = 64, 1024


class Digits:
    """Batches from memory, shuffled by epoch."""

    full_batches = False

    def __init__(self, train: bool, batch_size: int, seed: int) -> None:
        images, labels = load_digits(return_X_y=True)
        chosen = (np.arange(len(labels)) % 5 > 0) == train
        self.x = torch.from_numpy(images[chosen]).float().reshape(-1, 1, 8, 8) / 16
        self.cls = torch.from_numpy(labels[chosen])
        self.global_batch_size, self.seed, self.epochs, self.given = batch_size, seed, 1, 0
        self.steps_per_epoch = -(-len(self.cls) // batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.steps_per_epoch):
            epoch, number = divmod(self.given, self.steps_per_epoch)
            order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.cls)))
            rows = order[number * self.global_batch_size :][: self.global_batch_size]
            self.given += 1
            yield {"x": self.x[rows], "cls": self.cls[rows]}

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]

    def meters(self) -> dict[str, Any]:
        return {"stages": {}}


def network() -> nn.Module:
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def accuracy(optimizer: Any, batch_size: int, epochs: int, warmup: float, seed: int) -> float:
    """On the held-out digits, after training."""
    torch.manual_seed(seed)
    train = Digits(True, batch_size, seed)
    total = epochs * train.steps_per_epoch
    result = hr.Trainer(
        network(),
        lambda output, batch: nn.functional.cross_entropy(output, batch["cls"]),
        train,
        inputs=lambda batch: batch["x"],
        optimizer=optimizer,
        schedule=hr.linear(warmup_steps=round(warmup * total)),
        evaluate=Digits(False, 512, 0),
        evaluate_every=epochs,
        metrics={"accuracy": lambda output, batch: output.argmax(1) == batch["cls"]},
        seed=seed,
        device="cpu",
    ).fit(epochs=epochs)
    found = result.metrics["accuracy"]
    assert found is not None
    return 100 * found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        f"SGD, batch {SMALL}, lr 0.02": (hr.sgd(0.02, momentum=0.9), SMALL, 0.0),
        f"SGD, batch {LARGE}, lr 0.02": (hr.sgd(0.02, momentum=0.9), LARGE, 0.0),
        f"SGD, batch {LARGE}, lr 0.32": (hr.sgd(0.32, momentum=0.9), LARGE, 0.0),
        f"LAMB, batch {LARGE}, lr 0.04, no warm-up": (hr.lamb(0.04), LARGE, 0.0),
        f"LAMB, batch {LARGE}, lr 0.04, warm-up 0.1": (hr.lamb(0.04), LARGE, 0.1),
    }
    found = {}
    for name, (optimizer, batch_size, warmup) in ways.items():
        found[name] = [
            round(accuracy(optimizer, batch_size, options.epochs, warmup, seed), 2) for seed in range(options.seeds)
        ]
        steps = options.epochs * Digits(True, batch_size, 0).steps_per_epoch
        low, high = min(found[name]), max(found[name])
        median = statistics.median(found[name])
        print(f"{name}: {median:.1f} % ({low:.1f} to {high:.1f}) after {steps} steps", flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "headrace": hr.__version__}
    print(json.dumps({"claim": "large batch", **vars(options), "accuracy_percent": found, **versions}))


if __name__ == "__main__":
    main()
