"""From a place to a dataset: one with a manifest, or an ordinary folder of shards, which is scanned."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from headrace.dataset.dataset import Dataset
from headrace.dataset.partial import PARTIAL_NAME
from headrace.errors import DatasetError, ManifestError
from headrace.formats import MANIFEST_NAME, Field, Format, Manifest, Shard, Shards, get_format
from headrace.formats.index import StoredIndex
from headrace.formats.tar import TarIndex
from headrace.formats.tokens import DTYPES, FIELD, TokensIndex, dtype_in_name
from headrace.storage import local_path, parse_size, quoted, storage_refusals

_EXPECTED = f"expected {MANIFEST_NAME}, .tar shards, or token files like tokens.uint16.bin"


def open(url: str | os.PathLike[str], *, max_sample_bytes: int | str = "256MiB") -> Dataset:
    """The dataset in a folder: a packed one, or an ordinary one of tar shards or token files.

    An ordinary dataset has no manifest; its shards are read through once to find its samples (`headrace.index` keeps
    what is found). A sample of more than `max_sample_bytes` is an error when it is read.

    Raises DatasetError if there is no dataset or an unfinished one, ManifestError for a manifest that is malformed or
    of a later version, DamagedError for an ordinary shard that is cut off.
    """
    folder = local_path(url)
    limit = parse_size(max_sample_bytes, "max_sample_bytes")
    check_finished(folder)
    if (folder / MANIFEST_NAME).exists():
        manifest = Manifest.read(folder)
        get_known_format(manifest, folder)
        _check_fields(manifest, folder)
        return Dataset(folder, manifest, limit)
    paths, format_ = ordinary_shards(folder)
    found = [format_.scan(path, None) for path in paths]
    manifest = manifest_of(format_, found)
    return Dataset(folder, manifest, limit, scanned=tuple(index for index, _ in found))


def is_dataset(path: Path) -> bool:
    """Whether a path is a folder that `open` takes for a dataset, finished or not."""
    with storage_refusals("read", path):
        return path.is_dir() and any(
            entry.name in (MANIFEST_NAME, PARTIAL_NAME) or _is_ordinary(entry.name) for entry in path.iterdir()
        )


def check_finished(folder: Path) -> None:
    """Raise DatasetError if there is no folder, or if packing into it was cut off or is under way."""
    with storage_refusals("read", folder):
        exists, is_folder, is_partial = folder.exists(), folder.is_dir(), (folder / PARTIAL_NAME).exists()
    if not exists:
        raise DatasetError(f"there is no dataset at {quoted(folder)}: nothing is there; check the path")
    if not is_folder:
        raise DatasetError(f"{quoted(folder)} is not a dataset: it is a file; give the folder that holds the shards")
    if is_partial:
        raise DatasetError(
            f"the dataset at {quoted(folder)} is not finished: packing is under way or was cut off ({PARTIAL_NAME} is "
            "there); run the same pack again to go on"
        )


def get_known_format(manifest: Manifest, folder: Path) -> Format:
    """The manifest's format; DatasetError if this release does not read it."""
    try:
        return get_format(manifest.format)
    except ValueError as err:
        raise DatasetError(f"the dataset at {quoted(folder)} cannot be read by this release: {err}") from err


def ordinary_shards(folder: Path, dtype: str | None = None) -> tuple[list[Path], Format]:
    """The shards of a dataset without a manifest, sorted by name; with `dtype` every `.bin` file is a token file."""
    with storage_refusals("read", folder):
        names = sorted(path.name for path in folder.iterdir())
    tars = [name for name in names if name.endswith(".tar")]
    tokens = [name for name in names if name.endswith(".bin") and (dtype or dtype_in_name(name))]
    if tars and tokens:
        raise DatasetError(
            f"{quoted(folder)} holds both .tar shards and token files: put each into a folder of its own"
        )
    if not tars and not tokens:
        raise DatasetError(f"{quoted(folder)} is not a dataset: {_EXPECTED}; {_found(folder)}")
    return [folder / name for name in tars or tokens], get_format("tar" if tars else "tokens")


def manifest_of(format_: Format, found: Iterable[tuple[StoredIndex, Shard]]) -> Manifest:
    """The manifest of scanned shards. Raises DatasetError if they do not go together."""
    fields: dict[str, Field] = {}
    rows: list[Shard] = []
    for index, row in found:
        for name, field in _fields(index).items():
            if name in fields and fields[name].dtype != field.dtype:
                raise DatasetError(
                    f"shards of one dataset must have one type: {quoted(row.file)} is {field.dtype}, others are "
                    f"{fields[name].dtype}; put them into folders of their own"
                )
            fields.setdefault(name, field)
        rows.append(row)
    return Manifest(format_.name, fields, Shards.of(rows))


def _check_fields(manifest: Manifest, folder: Path) -> None:
    """What all that is cut out of token shards relies on."""
    if manifest.format != "tokens":
        return
    dtype = manifest.fields[FIELD].dtype if FIELD in manifest.fields else None
    if dtype not in DTYPES:
        raise ManifestError(
            f"{quoted(folder / MANIFEST_NAME)} is malformed: a dataset of tokens has the field {FIELD!r} of dtype "
            f"{' or '.join(DTYPES)}, got {dtype!r}; restore it, or make it again"
        )


def with_index_digest(row: Shard, digest: str) -> Shard:
    """A manifest row with its index's checksum."""
    return replace(row, index_xxh3_128=digest)


def _fields(index: StoredIndex) -> dict[str, Field]:
    if isinstance(index, TarIndex):
        return {name: Field("bytes") for name in index.field_names}
    assert isinstance(index, TokensIndex)
    return {FIELD: Field("array", index.dtype.name)}


def _is_ordinary(name: str) -> bool:
    return name.endswith(".tar") or dtype_in_name(name) is not None


def _found(folder: Path) -> str:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    inner = [entry.name for entry in entries if entry.is_dir() and is_dataset(folder / entry.name)]
    if inner:
        return f"found datasets in its folders {_listed(inner)}: open one of them"
    if not entries:
        return "it is empty"
    if any(entry.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")) for entry in entries):
        return "found compressed tars: unpack them to plain .tar first"
    return f"found {_listed([entry.name for entry in entries])}: pack it first (headrace pack)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(quoted(name) for name in names[:3]) + more
