"""Other libraries' loaders: how large a batch of theirs is, what they were made with, which of them is in the other.

Everything here is by looking at what an object has, so none of the libraries is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_INNER = ("base_dataloader", "_dataloader", "_watched")
"""Under these names accelerate's and Fabric's loaders, and what a Monitor watches, have the one within."""
_MOST_DEEP = 8


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What a loader says of itself; None where it does not."""

    kind: str
    """The name of its class."""
    num_workers: int | None = None
    """Processes that make its batches; 0: whoever iterates makes them."""
    prefetch_factor: int | None = None
    """Batches that each of them makes ahead."""
    batch_size: int | None = None
    """Samples."""

    @property
    def num_ahead(self) -> int:
        """Batches that may be made before they are asked for, as far as that is known."""
        return (self.num_workers or 0) * (self.prefetch_factor or 0)


def raw_loader(loader: Any) -> Any:
    """The loader that makes the batches, within those that only move or watch them; else the loader itself."""
    for _ in range(_MOST_DEEP):
        held = vars(loader) if hasattr(loader, "__dict__") else {}
        inner = next((held[name] for name in _INNER if name in held), None)
        if inner is None:
            break
        loader = inner
    return loader


def loader_facts(loader: Any) -> LoaderFacts:
    """What is known of how a loader makes its batches: a DataLoader's workers, WebDataset's loader's."""
    loader = raw_loader(loader)
    stages = getattr(loader, "pipeline", None)
    # WebDataset's WebLoader is a chain of stages, of which the first is a DataLoader; batches may be made after it.
    made_by = stages[0] if isinstance(stages, list) and stages and hasattr(stages[0], "num_workers") else loader
    # A DataLoader that was given a batch sampler has the size there.
    sized = (loader, made_by, getattr(made_by, "batch_sampler", None))
    sizes = (_whole(getattr(one, "batch_size", None)) for one in sized)
    return LoaderFacts(
        type(loader).__name__,
        _whole(getattr(made_by, "num_workers", None)),
        _whole(getattr(made_by, "prefetch_factor", None)),
        next((size for size in sizes if size), None),
    )


def num_samples(batch: Any, batch_size: int | None = None) -> int:
    """How many samples a batch has: the length of `__key__`, else of its first array or list of samples; 0: unknown.

    `batch_size` is what the loader says: where some array or list in the batch is as long, that is it.
    """
    if isinstance(batch, Mapping) and "__key__" in batch:
        return len(batch["__key__"])
    if batch_size and batch_size in _lengths(batch, _MOST_DEEP):
        return batch_size
    if isinstance(batch, list | tuple) and all(isinstance(field, Mapping) for field in batch):
        return 0  # samples, or batches of several loaders
    return next(filter(None, map(_num_rows, _fields(batch))), 0)


def num_bytes(batch: Any) -> int:
    """The bytes of a batch's contents: tensors, arrays, bytes and texts (UTF-8), however nested; 8 for a number.

    Names of fields, `__key__` and what is none of these count nothing.
    """
    if isinstance(batch, Mapping):
        return sum(num_bytes(value) for name, value in batch.items() if name != "__key__")
    if isinstance(batch, str):
        return len(batch.encode())
    if isinstance(batch, bytes | bytearray):
        return len(batch)
    if isinstance(batch, int | float):
        return 8
    size = getattr(batch, "nbytes", None)  # a tensor's, an array's, a memoryview's
    if isinstance(size, int):
        return size
    return sum(map(num_bytes, batch)) if isinstance(batch, Sequence) else 0


def _fields(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, list | tuple) else [batch]


def _num_rows(field: Any) -> int:
    """0 also where it may be either: several views of all samples, or an array of each."""
    if isinstance(field, Mapping):
        return num_samples(field)
    if not isinstance(field, list | tuple):
        return _length(field)
    if any(isinstance(part, list | tuple) and any(map(_length, part)) for part in field):
        return 0
    within = set(map(_length, field))
    return len(field) if within == {0} or (0 not in within and len(within) > 1) else 0


def _lengths(value: Any, most_deep: int) -> Iterator[int]:
    """Of every list and array in it."""
    if isinstance(value, list | tuple | Mapping) and most_deep:
        if not isinstance(value, Mapping):
            yield len(value)
        for part in _fields(value):
            yield from _lengths(part, most_deep - 1)
    else:
        yield _length(value)


def _length(field: Any) -> int:
    shape: Any = () if isinstance(field, memoryview) else getattr(field, "shape", ())
    return int(shape[0]) if len(shape) else 0


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
