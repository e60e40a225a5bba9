"""Mixtures: several datasets in one stream, each by its weight, as exact as one dataset alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.dataset import Dataset, Joined
from headrace.errors import OptionError
from headrace.formats.tokens.index import FIELD
from headrace.load.mixture import Mixture
from headrace.load.options import optional_number, whole_number
from headrace.load.stream import Stream

Weight: TypeAlias = float | Fraction
MAX_SOURCES = 1 << 16
MAX_EPOCH_SAMPLES = 1 << 44
MAX_STEP = 1 << 40
"""Both far beyond what is ever run, and within what the arithmetic of an order keeps exactly."""


def mix(
    sources: Iterable[tuple[Dataset, Weight]],
    *,
    seed: int = 0,
    samples_per_epoch: int | None = None,
    by: Literal["samples", "tokens"] = "samples",
    schedule: Mapping[int, Sequence[Weight]] | None = None,
    **options: Any,
) -> Stream:
    """A stream of several datasets, each by its weight.

    At any prefix of the stream every source has come as often as its weight says, within as many samples as there are
    partitions; each source comes pass after pass, every pass in a new order, and goes on from epoch to epoch where it
    was. State, elasticity and randomness are those of any stream; a rank reads its own share of each source only.

    Args:
        sources: pairs of a dataset and its weight, a number of at least 0 in any unit. Their samples must have the
            same fields, or be brought to the same ones by `.map`. Rows of documents are mixed as
            `dataset.binned("rows", length)`.
        seed: decides the order of each source and the randomness of the transforms.
        samples_per_epoch: length of an epoch; None: all sources' samples added up.
        by: what the weights are shares of: "samples", or "tokens" for datasets of tokens, whose samples have
            different numbers of them (on average: what a source gives is its weight by its mean).
        schedule: step -> weights from that step on, one a source, instead of those in `sources`, which hold from the
            start. Steps are global batches of the loader, counted over all epochs from 0.
        options: `shuffle`, `block_size`, `window`, `partitions` and `epochs`, as for `Stream`.

    Raises OptionError for weights that cannot be.
    """
    pairs = []
    for pair in sources:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Dataset)):
            raise OptionError(f"a mixture is made of pairs (dataset, weight): got {pair!r}")
        pairs.append(pair)
    if not 1 <= len(pairs) <= MAX_SOURCES:
        raise OptionError(f"a mixture has 1 to {MAX_SOURCES:,} sources: got {len(pairs):,}")
    if by not in ("samples", "tokens"):
        raise OptionError(f'by is "samples" or "tokens": got {by!r}')
    datasets = [dataset for dataset, _ in pairs]
    for dataset in datasets:
        if len(dataset) == 0:
            raise OptionError(f"a source of a mixture needs samples: {dataset.url} has none")
    sizes = [_mean_tokens(dataset) if by == "tokens" else Fraction(1) for dataset in datasets]
    if not isinstance(schedule, Mapping | None):
        raise OptionError(f"a schedule is a dict of step -> weights, one a source: got {schedule!r}")
    planned = {0: [weight for _, weight in pairs], **(schedule or {})}
    shares = tuple(
        (whole_number("a step of the schedule", step, 0, MAX_STEP), _shares(weights, sizes))
        for step, weights in planned.items()
    )
    joined = Joined(datasets)
    num_samples = optional_number("samples_per_epoch", samples_per_epoch, 1, MAX_EPOCH_SAMPLES) or len(joined)
    return Stream(joined, seed=seed, mixture=Mixture(tuple(sorted(shares)), num_samples), **options)


def class_balanced(dataset: Dataset, field: str = "cls", **options: Any) -> Stream:
    """A stream in which every value of a field comes equally often, however many samples of each there are.

    The field of every sample is read once, in storage order. Rare values repeat; an epoch has as many samples as the
    dataset unless `samples_per_epoch` says otherwise. `options` are those of `mix`. Raises OptionError for what is no
    dataset, or has no such field.
    """
    if not isinstance(dataset, Dataset):
        raise OptionError(f"classes are those of a dataset from headrace.open: got {type(dataset).__name__}")
    return mix([(part, 1) for part in dataset.group_by(field).values()], **options)


def _shares(weights: Sequence[Weight], sizes: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The shares of samples that weights ask for, exactly; sizes are what a sample counts."""
    if not isinstance(weights, Sequence | np.ndarray):
        raise OptionError(f"a schedule has one weight a source: got {weights!r}")
    if len(weights) != len(sizes):
        raise OptionError(f"a schedule has one weight a source: got {len(weights)} for {len(sizes)} sources")
    parts = [_exact(weight) / size for weight, size in zip(weights, sizes, strict=True)]
    total = sum(parts)
    if not total:
        raise OptionError(f"some weight of a mixture must be above 0: got {list(weights)!r}")
    return tuple(part / total for part in parts)


def _exact(weight: Weight) -> Fraction:
    """0.7 is 7/10 exactly, and not the binary number next to it."""
    value = weight.item() if isinstance(weight, np.generic) else weight
    if (
        not isinstance(value, int | float | Fraction)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise OptionError(f"a weight is a number of at least 0: got {weight!r}")
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _mean_tokens(dataset: Dataset) -> Fraction:
    """Tokens of a dataset's samples, on average."""
    field = dataset.schema.get(FIELD)
    if dataset.manifest.format != "tokens" or field is None:
        raise OptionError(f'by="tokens" mixes datasets of tokens: {dataset.url} is of format {dataset.manifest.format}')
    if field.shape is not None:
        return Fraction(field.shape[0])
    return Fraction(int(dataset.pieces.bytes.sum()), np.dtype(field.dtype).itemsize * len(dataset))
