"""A dataset as a source: to another format, through a transform, into other shards, or split.

A sample of a small local dataset is one range read away whenever it is wanted. One that lies far away, that is unpacked
with others, or whose index would not stay in memory, is read in storage order, once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.dataset import Dataset, in_order
from headrace.errors import DamagedError, SourceError
from headrace.packing.samples import SamplesSource
from headrace.packing.source import Bad, Loader, Sample, Source
from headrace.packing.spool import Record
from headrace.storage import quoted

MOST_AT_RANDOM = 500_000
"""Samples whose index stays in memory, as it must where they are read in any order."""

_NUMBER = struct.Struct("<q")


def dataset_source(dataset: Dataset, *, at_once: bool = False) -> Source:
    """The dataset as a source; `at_once` reads it in storage order in any case. Raises SourceError if it is empty."""
    if len(dataset) == 0:
        raise SourceError(f"the dataset at {quoted(dataset.url)} holds no samples: there is nothing to pack")
    if at_once or dataset.is_remote or bool(dataset.pieces.is_whole.any()) or len(dataset) > MOST_AT_RANDOM:
        return _ReadOnce(dataset)
    return _Referred(dataset)


def identity_of_dataset(dataset: Dataset) -> str:
    """A text that changes when the dataset's samples do, or the fields that are asked for."""
    some = "" if dataset.schema.keys() == dataset.manifest.fields.keys() else f" fields {[*dataset.schema]}"
    return f"dataset {dataset.fingerprint} {dataset.manifest.classes}{some}"


def images_of(dataset: Dataset) -> frozenset[str]:
    """Fields that the dataset's schema calls images."""
    return frozenset(name for name, field in dataset.schema.items() if field.type == "image")


class _Referred(Source):
    """Samples that are read when they are wanted."""

    def __init__(self, dataset: Dataset) -> None:
        self.title = f"the dataset at {quoted(dataset.url)}"
        self.classes, self.num_records = dataset.manifest.classes, len(dataset)
        self.class_field = dataset.manifest.class_field
        self.images, self.fields = images_of(dataset), dataset.schema.keys()
        self.loader = DatasetLoader(dataset)
        self._dataset = dataset

    @property
    def identity(self) -> str:
        return identity_of_dataset(self._dataset)

    def records(self) -> Iterator[Record | Bad]:
        number = 0
        for k in range(len(self._dataset.pieces)):
            index = self._dataset.piece(k)
            for i, num_bytes in enumerate(index.sample_bytes.tolist()):
                yield Record(index.key(i), _NUMBER.pack(number), num_bytes)
                number += 1


@dataclass(frozen=True)
class DatasetLoader(Loader):
    """Reads one sample. A transform gets bytes for the fields of a tar."""

    dataset: Dataset

    def load(self, key: str, payload: bytes) -> Sample:
        return _with_bytes(self.dataset[_NUMBER.unpack(payload)[0]])

    def origin(self, key: str, payload: bytes, field: str) -> str:
        return f"sample {quoted(key)}, field {field!r},"


class _ReadOnce(SamplesSource):
    """Samples that are read in storage order and kept."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(
            read_in_order(dataset),
            f"the dataset at {quoted(dataset.url)}",
            ordered=True,
            classes=dataset.manifest.classes,
            num_samples=len(dataset),
        )
        self.class_field = dataset.manifest.class_field
        self.images, self.fields = images_of(dataset), dataset.schema.keys()
        self._dataset = dataset

    @property
    def identity(self) -> str:
        return identity_of_dataset(self._dataset)


def read_in_order(dataset: Dataset) -> Iterator[Sample | Bad]:
    """Every sample of a dataset in storage order, by large reads; damaged ones come as `Bad`."""
    for key, sample in in_order(dataset):
        yield Bad(key, sample) if isinstance(sample, DamagedError) else _with_bytes(sample)


def _with_bytes(sample: Sample) -> Sample:
    return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}
