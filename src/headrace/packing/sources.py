"""Which source it is: from what a person gives to something to pack."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headrace.dataset import Dataset, is_dataset
from headrace.dataset import open as open_dataset
from headrace.errors import OptionError
from headrace.formats import MANIFEST_NAME
from headrace.packing.folder import FolderSource
from headrace.packing.options import Options
from headrace.packing.repack import dataset_source
from headrace.packing.samples import SamplesSource
from headrace.packing.source import Source
from headrace.storage import Place, list_folder, locate, quoted

SourceLike = str | os.PathLike[str] | Dataset | Iterable[Mapping[str, Any]]

_log = logging.getLogger("headrace.packing")


def open_source(source: SourceLike, scratch: Path, options: Options) -> Source:
    """The source, ready to be looked through; `scratch` is where its temporary files go.

    Raises OptionError for what is no source, SourceError for one that is missing or empty.
    """
    if isinstance(source, str | os.PathLike):
        return _open_place(source, scratch)
    if isinstance(source, Dataset):
        return dataset_source(source)
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes | bytearray):
        return SamplesSource(source, "the iterable", ordered=not options.shuffle or bool(options.selections))
    raise OptionError(
        f"a source is a folder, a dataset or an iterable of dicts: got {type(source).__name__}; for arrays and tables "
        "give an iterable of dicts"
    )


def _open_place(source: str | os.PathLike[str], scratch: Path) -> Source:
    place = locate(source)
    if not place.is_local or is_dataset(place):
        dataset = open_dataset(source)
        _say_what_is_left_out(place, dataset)
        return dataset_source(dataset)
    return FolderSource(place, scratch)


def _say_what_is_left_out(folder: Place, dataset: Dataset) -> None:
    # A folder of files that holds a tar by chance is taken for an ordinary dataset: nobody should miss that.
    names = [entry.name for entry in list_folder(folder) if entry.name[0] != "."]
    if MANIFEST_NAME in names:
        return
    shards = set(dataset.manifest.shards.file)
    others = sorted(name for name in names if name not in shards)
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        shown = ", ".join(map(quoted, others[:3])) + more
        first = dataset.manifest.shards.file[0]
        _log.warning("%s is packed as a dataset of shards (%s, ...); passed over: %s", folder, first, shown)
