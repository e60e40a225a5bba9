"""From a place to a dataset: one with a manifest, or an ordinary one, which is scanned."""

from __future__ import annotations

import os
from collections.abc import Iterable

from headrace.dataset.chosen import field_names
from headrace.dataset.dataset import Dataset
from headrace.dataset.folder import open_folder
from headrace.dataset.listing import FolderListing
from headrace.dataset.ordinary import Gathered, Ordinary
from headrace.dataset.partial import PARTIAL_NAME
from headrace.dataset.shard_files import ShardFiles, lasting, shown
from headrace.errors import DatasetError, ManifestError, StorageError
from headrace.formats import (
    FORMATS,
    MANIFEST_NAME,
    Format,
    Manifest,
    ScanOptions,
    get_format,
)
from headrace.formats.tokens.index import DTYPES, FIELD
from headrace.storage import (
    Place,
    exists,
    expand_braces,
    is_folder,
    locate,
    parse_size,
    quoted,
    read_bytes,
    storage_refusals,
)
from headrace.storage.cache import CacheOptions, cache_options, open_cache

_EXPECTED = f"expected {MANIFEST_NAME}, or files of one of the formats {', '.join(FORMATS)}"


def open(
    url: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
    max_sample_bytes: int | str = "256MiB",
    fields: Iterable[str] | None = None,
) -> Dataset:
    """The dataset at a place: a packed one, an ordinary one of any format that headrace reads, or a folder of files.

    `url` names a folder or prefix, a single file, or files by braces: `s3://bucket/train-{000000..000099}.tar`.

    An ordinary dataset has no manifest; what it is follows from the content of its files. Its shards are read through
    once to find its samples, each of which takes about 100 bytes of memory (`headrace.index` keeps what is found on the
    disk). A folder of files (files of one stem are a sample, folders one deep are classes) opens as it is up to 100,000
    files and 1 GiB; larger ones are to be packed. A sample of more than `max_sample_bytes` is an error when it is read.

    `cache` is a local folder, or "ram": blocks of shards that lie in a store are kept there, for all processes of this
    machine, `cache_size` bytes of them at most (such as "200GiB"; None: half of the disk, or a quarter of the memory).
    What lies on a local disk already is not copied. The one reading of an ordinary dataset fills it, too.

    `fields` are the names of the fields that samples are to have beside `__key__`; None: all. Of Parquet only these
    columns' chunks are read, in one range where less than 1 MiB lies between two of them, and unpacked. The samples of
    other formats lie in one piece, and many under one checksum: they are read and verified as a whole, and the other
    fields are left out then. Neither the order of a `headrace.Stream` nor a loader's state depends on `fields`, and
    `verify` checks all of them.

    Raises DatasetError if there is no dataset or an unfinished one, ManifestError for a manifest that is malformed or
    of a later version, DamagedError for an ordinary shard that is cut off, OptionError for fields that it does not
    have.
    """
    names = None if fields is None else field_names(fields)
    limit = parse_size(max_sample_bytes, "max_sample_bytes")
    dataset = _opened(url, limit, cache_options(cache, cache_size))
    return dataset if names is None else dataset.with_fields(names)


def _opened(url: str | os.PathLike[str], limit: int, kept: CacheOptions | None) -> Dataset:
    ordinary = _look(url, ScanOptions(max_sample_bytes=limit), kept)
    if isinstance(ordinary, Dataset):
        return ordinary
    if isinstance(ordinary, FolderListing):
        return _opened_folder(shown(url), ordinary, limit)
    return _scanned(shown(url), ordinary, limit)


def _scanned(url: str, ordinary: Ordinary, limit: int) -> Dataset:
    """The ordinary dataset, read through once."""
    gathered, indexes = Gathered(ordinary), []
    for index, row in ordinary.scan():
        gathered.add(index, row)
        indexes.append(index)
    manifest = gathered.manifest()
    scanned = tuple(index.read_as(manifest.fields) for index in indexes)
    files = ShardFiles(url, ordinary.folder, ordinary.folder, ordinary.cache, ordinary.identities)
    return Dataset(files, manifest, limit, scanned=scanned)


def _opened_folder(url: str, listing: FolderListing, limit: int) -> Dataset:
    """A folder of files as it is, unless datasets lie in its folders: then one of those is meant."""
    is_whole_folder = listing.folder.is_local and not listing.is_part and not _inner_datasets(listing)
    dataset = open_folder(url, listing.folder, limit) if is_whole_folder else None
    if dataset is None:
        raise _none_found(url, listing)
    return dataset


def find_ordinary(url: str | os.PathLike[str], options: ScanOptions) -> Dataset | Ordinary:
    """What is at a place: a dataset with a manifest, or an ordinary one of shards. Raises as `open`."""
    found = _look(url, options, None)
    if isinstance(found, FolderListing):
        raise _none_found(shown(url), found)
    return found


def _look(
    url: str | os.PathLike[str], options: ScanOptions, cache: CacheOptions | None
) -> Dataset | Ordinary | FolderListing:
    """A dataset, packed or ordinary, or what else is there."""
    folder, names = _folder_and_names(url)
    if names is None:
        manifest = _read_manifest(folder)
        if manifest is not None:
            return _packed(shown(url), folder, manifest, options.max_sample_bytes, cache)
    listing = FolderListing(folder, names)
    for format_ in FORMATS.values():
        if (found := format_.find(listing, options)) is not None:
            _check_alone(format_, listing, options)
            held = None if cache is None or folder.is_local else open_cache(cache)
            return Ordinary(folder, format_, found, options, cache, held)
    return listing


def _none_found(url: str, listing: FolderListing) -> DatasetError:
    return DatasetError(f"{quoted(url)} is not a dataset: {_EXPECTED}; {_what_is_there(listing)}")


def is_dataset(place: Place) -> bool:
    """Whether a place is a folder that `open` takes for a dataset, finished or not."""
    try:
        if exists(place / MANIFEST_NAME) or exists(place / PARTIAL_NAME):
            return True
        listing = FolderListing(place)
    except StorageError:
        return False
    return any(format_.find(listing, ScanOptions()) is not None for format_ in FORMATS.values())


def _folder_and_names(url: str | os.PathLike[str]) -> tuple[Place, list[str] | None]:
    """The folder, and the names of files in it if the place names files."""
    text = os.fspath(url)
    places = [lasting(locate(one)) for one in ([text] if _is_there(text) else expand_braces(text))]
    if len(places) == 1 and _is_dataset_folder(places[0], shown(text)):
        return places[0], None
    parents = {place.parent for place in places}
    if len(parents) != 1:
        raise DatasetError(f"files of one dataset must lie in one folder: {quoted(shown(text))} names several")
    return parents.pop(), [place.name for place in places]


def _is_there(text: str) -> bool:
    """Whether it is a local path as it stands: braces may be part of a name."""
    # Not Path.exists, which raises where names listed in braces are longer than a file's name may be.
    return "{" not in text or (locate(text).is_local and os.path.exists(locate(text).path))


def _is_dataset_folder(place: Place, url: str) -> bool:
    if place.is_local:
        with storage_refusals("read", place.path):
            if not place.path.exists():
                raise DatasetError(f"there is no dataset at {quoted(url)}: nothing is there; check the path")
            return place.path.is_dir()
    if exists(place / MANIFEST_NAME) or exists(place / PARTIAL_NAME):
        return True
    try:
        return is_folder(place)
    except StorageError:  # plain http lists nothing: then it can only be a file
        return False


def _read_manifest(folder: Place) -> Manifest | None:
    if exists(folder / PARTIAL_NAME):
        raise DatasetError(
            f"the dataset at {folder} is not finished: packing is under way or was cut off ({PARTIAL_NAME} "
            "is there); run the same pack again to go on"
        )
    place = folder / MANIFEST_NAME
    return Manifest.parse(read_bytes(place), place.text) if exists(place) else None


def _packed(url: str, folder: Place, manifest: Manifest, limit: int, cache: CacheOptions | None) -> Dataset:
    try:
        get_format(manifest.format)
    except ValueError as err:
        raise DatasetError(f"the dataset at {quoted(url)} cannot be read by this release: {err}") from err
    _check_fields(manifest, folder)
    shards = folder if manifest.shards_url is None else locate(manifest.shards_url)
    return Dataset(ShardFiles(url, folder, shards, cache), manifest, limit)


def _check_alone(format_: Format, listing: FolderListing, options: ScanOptions) -> None:
    others = [other.name for other in FORMATS.values() if other is not format_ and other.find(listing, options)]
    if others:
        raise DatasetError(
            f"{listing.folder} holds files of several formats ({', '.join([format_.name, *others])}): put "
            "each into a folder of its own"
        )


def _check_fields(manifest: Manifest, folder: Place) -> None:
    """What all that is cut out of token shards relies on."""
    if manifest.format != "tokens":
        return
    dtype = manifest.fields[FIELD].dtype if FIELD in manifest.fields else None
    if dtype not in DTYPES:
        raise ManifestError(
            f"{folder / MANIFEST_NAME} is malformed: a dataset of tokens has the field {FIELD!r} of dtype "
            f"{' or '.join(DTYPES)}, got {dtype!r}; restore it, or make it again"
        )


def _inner_datasets(listing: FolderListing) -> list[str]:
    return [name for name in listing.folders if is_dataset(listing.folder / name)]


def _what_is_there(listing: FolderListing) -> str:
    if inner := _inner_datasets(listing):
        more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
        return f"found datasets in its folders {', '.join(map(quoted, inner[:3]))}{more}: open one of them"
    if not listing.names and not listing.folders:
        return "it is empty"
    if all(name.endswith(get_format("tokens").suffix) for name in listing.names):
        return (
            f"found {listing.shown()}: if they are bare tokens, say of which type "
            "(headrace index --dtype uint16, then open)"
        )
    return f"found {listing.shown()}: pack it first (headrace pack)"
