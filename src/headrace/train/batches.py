"""Batches as the loader gives them: dicts whose values have the samples first.

Cutting is by rows: a tensor is narrowed (no copy), a list sliced, and a value without rows (a number, a tensor of no
dimension) belongs to every part.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from headrace.errors import TrainingError

Batch = dict[str, Any]


def num_rows(batch: Batch) -> int:
    """How many samples a batch has, repeats included: the length of `__key__`, else of the first value with rows."""
    if "__key__" in batch:
        return len(batch["__key__"])
    for value in batch.values():
        if isinstance(value, list) or (isinstance(value, torch.Tensor) and value.dim() > 0):
            return len(value)
    raise TrainingError("a batch needs a value with one row a sample, a tensor or a list: got " + ", ".join(batch))


def real_rows(batch: Batch) -> tuple[Batch, int]:
    """The batch without the repeats that only even out the ranks, and how many samples that leaves.

    The loader marks repeats with False in `__real__`, and puts them at the end.
    """
    if "__real__" not in batch:
        return batch, num_rows(batch)
    real = int(batch["__real__"].sum())
    rows = num_rows(batch)
    return (batch, rows) if real == rows else (_rows(batch, 0, real, rows), real)


def micro_batches(batch: Batch, rows: int, size: int | None) -> list[tuple[Batch, int]]:
    """The batch in parts of at most `size` samples, with the number of samples of each."""
    if size is None or rows <= size:
        return [(batch, rows)]
    spans = [(first, min(first + size, rows)) for first in range(0, rows, size)]
    return [(_rows(batch, first, last, rows), last - first) for first, last in spans]


def first_rows(batch: Batch, rows: int, present: int) -> Batch:
    """The first `rows` samples of a batch that has `present`."""
    return batch if rows == present else _rows(batch, 0, rows, present)


def filled(batch: Batch, rows: int, wanted: int) -> Batch:
    """The batch with its first sample repeated at the end, up to `wanted` rows."""
    if rows == wanted:
        return batch
    repeats = wanted - rows
    return {name: _with_repeats(value, repeats) for name, value in batch.items()}


def num_parts(rows: float, size: int | None) -> int:
    """Into how many parts of at most `size` samples a batch of `rows` is cut, rounded up."""
    return 1 if size is None else max(1, math.ceil(math.ceil(rows) / size))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on the device; copies from pinned memory do not wait."""
    if device.type == "cpu":
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _with_repeats(value: Any, repeats: int) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return torch.cat([value, value[:1].expand(repeats, *value.shape[1:])])
    return list(value) + [value[0]] * repeats if isinstance(value, list | tuple) else value


def _rows(batch: Batch, first: int, last: int, rows: int) -> Batch:
    return {name: _cut(name, value, first, last, rows) for name, value in batch.items()}


def _cut(name: str, value: Any, first: int, last: int, rows: int) -> Any:
    if not (isinstance(value, list | tuple) or (isinstance(value, torch.Tensor) and value.dim() > 0)):
        return value
    if len(value) != rows:
        raise TrainingError(
            f"to cut a batch every field needs one row a sample: {name!r} has {len(value)} rows in a batch of {rows}; "
            "leave micro_batch_size and drop_last=False away, or let collate give it rows"
        )
    return value[first:last]
