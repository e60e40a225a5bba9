"""From a delivery to what the trainer sees: tensors and views over the slot, without a copy."""

from __future__ import annotations

import pickle
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.errors import TransformError
from headrace.load.job import Array, Blob, Blobs, Content, Delivery
from headrace.load.keys import strings

BatchDict: TypeAlias = dict[str, Any]
"""A batch: `__key__` (list of str) and fields; tensors have the batch first, other fields are lists."""


def batch_over(buffer: Any, delivery: Delivery) -> BatchDict:
    """The batch over a buffer that holds the slot's bytes; whoever holds a part of it holds the buffer."""
    batch: BatchDict = {"__key__": strings(delivery.keys)}
    plain = _plain(delivery.plain)
    for name, content in delivery.fields.items():
        batch[name] = _content(buffer, content, plain.pop(name, []))
    batch.update(plain)
    if delivery.real is not None:
        batch["__real__"] = torch.from_numpy(delivery.real)
    return batch


def _plain(pickled: bytes) -> dict[str, Any]:
    try:
        return pickle.loads(pickled) if pickled else {}  # noqa: S301 - pickled by our own loader process
    except Exception as err:
        reason = f"{type(err).__name__}: {' '.join(str(err).split())}"
        raise TransformError(f"what a function returned cannot be made again in the trainer: {reason}") from err


def _content(buffer: Any, content: Content, plain: list[Any]) -> Any:
    if isinstance(content, Array):
        return _tensor(buffer, content)
    view = memoryview(buffer).cast("B")
    if isinstance(content, Blobs):
        ends = content.offsets + content.lengths
        return [view[start:end] for start, end in zip(content.offsets.tolist(), ends.tolist(), strict=True)]
    return [_element(buffer, view, one, plain, number) for number, one in enumerate(content)]


def _element(buffer: Any, view: memoryview, one: Array | Blob | None, plain: list[Any], number: int) -> Any:
    if one is None:
        return plain[number]
    return _tensor(buffer, one) if isinstance(one, Array) else view[one.offset : one.offset + one.length]


def _tensor(buffer: Any, array: Array) -> torch.Tensor:
    count = int(np.prod(array.shape, dtype=np.int64))
    if count == 0:
        return torch.from_numpy(np.empty(array.shape, array.dtype))
    return torch.from_numpy(np.frombuffer(buffer, array.dtype, count, array.offset).reshape(array.shape))
