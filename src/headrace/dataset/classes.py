"""Names of classes where the shards themselves have them, as in Parquet files of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.errors import DatasetError
from headrace.formats import CLASS_FIELD, Field
from headrace.storage import quoted


class ClassNames:
    """What the numbers of fields stand for, shard by shard."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}

    def add(self, classes: Mapping[str, Sequence[str]], file: str) -> None:
        """Note a shard's. Raises DatasetError if the same numbers mean other classes than in shards before it."""
        for name, names in classes.items():
            known = self._known.setdefault(name, tuple(names))
            if known != tuple(names):
                raise DatasetError(
                    f"shards of one dataset must number classes alike: in {quoted(file)} those of {name!r} are "
                    f"{_shown(names)}, in others {_shown(known)}; put them into folders of their own"
                )

    def of(self, fields: Mapping[str, Field]) -> tuple[str, tuple[str, ...] | None]:
        """The only field of class numbers, and their names; no names where several fields are such, or none.

        Nor are there any where another field is called `cls`, which would be taken for the one that is meant.
        """
        named = [name for name in self._known if name in fields and fields[name].type == "int"]
        if len(named) != 1 or (CLASS_FIELD in fields and named[0] != CLASS_FIELD):
            return CLASS_FIELD, None
        return named[0], self._known[named[0]]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:5])) + (", ..." if len(names) > 5 else "")
