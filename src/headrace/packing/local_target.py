"""Targets on a local disk: a new folder, filled in place; or a dataset that is appended to or replaced.

What replaces a dataset, or is appended to it, is first made whole in a folder inside of it, `headrace.new`, and then
moved. To append is to move shards of new names and then to replace the manifest, at one instant. To replace, the old
files go first, so for a moment nothing is there that could be opened: `headrace.partial` says so meanwhile, and the
same pack, run again, moves on where a crash stopped it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from headrace.dataset import PARTIAL_NAME
from headrace.errors import ManifestError, TargetError
from headrace.formats import MANIFEST_NAME, Manifest
from headrace.packing.beside import write_beside
from headrace.packing.journal import Milestone, read_request
from headrace.packing.lock import check_free
from headrace.packing.options import Options
from headrace.packing.skipped import SkippedList, line_of
from headrace.packing.target import (
    SKIPPED_NAME,
    STAGING_NAME,
    START_OVER,
    Target,
    next_shard,
    own_names,
    read_manifest,
)
from headrace.packing.workplace import Workplace
from headrace.storage import (
    locate,
    quoted,
    read_bytes,
    remove_file,
    replace_file,
    storage_refusals,
    sync_folder,
    write_file,
)

_SWAP = "swap "  # begins the request in the marker of a dataset that is about to be replaced


def open_local_target(folder: Path, request: str, options: Options) -> Target:
    """The target to pack into.

    Raises TargetError if another pack is under way there, or was cut off there with another request.
    """
    marker = _marker(folder)
    if marker == _SWAP + request:
        return _StagedTarget(folder, request, options, None)
    if marker.startswith(_SWAP) and not options.overwrite:
        raise TargetError(
            f"{quoted(folder)} was left half-replaced by a pack of another source or options: {START_OVER}"
        )
    if (folder / PARTIAL_NAME).exists() or not (folder / MANIFEST_NAME).exists():
        return _NewTarget(folder, request, options)
    try:
        manifest = read_manifest(locate(folder))
    except ManifestError:  # `find_finished` has found that all of it may go
        return _NewTarget(folder, request, options)
    return _StagedTarget(folder, request, options, manifest)


def settle(folder: Path) -> None:
    """Take the marker from a dataset that is whole, of which only that was left to be done."""
    with storage_refusals("read", folder):
        is_whole = (folder / PARTIAL_NAME).exists() and (folder / MANIFEST_NAME).exists()
    if is_whole and not _marker(folder).startswith(_SWAP):
        check_free(folder / PARTIAL_NAME)
        remove_file(folder / PARTIAL_NAME)


def sweep(folder: Path, request: str) -> None:
    """Remove what was left of a commit whose last step was cut off."""
    staging = folder / STAGING_NAME
    if not staging.is_dir() or (staging / MANIFEST_NAME).exists():
        return
    with closing(Workplace(staging)) as work:
        if (work.journal.request or request).startswith(request):
            _remove_staging(work)


class _NewTarget(Target):
    """A folder that holds no dataset yet: shards lie at their place from the start."""

    def __init__(self, folder: Path, request: str, options: Options) -> None:
        self._folder = folder
        self._work = Workplace(folder)
        try:
            self._work.begin(request, options)
            if (folder / STAGING_NAME).is_dir():
                with closing(Workplace(folder / STAGING_NAME)) as work:
                    _remove_staging(work)
        except BaseException:
            self._work.close()
            raise

    def milestones(self) -> Iterator[Milestone]:
        return self._work.journal.milestones()

    def shard_path(self, name: str) -> Path:
        return self._folder / name

    def keep(self, milestone: Milestone) -> None:
        self._work.keep(milestone)

    def make_ready(self, manifest: Manifest, skipped: SkippedList) -> None:
        if skipped.num_samples:
            write_file(self._folder / SKIPPED_NAME, b"".join(skipped.blocks()))
        self.ready = manifest

    def mark(self) -> None:
        return  # it is marked from the start

    def commit(self) -> None:
        assert self.ready is not None
        write_beside(locate(self._folder), self.ready)
        self.ready.write(self._folder)

    def release(self) -> None:
        self._work.remove_marker()

    def close(self) -> None:
        self._work.close()


class _StagedTarget(Target):
    """A folder that holds a dataset, and what will be appended to it or replace it."""

    def __init__(self, folder: Path, request: str, options: Options, old: Manifest | None) -> None:
        """`old` is the manifest of what is there; None if it is being replaced already."""
        self._folder, self._request, self._old = folder, request, old
        self._is_append = options.append and old is not None
        if old is not None and options.append:
            self.base, self.first_shard = old, next_shard(old)
        self._work = Workplace(folder / STAGING_NAME)
        try:
            self._begin(options)
        except BaseException:
            self._work.close()
            raise

    def milestones(self) -> Iterator[Milestone]:
        return self._work.journal.milestones()

    def shard_path(self, name: str) -> Path:
        return self._work.folder / name

    def keep(self, milestone: Milestone) -> None:
        self._work.keep(milestone)

    def make_ready(self, manifest: Manifest, skipped: SkippedList) -> None:
        if manifest.skipped:
            before = self._folder / SKIPPED_NAME if self._is_append else None
            lines = read_bytes(before) if before is not None and before.exists() else b""
            write_file(self._work.folder / SKIPPED_NAME, lines + b"".join(skipped.blocks()))
        manifest.write(self._work.folder)
        self.ready = manifest

    def mark(self) -> None:
        if not self._is_append:
            write_file(self._folder / PARTIAL_NAME, line_of({"request": _SWAP + self._request}))

    def commit(self) -> None:
        assert self.ready is not None
        staged = self._work.folder / MANIFEST_NAME
        if not staged.exists():
            return  # done before a crash
        if not self._is_append:
            self._remove_old()
        for path in sorted(self._work.folder.iterdir()):
            if path.name not in (MANIFEST_NAME, PARTIAL_NAME):
                replace_file(path, self._folder / path.name)
        write_beside(locate(self._folder), self.ready)
        replace_file(staged, self._folder / MANIFEST_NAME)

    def release(self) -> None:
        if not self._is_append:
            remove_file(self._folder / PARTIAL_NAME)
        _remove_staging(self._work)

    def close(self) -> None:
        self._work.close(is_wanted=self.ready is not None)

    def _begin(self, options: Options) -> None:
        staged = self._work.folder / MANIFEST_NAME
        if self._old is None:
            place = self._work.folder if staged.exists() else self._folder
            self.ready = read_manifest(locate(place))
            return
        what = "appended to" if self._is_append else "instead of"
        request = f"{self._request} {what} {self._old.fingerprint} revision {self._old.revision}"
        if staged.exists() and self._work.journal.request == request and options.resume:
            self.ready = read_manifest(locate(self._work.folder))
            return
        self._work.begin(request, options)

    def _remove_old(self) -> None:
        """The manifest goes last: without it nothing is left to be removed."""
        if (self._folder / MANIFEST_NAME).exists():
            for name in own_names(read_manifest(locate(self._folder))):
                remove_file(self._folder / name)
            remove_file(self._folder / MANIFEST_NAME)
            sync_folder(self._folder)


def _remove_staging(work: Workplace) -> None:
    """Remove the folder in which something waited to be moved."""
    work.clear()
    work.remove_marker()
    with storage_refusals("remove", work.folder):
        work.folder.rmdir()


def _marker(folder: Path) -> str:
    """The request in a folder's marker; empty if there is none."""
    with storage_refusals("read", folder / PARTIAL_NAME):
        try:
            with open(folder / PARTIAL_NAME, "rb") as file:
                return read_request(file.readline()) or ""
        except (FileNotFoundError, NotADirectoryError):
            return ""
