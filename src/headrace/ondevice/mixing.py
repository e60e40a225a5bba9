"""Images mixed with others of their batch, and labels with them: mixup and CutMix.

Labels become soft targets, float32 of (batch, num_classes), whose rows sum to 1; `cross_entropy` takes them as they
are. Which image is mixed with which, and how much, is drawn on the host from the batch's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from headrace.errors import OptionError, TransformError
from headrace.ondevice.fields import describe_value, find_field, is_images, is_pixels, names
from headrace.ondevice.steps import Batch

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Mixup:
    """Each image and its label, averaged with another's of the batch: lam x one + (1 - lam) x other.

    lam is drawn from Beta(alpha, alpha) once a batch, the partners by a random permutation: H. Zhang et al., "mixup:
    Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.

    Takes a floating tensor of (batch, channels, height, width), as Normalize makes it; `field=None` finds the batch's
    one such tensor. `label` is a tensor of whole numbers from 0 to num_classes - 1, (batch,), or of soft targets; it
    becomes float32 of (batch, num_classes).
    """

    alpha: float
    num_classes: int
    label: str = "cls"
    field: str | None = None

    def __post_init__(self) -> None:
        _check_options(self.alpha, self.num_classes)

    def check(self, batch: Batch) -> None:
        """Labels must be classes."""
        check_labels(batch, self.label, self.num_classes)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        wanted = "a floating tensor of (batch, channels, height, width), as Normalize makes it"
        field = find_field(batch, self.field, is_images, wanted)
        share, images = float(rng.beta(self.alpha, self.alpha)), batch[field]
        partners = _partners(images, rng)
        mixed = torch.lerp(_rows(images, partners), images, share)
        return {**batch, field: mixed, self.label: _mixed_labels(batch, self.label, self.num_classes, partners, share)}


@dataclass(frozen=True)
class CutMix:
    """In each image a box is replaced by that part of another's of the batch; labels count by area.

    The box covers 1 - lam of the image before it is cut off at its edges, lam from Beta(alpha, alpha), at a place drawn
    evenly, the same for the whole batch: S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers
    with Localizable Features", ICCV 2019, arXiv:1905.04899.

    Takes uint8 images of (batch, height, width, channels) or floating ones of (batch, channels, height, width);
    `field=None` finds the batch's one such tensor. `label` as in Mixup.
    """

    alpha: float
    num_classes: int
    label: str = "cls"
    field: str | None = None

    def __post_init__(self) -> None:
        _check_options(self.alpha, self.num_classes)

    def check(self, batch: Batch) -> None:
        """Labels must be classes."""
        check_labels(batch, self.label, self.num_classes)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        field = find_field(batch, self.field, lambda value: is_pixels(value) or is_images(value), "a tensor of images")
        images = batch[field]
        first = 1 if images.dtype == torch.uint8 else 2
        height, width = images.shape[first : first + 2]
        rows, columns = _box(height, width, float(rng.beta(self.alpha, self.alpha)), rng)
        box = (slice(None),) * first + (rows, columns)
        partners = _partners(images, rng)
        mixed = images.clone()
        mixed[box] = images[box].index_select(0, partners)
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return {**batch, field: mixed, self.label: _mixed_labels(batch, self.label, self.num_classes, partners, share)}


class Mixing(Protocol):
    """A step that mixes: Mixup, CutMix, or one like them."""

    # A step's signature, which a type checker takes only so.
    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The mixed batch."""

    def check(self, batch: Batch) -> None:
        """Raise TransformError for labels that are no classes."""


@dataclass(frozen=True)
class OneOf:
    """One of several mixing steps, drawn for each batch, with probabilities that are as their `weights` (or even)."""

    steps: Sequence[Mixing]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.steps or not all(callable(step) and hasattr(step, "check") for step in self.steps):
            raise OptionError(f"OneOf takes steps that mix, such as Mixup and CutMix: got {self.steps!r}")
        weights = tuple(float(weight) for weight in self.weights or [1.0] * len(self.steps))
        if len(weights) != len(self.steps) or not all(0 < weight < math.inf for weight in weights):
            raise OptionError(f"weights are numbers above 0, one for each of {len(self.steps)} steps: got {weights}")
        object.__setattr__(self, "weights", weights)

    def check(self, batch: Batch) -> None:
        """Whichever is drawn, it must be able to."""
        for step in self.steps:
            step.check(batch)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        weights = np.array(self.weights)
        return self.steps[int(rng.choice(len(self.steps), p=weights / weights.sum()))](batch, rng)


def check_labels(batch: Batch, label: str, num_classes: int) -> None:
    """TransformError for labels on the host that are no classes. Those that an earlier step makes are not there yet."""
    labels = batch.get(label)
    if not isinstance(labels, torch.Tensor) or not _are_classes(labels) or not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise TransformError(
            f"labels are from 0 to num_classes - 1 = {num_classes - 1}: {label!r} has {low if low < 0 else high}"
        )


def _are_classes(labels: torch.Tensor) -> bool:
    return labels.dtype in _INTEGERS and labels.dim() == 1


def _mixed_labels(batch: Batch, label: str, num_classes: int, partners: torch.Tensor, share: float) -> torch.Tensor:
    soft = _soft_targets(batch, label, num_classes)
    return torch.lerp(soft.index_select(0, partners), soft, share)


def _soft_targets(batch: Batch, label: str, num_classes: int) -> torch.Tensor:
    if label not in batch:
        raise TransformError(f"there is no field {label!r} for the labels: the batch has {names(batch)}")
    labels = batch[label]
    if isinstance(labels, torch.Tensor):
        if _are_classes(labels):
            # By comparison, which needs no look at the values: one_hot would wait for the device.
            return (labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)).float()
        if labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] == num_classes:
            return labels.float()
    raise TransformError(
        f"labels are whole numbers of (batch,) or soft targets of (batch, {num_classes}): {label!r} is "
        f"{describe_value(labels)}"
    )


def _partners(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.permutation(len(images))).to(images.device, non_blocking=True)


def _rows(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows in the order given, in the same layout: index_select by itself gives the channels first in memory."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return images.index_select(0, rows)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns of a box that covers 1 - share of the image, cut off where it reaches over an edge."""
    side = math.sqrt(1 - share)
    middle = int(rng.integers(height)), int(rng.integers(width))
    return _span(middle[0], int(height * side), height), _span(middle[1], int(width * side), width)


def _span(middle: int, length: int, end: int) -> slice:
    return slice(max(0, middle - length // 2), min(end, middle - length // 2 + length))


def _check_options(alpha: Any, num_classes: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise OptionError(f"alpha, of the Beta distribution, is a number above 0: got {alpha!r}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise OptionError(f"num_classes is a whole number of at least 1: got {num_classes!r}")
