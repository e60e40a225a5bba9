"""One walk through the files below a prefix of a store, as `Walk` goes through a folder on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headrace.dataset.walk import Found, Unusable, Walk, is_clean
from headrace.errors import SourceError
from headrace.formats.tar.names import split_name
from headrace.storage import Place, walk

_NO_TIME = 0  # a store tells no time of change with each name


class StoreWalk(Walk):
    """The files of a prefix. Files are told apart by their names and sizes."""

    def __init__(self, place: Place) -> None:
        super().__init__(Path(), str(place))
        self._place = place

    def files(self) -> Iterator[Found | Unusable]:
        """Every file that belongs to a sample, in the store's order."""
        folders: set[str] = set()
        for entry in walk(self._place):
            top, slash, _ = entry.name.partition("/")
            if any(part.startswith(".") for part in entry.name.split("/")):
                self._passed["hidden files"] += 1
            elif not is_clean(entry.name):
                yield Unusable(ascii(entry.name), self._bad_name(entry.name))
            elif (named := split_name(entry.name)) is None or not named[1]:
                self._passed["files without an extension, or below a folder named like __this__"] += 1
            else:
                if slash:
                    folders.add(top)
                self._note(entry.name, named[1])
                yield Found(named, entry.name, entry.size, _NO_TIME)
        self.folders = sorted(folders)
        if not self._depths and not self._passed:
            raise SourceError(f"there is nothing at {self._place}: check the URL")
