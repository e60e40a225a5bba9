"""The folder that is packed into: who may write there, and what is left when a pack ends early.

While a pack is under way the folder holds `headrace.partial`. It keeps the folder from opening as a dataset; a lock on
it, which the operating system drops with the process however that ends, keeps a second pack out; and it is the
journal by which the same request goes on where it was cut off. A manifest beside it means that the dataset is whole:
the manifest is written last and, when a dataset is replaced, removed first.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

import orjson
import xxhash

from headrace.dataset import PARTIAL_NAME
from headrace.errors import StorageError, TargetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Manifest, Shard
from headrace.packing.journal import Done, Journal
from headrace.packing.options import Options
from headrace.storage import LocalFile, make_folder, quoted, remove_file, storage_refusals, sync_folder, write_file

SKIPPED_NAME = "headrace.skipped.jsonl"

_SHARD = re.compile(r"shard-\d{6,}\.(tar|bin)(\.idx)?(\.tmp)?")
_BESIDE = (SKIPPED_NAME, SKIPPED_NAME + ".tmp", MANIFEST_NAME + ".tmp")
_START_OVER = "pass overwrite=True (--overwrite) to replace it, or choose another target"


def check_usable(folder: Path) -> None:
    """Raise TargetError if nothing can be packed there, whatever it is: so that nobody waits for a source in vain."""
    with storage_refusals("write into", folder):
        is_file = folder.exists() and not folder.is_dir()
    if is_file:
        raise TargetError(f"the target {quoted(folder)} is a file: give a folder that is empty or not there yet")
    names = _names(folder)
    if PARTIAL_NAME in names:
        _check_free(folder / PARTIAL_NAME)
    elif names and MANIFEST_NAME not in names:
        shown = ", ".join(quoted(name) for name in sorted(names)[:3])
        raise TargetError(f"the target {quoted(folder)} holds other things ({shown}): give an empty folder")


def find_finished(folder: Path, request: str, options: Options) -> Manifest | None:
    """The manifest of a usable target that already holds just what is asked for; None if it is to be packed.

    Raises TargetError if the folder holds what must not be written over.
    """
    names = _names(folder)
    if PARTIAL_NAME in names or MANIFEST_NAME not in names:
        return None
    manifest = Manifest.read(folder)
    if not options.overwrite:
        if not _answers(manifest, request, options):
            raise TargetError(f"{quoted(folder)} already holds a dataset of another source or options: {_START_OVER}")
        return manifest
    _check_replaceable(folder, manifest, names)
    return None


class Target:
    """A folder that this process alone packs into, until `close`."""

    def __init__(self, folder: Path, request: str, options: Options) -> None:
        """Lock the folder, and find how far an earlier pack of the same request came.

        Raises TargetError if another pack is under way there, or was cut off there with another request.
        """
        self.folder = folder
        self.finished: Manifest | None = None
        """Set if the dataset turns out to be there already."""
        self._made = _missing_folders(folder)
        make_folder(folder)
        self._fd = _lock(folder / PARTIAL_NAME)
        try:
            self._journal = Journal(self._fd, folder / PARTIAL_NAME)
            self._begin(request, options)
        except BaseException:
            try:
                if self._made and not (folder / MANIFEST_NAME).exists():
                    self._leave_nothing()
            finally:
                self._unlock()
            raise

    @property
    def done(self) -> Done:
        """What finished shards hold."""
        return self._journal.done

    def record(self, done: Done) -> None:
        """Note a finished shard, the last one of `done`."""
        self._journal.add(done)

    def finish(self, manifest: Manifest, done: Done) -> None:
        """Write the manifest and take the marker away: from now on this is a dataset."""
        if done.skipped:
            lines = b"".join(orjson.dumps(skipped.to_json()) + b"\n" for skipped in done.skipped)
            write_file(self.folder / SKIPPED_NAME, lines)
        manifest.write(self.folder)
        self.finished = manifest
        self._remove_marker()

    def close(self) -> None:
        """Unlock. A target that is left without a single finished shard is left as if nothing had been tried."""
        try:
            if self._fd >= 0 and self.finished is None and not self.done.shards:
                self._leave_nothing()
        finally:
            self._unlock()

    def _leave_nothing(self) -> None:
        with suppress(OSError, StorageError):  # a disk that refuses this too has said why already
            self._clear(keep=())
            self._remove_marker()
            for folder in self._made:
                folder.rmdir()

    def _begin(self, request: str, options: Options) -> None:
        if (self.folder / MANIFEST_NAME).exists():
            manifest = Manifest.read(self.folder)
            if _answers(manifest, request, options) and (not options.overwrite or self._journal.request == request):
                self.finished = manifest
                self._remove_marker()
                return
            if not options.overwrite:
                self._remove_marker()
                raise TargetError(
                    f"{quoted(self.folder)} already holds a dataset of another source or options: {_START_OVER}"
                )
        elif self._may_continue(request, options):
            self._journal.go_back(self._has)
            self._clear(keep={name for shard in self.done.shards for name in _files(shard)})
            return
        self._journal.start(request)
        sync_folder(self.folder)
        remove_file(self.folder / MANIFEST_NAME)
        self._clear(keep=())

    def _may_continue(self, request: str, options: Options) -> bool:
        same = self._journal.request == request and not (self.done.skipped and options.on_error == "raise")
        if same and options.resume:
            return True
        if self.done.shards and options.resume and not options.overwrite:
            raise TargetError(
                f"{quoted(self.folder)} was left half-done by a pack of another source or options: {_START_OVER}"
            )
        return False

    def _has(self, shard: Shard) -> bool:
        path, index_path = (self.folder / name for name in _files(shard))
        if not path.is_file() or path.stat().st_size != shard.bytes or not index_path.is_file():
            return False
        with LocalFile(index_path) as file:
            return xxhash.xxh3_128_hexdigest(file.read(0, file.size)) == shard.index_xxh3_128

    def _clear(self, keep: Container[str]) -> None:
        """Remove what an earlier pack wrote and what nobody will need."""
        for name in _names(self.folder):
            if name not in keep and (name in _BESIDE or _SHARD.fullmatch(name)):
                remove_file(self.folder / name)

    def _remove_marker(self) -> None:
        remove_file(self.folder / PARTIAL_NAME)
        with storage_refusals("write", self.folder):
            sync_folder(self.folder)

    def _unlock(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _names(folder: Path) -> set[str]:
    with storage_refusals("read", folder):
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _answers(manifest: Manifest, request: str, options: Options) -> bool:
    # A dataset that was packed without its broken samples is not what on_error="raise" asks for.
    return manifest.request == request and not (manifest.skipped and options.on_error == "raise")


def _check_replaceable(folder: Path, manifest: Manifest, names: set[str]) -> None:
    if manifest.request is None:
        raise TargetError(
            f"{quoted(folder)} holds shards that headrace did not write (it only indexed them), and replaces none of "
            "them: choose another target"
        )
    own = {name for file in manifest.shards.file for name in (file, file + INDEX_SUFFIX)}
    foreign = sorted(name for name in names - own if _SHARD.fullmatch(name))
    if foreign:
        raise TargetError(
            f"{quoted(folder)} holds {quoted(foreign[0])}, which is not in its manifest and would be written over: "
            "move it away, or choose another target"
        )


def _files(shard: Shard) -> tuple[str, str]:
    return shard.file, shard.file + INDEX_SUFFIX


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that have to be made for this one to be there, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing


def _lock(path: Path) -> int:
    """An open, locked file. The pack that held the lock may just have removed it: then another one is made."""
    with storage_refusals("write", path):
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                _take_lock(fd, path)
                if _is_at(fd, path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _check_free(path: Path) -> None:
    with storage_refusals("write", path), suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _take_lock(fd, path)
        finally:
            os.close(fd)


def _take_lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        raise TargetError(
            f"another pack is writing into {quoted(path.parent)}: wait for it to end, or choose another target"
        ) from err


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
