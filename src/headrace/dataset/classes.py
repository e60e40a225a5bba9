"""Names of classes where the shards themselves have them, as in Parquet files of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.errors import DatasetError
from headrace.formats import CLASS_FIELD, Field, Shard
from headrace.formats.index import StoredIndex
from headrace.storage import quoted


def class_names(
    found: Sequence[tuple[StoredIndex, Shard]], fields: Mapping[str, Field]
) -> tuple[str, tuple[str, ...] | None]:
    """The only field of class numbers, and their names; no names where several fields are such, or none.

    Nor are there any where another field is called `cls`, which would be taken for the one that is meant. Raises
    DatasetError for shards of which the same numbers mean different classes.
    """
    known: dict[str, tuple[str, ...]] = {}
    for index, row in found:
        for name, names in index.classes.items():
            if known.setdefault(name, tuple(names)) != tuple(names):
                raise DatasetError(
                    f"shards of one dataset must number classes alike: in {quoted(row.file)} those of {name!r} are "
                    f"{_shown(names)}, in others {_shown(known[name])}; put them into folders of their own"
                )
    named = [name for name in known if name in fields and fields[name].type == "int"]
    if len(named) != 1 or (CLASS_FIELD in fields and named[0] != CLASS_FIELD):
        return CLASS_FIELD, None
    return named[0], known[named[0]]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:5])) + (", ..." if len(names) > 5 else "")
