"""One walk through a folder of files: each file that belongs to a sample, and what was met besides."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.errors import SourceError
from headrace.formats.tar.names import split_name
from headrace.storage import quoted, storage_refusals


class Found(NamedTuple):
    """A file that belongs to a sample."""

    named: tuple[str, str]
    """Key and field."""
    path: str
    """Below the folder."""
    size: int
    mtime_ns: int


class Unusable(NamedTuple):
    """What looks like a sample's file and is none, and why."""

    key: str
    error: SourceError


class Walk:
    """One walk. What it says of the folder as a whole holds when `files` is through."""

    def __init__(self, root: Path, title: str | None = None) -> None:
        """`title` is what the folder is called in messages, if not by its path."""
        self._root, self._title = root, title or quoted(root)
        self.folders: list[str] = []
        """Names of the folders directly below the root."""
        self._top: str | None = None
        self._depths: set[int] = set()
        self._has_cls = False
        self._passed: Counter[str] = Counter()

    def files(self) -> Iterator[Found | Unusable]:
        """Every file that belongs to a sample, in no order. Raises SourceError if the folder is missing."""
        self._check_root()
        waiting = [""]
        while waiting:
            below = waiting.pop()
            with storage_refusals("read the folder", self._root / below), os.scandir(self._root / below) as entries:
                for entry in entries:
                    path = f"{below}{entry.name}"
                    if not entry.is_dir(follow_symlinks=False):
                        yield from self._file(entry, path)
                    elif entry.name.startswith("."):
                        self._passed["hidden folders"] += 1
                    elif not is_clean(entry.name):
                        yield Unusable(ascii(path), self._bad_name(path))
                    else:
                        waiting.append(path + "/")
                        if not below:
                            self.folders.append(entry.name)

    def classes(self) -> tuple[str, ...] | None:
        """The names of class folders: if every file lies exactly one folder deep, and none is a class number itself."""
        if self._depths != {1} or self._has_cls:
            return None
        by_lower: dict[str, str] = {}
        for name in sorted(self.folders):
            other = by_lower.setdefault(name.lower(), name)
            if other != name:
                raise SourceError(
                    f"the class folders {quoted(other)} and {quoted(name)} in {self._title} differ only by "
                    "case: merge them, or rename one"
                )
        return tuple(sorted(self.folders))

    @property
    def stray(self) -> str | None:
        """The first file by name that lies beside what else would be class folders, such as a README."""
        return self._top if max(self._depths, default=0) <= 1 else None

    def passed_over(self) -> str:
        """What was no part of any sample, in words; empty if there was nothing."""
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self._passed.items()))

    def _check_root(self) -> None:
        with storage_refusals("read", self._root):
            exists, is_folder = self._root.exists(), self._root.is_dir()
        if not exists:
            raise SourceError(f"the source {quoted(self._root)} does not exist: check the path")
        if not is_folder:
            raise SourceError(
                f"the source {quoted(self._root)} is a file of no format that headrace reads: give a folder, a table "
                "(.csv, .jsonl, .parquet), or in Python an iterable of dicts"
            )

    def _file(self, entry: os.DirEntry[str], path: str) -> Iterator[Found | Unusable]:
        if entry.name.startswith("."):
            self._passed["hidden files"] += 1
        elif not is_clean(entry.name):
            yield Unusable(ascii(path), self._bad_name(path))
        else:
            yield from self._clean_file(entry, path)

    def _clean_file(self, entry: os.DirEntry[str], path: str) -> Iterator[Found | Unusable]:
        try:
            status = entry.stat()
        except FileNotFoundError:
            yield Unusable(path, SourceError(f"{quoted(self._root / path)} is a link to a file that is not there"))
            return
        except OSError as err:  # such as links in a circle
            yield Unusable(path, SourceError(f"cannot read {quoted(self._root / path)}: {err.strerror}"))
            return
        if stat.S_ISDIR(status.st_mode):
            self._passed["links to folders"] += 1
        elif not stat.S_ISREG(status.st_mode):
            self._passed["pipes, sockets and devices"] += 1
        elif (named := split_name(path)) is None or not named[1]:
            self._passed["files without an extension, or below a folder named like __this__"] += 1
        else:
            self._note(path, named[1])
            yield Found(named, path, status.st_size, status.st_mtime_ns)

    def _note(self, path: str, field: str) -> None:
        depth = path.count("/")
        self._depths.add(depth)
        self._has_cls |= field == "cls"
        if depth == 0:
            self._top = min(self._top or path, path)

    def _bad_name(self, path: str) -> SourceError:
        return SourceError(
            f"the name {path!a} in {self._title} holds a line break, a control character or what is not "
            "UTF-8: rename it"
        )


def is_clean(name: str) -> bool:
    """Whether a name is valid UTF-8 without line breaks and other control characters."""
    if name.isprintable():  # nearly all are, and this is quick
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(char) < 32 or ord(char) == 127 for char in name)
