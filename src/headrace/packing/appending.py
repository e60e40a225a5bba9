"""What has to fit when samples are appended: keys that are new, and classes of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from headrace.dataset import open as open_dataset
from headrace.errors import SourceError
from headrace.formats import INDEX_SUFFIX, Manifest, Shard, get_format
from headrace.packing.folder import FolderSource
from headrace.packing.seen import Seen
from headrace.packing.source import Source
from headrace.storage import Place, quoted, read_bytes


def digest_of(key: str) -> int:
    """What a key is recognised by: 128 bits, so equal digests are equal keys."""
    return xxhash.xxh3_128_intdigest(key.encode())


def note_keys(seen: Seen, place: Place) -> None:
    """Add the keys of a finished dataset, shard by shard."""
    dataset = open_dataset(place.text)
    for shard in range(len(dataset.manifest.shards)):
        index = dataset.stored_index(shard)
        for i in range(index.num_samples):
            seen.add(digest_of(index.key(i)))


def note_keys_of_shard(seen: Seen, folder: Place, shard: Shard, format_name: str) -> None:
    """Add the keys of a finished shard of a dataset that is not finished."""
    name = folder / (shard.file + INDEX_SUFFIX)
    index = get_format(format_name).read_index(memoryview(read_bytes(name)), name.text, shard.bytes)
    for i in range(index.num_samples):
        seen.add(digest_of(index.key(i)))


class Classes(NamedTuple):
    """The classes of a dataset."""

    names: tuple[str, ...] | None
    field: str
    """The field of their numbers."""


def joined_classes(source: Source, bases: Sequence[Manifest]) -> Classes:
    """The classes of what is appended to and what is appended; numbers that are in use stay what they are.

    Raises SourceError if the numbers of the two mean different classes.
    """
    if not bases:
        return Classes(source.classes, source.class_field)
    if any((base.classes, base.class_field) != (bases[0].classes, bases[0].class_field) for base in bases):
        raise SourceError("the parts of the split that is appended to have different classes: pack them anew")
    field = source.class_field if bases[0].classes is None else bases[0].class_field
    if source.classes is not None and source.class_field != field:
        raise SourceError(
            f"the source has classes in the field {source.class_field!r}, the dataset that it is appended to in "
            f"{field!r}: rename the field in the source"
        )
    return Classes(_joined_names(source, bases[0], field), field)


def _joined_names(source: Source, base: Manifest, field: str) -> tuple[str, ...] | None:
    known, new = base.classes, source.classes
    if known is None or new is None or new == known[: len(new)]:
        if known is None and new is not None and field in base.fields:
            raise SourceError(f"classes ({_shown(new)}) cannot be appended to numbers of classes that have no names")
        return known or new
    if isinstance(source, FolderSource):
        return source.number_classes((*known, *(name for name in new if name not in known)))
    if known == new[: len(known)]:
        return new
    raise SourceError(
        f"the source numbers its classes {_shown(new)}, the dataset that it is appended to {_shown(known)}: the same "
        "numbers would mean different classes; bring them together in the transform"
    )


def _shown(classes: Sequence[str]) -> str:
    more = ", ..." if len(classes) > 3 else ""
    return ", ".join(map(quoted, classes[:3])) + more
