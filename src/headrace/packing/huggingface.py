"""Hugging Face datasets as sources: those in memory or on disk, streamed ones, and folders that `save_to_disk` made.

Images and sounds come as the encoded bytes that the dataset holds, or that lie at the path it names; nothing is
decoded. The only column of class labels becomes the field `cls`, and its names are the dataset's classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.errors import DamagedError, OptionError, SourceError, StorageError
from headrace.formats import CLASS_FIELD
from headrace.packing.fields import ANY_EXTENSION
from headrace.packing.options import Options
from headrace.packing.samples import SamplesSource
from headrace.packing.source import Bad, Sample
from headrace.storage import Place, exists, quoted, read_bytes

_ROWS_AT_ONCE = 64
_SAVED, _SAVED_PARTS = ("dataset_info.json", "state.json"), "dataset_dict.json"

_BEGINNINGS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
}


def is_object(source: Any) -> bool:
    """Whether this is an object of the library, without importing it."""
    datasets = sys.modules.get("datasets")
    kinds = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    return datasets is not None and isinstance(source, tuple(getattr(datasets, kind) for kind in kinds))


def is_saved(folder: Place) -> bool:
    """Whether `save_to_disk` made this local folder."""
    return folder.is_local and (all(exists(folder / name) for name in _SAVED) or exists(folder / _SAVED_PARTS))


class HuggingFaceSource(SamplesSource):
    """The rows of a dataset, in its order."""

    def __init__(self, dataset: Any, options: Options) -> None:
        """`dataset` is an object of the library, or the folder that one was saved in.

        Raises OptionError where the library is not installed, or a part of the dataset has to be chosen.
        """
        self._datasets = _library()
        if isinstance(dataset, Place):
            dataset = self._loaded(dataset)
        if isinstance(dataset, Mapping):
            raise OptionError(
                f"the dataset has the parts {', '.join(map(str, dataset))}: give one of them, such as "
                f"dataset[{next(iter(dataset), 'train')!r}], or its folder"
            )
        features = dict(dataset.features or {})
        for name, feature in features.items():
            if not hasattr(feature, "decode") and _holds_files(feature):
                raise OptionError(
                    f"the column {name!r} holds several images or sounds a row, which would be decoded: make a column "
                    "of each (dataset.map), or of their bytes"
                )
        self._files = [name for name, feature in features.items() if hasattr(feature, "decode")]
        labels = [name for name, feature in features.items() if isinstance(feature, self._datasets.ClassLabel)]
        self._label = labels[0] if len(labels) == 1 and labels[0] not in self._files else None
        if self._label not in (None, CLASS_FIELD) and CLASS_FIELD in features:
            self._label = None
        # Other readers of tars know what a field is by its extension; other formats keep the column's name.
        self._names_extension = options.format.name == "tar"
        super().__init__(
            self._rows(dataset, features),
            "the Hugging Face dataset",
            ordered=not options.shuffle or bool(options.selections),
            classes=None if self._label is None else tuple(features[self._label].names),
            num_samples=len(dataset) if isinstance(dataset, self._datasets.Dataset) else None,
        )
        if features:
            self.fields = frozenset(map(self._field_of, features))
        if not self._names_extension:
            images = (name for name in self._files if isinstance(features[name], self._datasets.Image))
            self.images = frozenset(images)

    def _field_of(self, column: str) -> str:
        if column in self._files:
            return f"{column}{ANY_EXTENSION}" if self._names_extension else column
        return CLASS_FIELD if column == self._label else column

    def _loaded(self, folder: Place) -> Any:
        try:
            return self._datasets.load_from_disk(str(folder.path))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise SourceError(f"{folder} is no dataset that save_to_disk made: {' '.join(str(err).split())}") from err

    def _rows(self, dataset: Any, features: Mapping[str, Any]) -> Iterator[Sample | Bad]:
        if isinstance(dataset, self._datasets.Dataset):
            dataset = dataset.with_format(None)  # rows as Python values, whatever the user had asked for
        for name in self._files:
            dataset = dataset.cast_column(name, replace(features[name], decode=False))
        number = 0
        for batch in dataset.iter(batch_size=_ROWS_AT_ONCE):
            for values in zip(*batch.values(), strict=True):
                yield self._sample(number, dict(zip(batch, values, strict=True)))
                number += 1

    def _sample(self, number: int, row: Sample) -> Sample | Bad:
        sample: Sample = {}
        try:
            for name, value in row.items():
                if name in self._files and value is not None:
                    name, value = self._file(number, name, value)
                elif name == self._label:
                    name = CLASS_FIELD
                sample[name] = value
        except SourceError as err:
            return Bad(str(row.get("__key__", f"{number:09d}")), err)
        return sample

    def _file(self, number: int, name: str, value: Mapping[str, Any]) -> tuple[str, bytes]:
        """The field's name and the file's bytes, of a value such as {"bytes": ..., "path": ...}."""
        path, data = value.get("path"), value.get("bytes")
        if data is None:
            data = _read(f"sample number {number} of {self.title}, field {name!r},", path)
        return (f"{name}.{_extension(data, path)}" if self._names_extension else name), data


def _holds_files(feature: Any) -> bool:
    """Whether an image, a sound or the like is anywhere inside."""
    if isinstance(feature, Mapping):
        return any(map(_holds_files, feature.values()))
    if isinstance(feature, list):
        return any(map(_holds_files, feature))
    inner = getattr(feature, "feature", None)
    return hasattr(feature, "decode") if inner is None else _holds_files(inner)


def _read(where: str, path: Any) -> bytes:
    """The bytes at the path that a dataset names in place of bytes."""
    if not isinstance(path, str) or "://" in path:
        raise SourceError(f"{where} holds no bytes, and names no file on this disk but {path!r}: download the dataset")
    try:
        return read_bytes(Path(path))
    except (DamagedError, StorageError) as err:
        raise SourceError(f"{where} names a file that cannot be read: {err}") from err


def _extension(data: bytes, path: Any) -> str:
    for beginning, extension in _BEGINNINGS.items():
        if data.startswith(beginning):
            return extension
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else "wav"
    suffix = Path(path).suffix.lstrip(".").lower() if isinstance(path, str) else ""
    return suffix if suffix.isalnum() else "bin"


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as err:
        raise OptionError(f"this source needs the datasets library: pip install {quoted('headrace[hf]')}") from err
