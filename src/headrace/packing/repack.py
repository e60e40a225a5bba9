"""A dataset as a source: to another format, through a transform, into other shards, or split."""

from __future__ import annotations

from headrace.dataset import Dataset
from headrace.errors import SourceError
from headrace.formats import Encoded
from headrace.packing.prepare import Preparer
from headrace.packing.source import Source
from headrace.storage import quoted


class DatasetSource(Source):
    """The samples of an opened dataset, in storage order. A transform gets bytes for the fields of a tar."""

    def __init__(self, dataset: Dataset, preparer: Preparer) -> None:
        """Reads the keys from the dataset's indexes."""
        if len(dataset) == 0:
            raise SourceError(f"the dataset at {quoted(dataset.url)} holds no samples: there is nothing to pack")
        self._dataset, self._preparer = dataset, preparer
        self._mean_bytes = int(dataset.pieces.bytes.sum()) // len(dataset)
        indexes = (dataset.piece(k) for k in range(len(dataset.pieces)))
        self.keys = [index.key(i) for index in indexes for i in range(index.num_samples)]
        self.classes = dataset.manifest.classes
        self.identity = f"dataset {dataset.fingerprint} {self.classes} {preparer.identity}"

    def encoded(self, i: int) -> list[Encoded]:
        raw = self._dataset[i]
        sample = {name: bytes(value) if isinstance(value, memoryview) else value for name, value in raw.items()}
        return self._preparer(sample, lambda name: f"sample {quoted(raw['__key__'])}, field {name!r},")

    def size(self, i: int) -> int:
        return self._mean_bytes
