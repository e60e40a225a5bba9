"""A folder of files as a source: files of one stem are a sample, and folders may be classes.

The folder is walked once. What is no part of any sample (hidden files, files without an extension, links to folders)
is passed over and said; what looks like a sample but is broken is an error, or skipped on request.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from headrace.errors import DamagedError, SourceError, StorageError
from headrace.formats import Encoded
from headrace.formats.tar_names import split_name
from headrace.packing.options import OnError
from headrace.packing.prepare import Preparer
from headrace.packing.source import WAY_OUT, Skipped, Source, is_clean
from headrace.storage import LocalFile, quoted, storage_refusals

_log = logging.getLogger("headrace.packing")


@dataclass(frozen=True, slots=True)
class _File:
    key: str
    field: str
    path: str
    """Below the source folder."""
    size: int
    mtime_ns: int


class FolderSource(Source):
    """The samples of a folder of files, sorted by key."""

    def __init__(self, folder: Path, preparer: Preparer, on_error: OnError) -> None:
        """Walks the folder. Raises SourceError if it is missing, empty or holds names that cannot be packed."""
        walk = _Walk(folder, on_error)
        files = sorted(walk.files(), key=lambda file: (file.key, file.field, file.path))
        self._folder, self._preparer = folder, preparer
        self._samples = _grouped(files, walk)
        if not self._samples:
            raise SourceError(f"{quoted(folder)} holds nothing to pack: {walk.passed_over() or 'it is empty'}")
        self.keys = [sample[0].key for sample in self._samples]
        self.skipped = walk.skipped
        self.classes = _classes(folder, self._samples, walk.folders)
        self._class_numbers = {name: number for number, name in enumerate(self.classes or ())}
        self.identity = f"folder {_digest(self._samples)} {self.classes} {preparer.identity}"
        if self.classes is None and len(walk.folders) > 1 and (stray := _above_classes(self._samples)):
            _log.warning("no classes: %s lies outside the folders of %s", quoted(stray), quoted(folder))
        if walk.passed_over():
            _log.warning("passed over in %s: %s", quoted(folder), walk.passed_over())

    def encoded(self, i: int) -> list[Encoded]:
        paths = {file.field: self._path(file) for file in self._samples[i]}
        return self._preparer(self._read(i), lambda name: quoted(paths[name]) if name in paths else f"field {name!r}")

    def size(self, i: int) -> int:
        return sum(file.size for file in self._samples[i])

    def _read(self, i: int) -> dict[str, Any]:
        key = self._samples[i][0].key
        sample: dict[str, Any] = {"__key__": key}
        for file in self._samples[i]:
            sample[file.field] = self._read_file(file)
        if self.classes is not None:
            sample["cls"] = self._class_numbers[key.partition("/")[0]]
        return sample

    def _read_file(self, file: _File) -> bytes:
        path = self._path(file)
        if file.size == 0:
            raise SourceError(f"{quoted(path)} is empty (0 bytes)")
        try:
            with LocalFile(path) as opened:
                if opened.size != file.size:
                    raise SourceError(f"{quoted(path)} changed while packing: {file.size:,}, now {opened.size:,} bytes")
                return bytes(opened.read(0, file.size))
        except StorageError as err:
            raise SourceError(str(err)) from err
        except DamagedError as err:
            raise SourceError(f"{quoted(path)} changed while packing: it is gone, or shorter than it was") from err

    def _path(self, file: _File) -> str:
        return os.path.join(self._folder, file.path)


@dataclass(slots=True)
class _Walk:
    """One walk through a folder, and what it met besides usable files."""

    root: Path
    on_error: OnError
    skipped: list[Skipped] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Names of the folders directly below the root."""
    _passed: Counter[str] = field(default_factory=Counter)

    def files(self) -> Iterator[_File]:
        """Every file that belongs to a sample."""
        with storage_refusals("read", self.root):
            exists, is_folder = self.root.exists(), self.root.is_dir()
        if not exists:
            raise SourceError(f"the source {quoted(self.root)} does not exist: check the path")
        if not is_folder:
            raise SourceError(
                f"the source {quoted(self.root)} is a file, and tables (.csv, .jsonl, .parquet) are not read yet: "
                "give a folder, or in Python an iterable of dicts"
            )
        waiting = [""]
        while waiting:
            below = waiting.pop()
            with storage_refusals("read the folder", self.root / below), os.scandir(self.root / below) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = f"{below}{entry.name}"
                    if self._is_folder(entry, path):
                        waiting.append(path + "/")
                        if not below:
                            self.folders.append(entry.name)
                    else:
                        yield from self._file(entry, path)

    def bad(self, key: str, reason: str) -> None:
        """Note a broken sample, or raise it."""
        if self.on_error == "raise":
            raise SourceError(reason + WAY_OUT)
        self.skipped.append(Skipped(key, reason))

    def passed_over(self) -> str:
        """What was no part of any sample, in words; empty if there was nothing."""
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self._passed.items()))

    def _is_folder(self, entry: os.DirEntry[str], path: str) -> bool:
        if not entry.is_dir(follow_symlinks=False):
            return False
        if entry.name.startswith("."):
            self._passed["hidden folders"] += 1
            return False
        if not is_clean(entry.name):
            self.bad(ascii(path), self._bad_name(path))
            return False
        return True

    def _file(self, entry: os.DirEntry[str], path: str) -> Iterator[_File]:
        if entry.is_dir(follow_symlinks=False):
            return
        if entry.name.startswith("."):
            self._passed["hidden files"] += 1
            return
        if not is_clean(entry.name):
            self.bad(ascii(path), self._bad_name(path))
            return
        try:
            status = entry.stat()
        except FileNotFoundError:
            self.bad(path, f"{quoted(self.root / path)} is a link to a file that is not there")
            return
        except OSError as err:  # such as links in a circle
            self.bad(path, f"cannot read {quoted(self.root / path)}: {err.strerror}")
            return
        if stat.S_ISDIR(status.st_mode):
            self._passed["links to folders"] += 1
        elif not stat.S_ISREG(status.st_mode):
            self._passed["pipes, sockets and devices"] += 1
        elif (named := split_name(path)) is None or not named[1]:
            self._passed["files without an extension, or below a folder named like __this__"] += 1
        else:
            yield _File(*named, path, status.st_size, status.st_mtime_ns)

    def _bad_name(self, path: str) -> str:
        return (
            f"the name {path!a} in {quoted(self.root)} holds a line break, a control character or what is not "
            "UTF-8: rename it"
        )


def _grouped(files: list[_File], walk: _Walk) -> list[list[_File]]:
    samples: list[list[_File]] = []
    for file in files:
        if samples and samples[-1][0].key == file.key:
            samples[-1].append(file)
        else:
            samples.append([file])
    return [sample for sample in samples if not _has_duplicate(sample, walk)]


def _has_duplicate(sample: list[_File], walk: _Walk) -> bool:
    for file, other in pairwise(sample):
        if file.field == other.field:
            both = f"{quoted(walk.root / file.path)} and {quoted(walk.root / other.path)}"
            walk.bad(file.key, f"{both} are the same field {file.field!r} of one sample: rename one of them")
            return True
    return False


def _classes(folder: Path, samples: list[list[_File]], folders: list[str]) -> tuple[str, ...] | None:
    depths = {file.path.count("/") for sample in samples for file in sample}
    if depths != {1} or any(file.field == "cls" for sample in samples for file in sample):
        return None
    by_lower: dict[str, str] = {}
    for name in sorted(folders):
        other = by_lower.setdefault(name.lower(), name)
        if other != name:
            raise SourceError(
                f"the class folders {quoted(other)} and {quoted(name)} in {quoted(folder)} differ only by case: merge "
                "them, or rename one"
            )
    return tuple(sorted(folders))


def _above_classes(samples: list[list[_File]]) -> str | None:
    """A file beside what else would be class folders, such as a README."""
    paths = [file.path for sample in samples for file in sample]
    return next((path for path in paths if "/" not in path), None) if all(p.count("/") <= 1 for p in paths) else None


def _digest(samples: list[list[_File]]) -> str:
    digest = xxhash.xxh3_128()
    for sample in samples:
        for file in sample:
            digest.update(f"{file.path}\n{file.size} {file.mtime_ns}\n".encode())
    return digest.hexdigest()
