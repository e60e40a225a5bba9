"""A perceptron on tables, classes or numbers, beside scikit-learn's own models on the same rows.

    python recipes/data.py tables data/tables
    headrace pack data/tables/breast_cancer.csv data/breast_cancer --format parquet --split train=0.8,test=0.2
    headrace train recipes/tabular.py                              (diabetes, wine: --set data=data/wine)
    python recipes/tabular.py                                      all three, packed, trained and compared

A column `target` of whole numbers is a class, of others a number to be told; every other column is a feature.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

import headrace as hr

TABLES = ("breast_cancer", "wine", "diabetes")


def columns(dataset):
    """The rows of a dataset: features (rows, columns) in the order of their names, and the targets (rows,)."""
    names = sorted(set(dataset.schema) - {"target"})
    rows = dataset[0 : len(dataset)]
    features = np.array([[row[name] for name in names] for row in rows], dtype=np.float32)
    return features, np.array([row["target"] for row in rows])


class Standardize(nn.Module):
    """Takes a mean from each column and divides by its deviation; both stay with the model as buffers."""

    def __init__(self, values):
        super().__init__()
        mean, deviation = values.mean(0), values.std(0)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.as_tensor(np.where(deviation > 0, deviation, 1), dtype=torch.float32))

    def forward(self, values):
        return (values - self.mean) / self.deviation


def network(features, outputs, width, layers, dropout):
    """Standardised features through `layers` hidden layers: (batch, columns) to (batch, outputs)."""
    sizes = [features.shape[1], *[width] * layers]
    hidden = [
        part for before, after in pairwise(sizes) for part in (nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
    ]
    return nn.Sequential(Standardize(features), *hidden, nn.Linear(sizes[-1], outputs))


class Rows:
    """A batch's features as the network takes them, (batch, columns)."""

    def __init__(self, names):
        self.names = names

    def __call__(self, batch):
        return torch.stack([batch[name].float() for name in self.names], dim=1)


class Numbers:
    """Loss and R2 for numbers, which the network tells in deviations of the training rows' targets.

    R2 is one minus the squared error over the variance of the held-out targets: a mean over samples, so exact on any
    number of processes.
    """

    def __init__(self, train, test):
        self.mean, self.deviation = float(train.mean()), float(train.std())
        self.variance = float(test.var())

    def loss(self, output, batch):
        wanted = (batch["target"].float() - self.mean) / self.deviation
        return nn.functional.mse_loss(output.float()[:, 0], wanted)

    def r2(self, output, batch):
        told = output.float()[:, 0] * self.deviation + self.mean
        return 1 - (told - batch["target"].float()).square() / self.variance


def cross_entropy(output, batch):
    return nn.functional.cross_entropy(output, batch["target"])


def correct(output, batch):
    return output.argmax(1) == batch["target"]


def recipe(
    *,
    data: str = "data/breast_cancer",
    epochs: int = 30,
    batch_size: int = 16,
    lr: float = 1e-3,
    width: int = 32,
    layers: int = 2,
    dropout: float = 0.2,
    weight_decay: float = 0.1,
    precision: str = "fp32",
    seed: int = 0,
    mesh: str = "dp",
) -> hr.Trainer:
    """`batch_size` counts the rows of all processes together."""
    torch.manual_seed(seed)
    train, test = hr.open(f"{data}/train"), hr.open(f"{data}/test")
    features, targets = columns(train)
    if targets.dtype.kind == "f":
        numbers = Numbers(targets, columns(test)[1])
        loss, metrics, outputs = numbers.loss, {"r2": numbers.r2}, 1
    else:
        loss, metrics, outputs = cross_entropy, {"accuracy": correct}, int(targets.max()) + 1
    return hr.Trainer(
        network(features, outputs, width, layers, dropout),
        loss,
        hr.Loader(hr.Stream(train, seed=seed), global_batch_size=batch_size),
        inputs=Rows(sorted(set(train.schema) - {"target"})),
        optimizer=hr.adamw(lr=lr, weight_decay=weight_decay),
        schedule=hr.cosine(warmup_steps=20),
        evaluate=hr.Loader(hr.Stream(test, shuffle=False), global_batch_size=48, drop_last=False),
        evaluate_every=5,
        metrics=metrics,
        epochs=epochs,
        clip_grad_norm=5.0,
        precision=precision,
        seed=seed,
        mesh=mesh,
    )


def baselines(data):
    """What scikit-learn's linear model and perceptron reach on the same rows: accuracy, or R2 of numbers."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (features, targets), (held_out, wanted) = (columns(hr.open(f"{data}/{split}")) for split in ("train", "test"))
    options = {"hidden_layer_sizes": (64, 64), "max_iter": 1000, "random_state": 0}
    if targets.dtype.kind == "f":
        models = {"linear": Ridge(), "perceptron": MLPRegressor(early_stopping=True, **options)}
    else:
        models = {"linear": LogisticRegression(max_iter=1000), "perceptron": MLPClassifier(**options)}
    fitted = {name: make_pipeline(StandardScaler(), model).fit(features, targets) for name, model in models.items()}
    return {name: float(model.score(held_out, wanted)) for name, model in fitted.items()}


def compared(table, folder):
    """Pack a table, train on it with the command, and say what all models reach on its held-out rows."""
    headrace = [sys.executable, "-m", "headrace.cli.main"]
    data = folder / table
    source = str(folder / "tables" / f"{table}.csv")
    pack = ("pack", source, str(data), "--format", "parquet", "--split", "train=0.8,test=0.2")
    subprocess.run([*headrace, *pack], check=True, stdout=subprocess.DEVNULL)
    train = ("train", __file__, "--set", f"data={data}", "--json")
    done = subprocess.run([*headrace, *train], check=True, stdout=subprocess.PIPE, text=True)
    ((name, value),) = json.loads(done.stdout.splitlines()[-1])["metrics"].items()
    return {"table": table, "metric": name, "headrace": value, **baselines(data)}


def main() -> None:
    from data import write_tables

    write_tables(Path("data/tables"))
    for table in TABLES:
        found = compared(table, Path("data"))
        others = f"scikit-learn: linear {found['linear']:.3f}, perceptron {found['perceptron']:.3f}"
        print(f"{table}: test {found['metric']} {found['headrace']:.3f}; {others}", flush=True)


if __name__ == "__main__":
    main()
