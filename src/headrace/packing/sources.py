"""Which source it is: from what a person gives to something to pack."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headrace.dataset import Dataset, is_dataset
from headrace.dataset import open as open_dataset
from headrace.dataset.opening import find_ordinary
from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError, SourceError
from headrace.formats import MANIFEST_NAME, ScanOptions
from headrace.packing.files import FilesSource
from headrace.packing.folder import FolderSource
from headrace.packing.huggingface import HuggingFaceSource, is_object, is_saved
from headrace.packing.options import Options
from headrace.packing.repack import dataset_source
from headrace.packing.samples import SamplesSource
from headrace.packing.source import Source
from headrace.packing.sql import QuerySource
from headrace.storage import Place, exists, is_folder, list_folder, locate, open_file, quoted

SourceLike = str | os.PathLike[str] | Dataset | Iterable[Mapping[str, Any]]

_log = logging.getLogger("headrace.packing")
_TABLES = ("csv", "jsonl")


def open_source(source: SourceLike, scratch: Path, options: Options) -> Source:
    """The source, ready to be looked through; `scratch` is where its temporary files go.

    Raises OptionError for what is no source, SourceError for one that is missing or empty.
    """
    if isinstance(source, str | os.PathLike):
        return _open_place(source, scratch, options)
    if options.query is not None:
        raise OptionError("a query reads table files and databases: give a path as the source")
    if isinstance(source, Dataset):
        return _open_dataset(source, options)
    if options.files is not None:
        raise OptionError("files is for tables, whose rows name files: give a dataset or a path as the source")
    if is_object(source):
        return HuggingFaceSource(source, options)
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes | bytearray):
        return SamplesSource(source, "the iterable", ordered=not options.shuffle or bool(options.selections))
    raise OptionError(
        f"a source is a folder, a dataset or an iterable of dicts: got {type(source).__name__}; for arrays and tables "
        "give an iterable of dicts"
    )


def _open_place(source: str | os.PathLike[str], scratch: Path, options: Options) -> Source:
    place = locate(source)
    if options.query is not None:
        rows = QuerySource(place, options.query, scratch, options)
        return rows if options.files is None else FilesSource(rows, options.files, _folder_of(place))
    if is_saved(place):
        if options.files is not None:
            raise OptionError(f"files is for tables, whose rows name files: {place} is a saved Hugging Face dataset")
        return HuggingFaceSource(place, options)
    if _is_folder_of_files(place):
        if options.files is not None:
            raise OptionError(f"files is for tables, whose rows name files: {place} is a folder of files")
        return FolderSource(place, scratch)
    if place.is_local and place.path.is_file():
        _check_format(place)
    dataset = open_dataset(source)
    if is_folder(place):
        _say_what_is_left_out(place, dataset)
    return _open_dataset(dataset, options)


def _open_dataset(dataset: Dataset, options: Options) -> Source:
    if options.files is None:
        return dataset_source(dataset)
    if options.files not in dataset.schema:
        raise SourceError(
            f"{quoted(dataset.url)} has no column {options.files!r} that could name files: it has "
            f"{', '.join(map(repr, dataset.schema)) or 'none'}"
        )
    return FilesSource(dataset_source(dataset, at_once=True), options.files, _folder_of(locate(dataset.url)))


def _is_folder_of_files(place: Place) -> bool:
    """Whether the files there are the samples, and not shards of a dataset."""
    if place.is_local and not exists(place):
        return "{" not in place.text  # braces may name several files; else the folder is missing, and that is said
    if not is_folder(place):
        return False
    if not is_dataset(place):
        return True
    if exists(place / MANIFEST_NAME):
        return False
    # A table among images is one more file of theirs: taken for the dataset, it would hide all the others.
    found = find_ordinary(place.text, ScanOptions())
    return not isinstance(found, Dataset) and found.format.name in _TABLES and bool(_others(place, found.found.files))


def _check_format(place: Place) -> None:
    with open_file(place) as file:
        if not file.size:
            raise SourceError(f"the source {place} is empty (0 bytes): there is nothing to pack")
    try:
        find_ordinary(place.text, ScanOptions())
    except (ManifestError, DamagedError):
        raise
    except DatasetError as err:
        raise SourceError(
            f"the source {place} is a file of no format that headrace reads: give a folder, a table (.csv, .jsonl, "
            ".parquet), or in Python an iterable of dicts"
        ) from err


def _say_what_is_left_out(folder: Place, dataset: Dataset) -> None:
    # A folder of files that holds a tar by chance is taken for an ordinary dataset: nobody should miss that.
    if exists(folder / MANIFEST_NAME):
        return
    others = _others(folder, dataset.manifest.shards.file)
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        shown = ", ".join(map(quoted, others[:3])) + more
        first = dataset.manifest.shards.file[0]
        _log.warning("%s is packed as a dataset of shards (%s, ...); passed over: %s", folder, first, shown)


def _others(folder: Place, shards: Iterable[str]) -> list[str]:
    """What lies beside the shards, or the folders they lie in."""
    known = {name.partition("/")[0] for name in shards}
    return sorted(entry.name for entry in list_folder(folder) if entry.name[0] != "." and entry.name not in known)


def _folder_of(place: Place) -> Place:
    """The folder that paths in a table are relative to."""
    return place if is_folder(place) else place.parent
