"""Targets: a new place, filled from the start; or a dataset that is appended to or replaced.

What replaces a dataset, or is appended to it, is first made whole, and noted as such. To append is then to add shards
of new names and to replace the manifest, at one instant. To replace, on a local disk, is to remove the old files and to
move the new ones in: for a moment nothing is there that could be opened, `headrace.partial` says so, and the same pack,
run again, moves on where a crash stopped it. In a store nothing can be moved: there new shards have other names than
the old ones, and the old ones go when the manifest has been replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from headrace.dataset import PARTIAL_NAME
from headrace.errors import DamagedError, ManifestError, TargetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Manifest
from headrace.packing.beside import write_beside, write_whole
from headrace.packing.journal import Milestone, read_request
from headrace.packing.local_workplace import LocalWorkplace
from headrace.packing.lock import check_free
from headrace.packing.options import Options
from headrace.packing.remote_workplace import RemoteWorkplace
from headrace.packing.skipped import SkippedList, line_of
from headrace.packing.target import (
    SKIPPED_NAME,
    STAGING_NAME,
    START_OVER,
    Target,
    may_be_removed,
    names_in,
    next_shard,
    own_names,
    read_manifest,
)
from headrace.packing.workplace import Workplace
from headrace.storage import Place, exists, list_folder, read_bytes, remove

_SWAP = "swap "  # begins the request in the marker of a dataset that is about to be replaced


def open_target(place: Place, request: str, options: Options) -> Target:
    """The target to pack into.

    Raises TargetError if another pack is under way there, or was cut off there with another request.
    """
    names = names_in(place)
    marker = _marker(place) if PARTIAL_NAME in names else ""
    if marker == _SWAP + request:
        return _StagedTarget(place, request, options, None)
    if marker.startswith(_SWAP) and not options.overwrite:
        raise TargetError(f"{place} was left half-replaced by a pack of another source or options: {START_OVER}")
    if PARTIAL_NAME in names or MANIFEST_NAME not in names:
        return _NewTarget(place, request, options)
    try:
        manifest = read_manifest(place)
    except (ManifestError, DamagedError):  # `find_finished` has found that all of it may go
        return _NewTarget(place, request, options)
    return _StagedTarget(place, request, options, manifest)


def settle(place: Place) -> None:
    """Take the marker from a dataset that is whole, of which only that was left to be done."""
    names = names_in(place)
    if {PARTIAL_NAME, MANIFEST_NAME} <= names and not _marker(place).startswith(_SWAP):
        if place.is_local:
            check_free(place.path / PARTIAL_NAME)
        remove(place / PARTIAL_NAME)


def sweep(place: Place, request: str) -> None:
    """Remove what was left of a commit of this request whose last step was cut off."""
    staging = place / STAGING_NAME
    if not list_folder(staging):
        return
    if exists(staging / MANIFEST_NAME) and read_manifest(staging) != read_manifest(place):
        return  # something else waits there
    with closing(_staging_of(place)) as work:
        if (work.journal.request or request).startswith(request):
            work.clear(own_names(read_manifest(place)) if work.shards == place else ())
            work.remove_marker()


class _NewTarget(Target):
    """A place that holds no dataset yet: shards lie where they stay from the start, under a marker."""

    def __init__(self, place: Place, request: str, options: Options) -> None:
        self._place = place
        self._work = LocalWorkplace(place.path) if place.is_local else RemoteWorkplace(place, place)
        try:
            self._work.begin(request, options)
            remove(place / MANIFEST_NAME)  # one that cannot be read, if any
            if list_folder(place / STAGING_NAME):
                _remove_staging(place)
        except BaseException:
            self._work.close()
            raise

    @property
    def shards(self) -> Place:
        return self._work.shards

    def milestones(self) -> Iterator[Milestone]:
        return self._work.journal.milestones()

    def shard_path(self, name: str) -> Path:
        return self._work.shard_path(name)

    def keep(self, milestone: Milestone) -> None:
        self._work.keep(milestone)

    def make_ready(self, manifest: Manifest, skipped: SkippedList) -> None:
        if skipped.num_samples:
            write_whole(self._place / SKIPPED_NAME, b"".join(skipped.blocks()))
        self.ready = manifest

    def mark(self) -> None:
        return  # it is marked from the start

    def commit(self) -> None:
        assert self.ready is not None
        self._work.check()
        write_beside(self._place, self.ready)
        self._work.check()
        write_whole(self._place / MANIFEST_NAME, self.ready.to_bytes())

    def release(self) -> None:
        self._work.remove_marker()

    def close(self) -> None:
        self._work.close(is_wanted=self.ready is not None)


class _StagedTarget(Target):
    """A place that holds a dataset, and what will be appended to it or replace it."""

    def __init__(self, place: Place, request: str, options: Options, old: Manifest | None) -> None:
        """`old` is the manifest of what is there; None if it is being replaced already."""
        self._place, self._request, self._old = place, request, old
        self._is_append = options.append and old is not None
        self._work = _staging_of(place)
        try:
            self._begin(options)
        except BaseException:
            self._work.close()
            raise

    @property
    def shards(self) -> Place:
        return self._work.shards

    def milestones(self) -> Iterator[Milestone]:
        return self._work.journal.milestones()

    def shard_path(self, name: str) -> Path:
        return self._work.shard_path(name)

    def keep(self, milestone: Milestone) -> None:
        self._work.keep(milestone)

    def make_ready(self, manifest: Manifest, skipped: SkippedList) -> None:
        before = self._place / SKIPPED_NAME
        if manifest.skipped:
            lines = read_bytes(before) if self._is_append and exists(before) else b""
            write_whole(self._work.notes / SKIPPED_NAME, lines + b"".join(skipped.blocks()))
        write_whole(self._staged, manifest.to_bytes())
        self.ready = manifest

    def mark(self) -> None:
        if not self._is_append:
            self._work.check()
            write_whole(self._place / PARTIAL_NAME, line_of({"request": _SWAP + self._request}))

    def commit(self) -> None:
        assert self.ready is not None
        if not exists(self._staged):
            return  # done before a crash
        self._work.check()
        current = read_manifest(self._place) if exists(self._place / MANIFEST_NAME) else None
        if current != self.ready or self._has_shards_to_move:
            if current is not None and self._place.is_local and not self._is_append:
                self._remove_old(current)
            self._work.move_to(self._place)
            write_beside(self._place, self.ready)
            self._work.check()
            write_whole(self._place / MANIFEST_NAME, self.ready.to_bytes())
        remove(self._staged)

    def release(self) -> None:
        if not self._is_append:
            self._remove_unnamed()
            remove(self._place / PARTIAL_NAME)
        self._work.remove_marker()

    def close(self) -> None:
        self._work.close(is_wanted=self.ready is not None)

    @property
    def _staged(self) -> Place:
        """The manifest that waits to replace the old one: while it is there, all that it names is there too."""
        return self._work.notes / MANIFEST_NAME

    @property
    def _has_shards_to_move(self) -> bool:
        """Whether the shards wait too, as they do when a dataset is replaced by an equal one: it may be damaged."""
        return self._place.is_local and any(name.endswith(INDEX_SUFFIX) for name in names_in(self._work.shards))

    def _begin(self, options: Options) -> None:
        if self._old is None:
            self.ready = read_manifest(self._work.notes if exists(self._staged) else self._place)
            return
        what = "appended to" if self._is_append else "instead of"
        request = f"{self._request} {what} {self._old.fingerprint} revision {self._old.revision}"
        self.base = self._old if self._is_append else None
        # What is moved may have the old names; what is sent, and may not be taken for the old shards, may not.
        if self._is_append or not self._place.is_local:
            self.first_shard = next_shard(self._old)
        if exists(self._staged) and self._work.journal.request == request and options.resume:
            self.ready = read_manifest(self._work.notes)
            return
        keep = () if self._place.is_local else (*own_names(self._old), MANIFEST_NAME)
        self._work.begin(request, options, keep)

    def _remove_old(self, old: Manifest) -> None:
        """The manifest goes last: without it nothing is left to be removed."""
        for name in (*own_names(old), MANIFEST_NAME):
            remove(self._place / name)

    def _remove_unnamed(self) -> None:
        """In a store: the shards of the dataset that was there before."""
        assert self.ready is not None
        keep = {*own_names(self.ready), MANIFEST_NAME}
        for name in names_in(self._place) - keep:
            if may_be_removed(name):
                remove(self._place / name)


def _staging_of(place: Place) -> Workplace:
    """Where what will be appended or replace something is made whole."""
    notes = place / STAGING_NAME
    return LocalWorkplace(notes.path, is_temporary=True) if place.is_local else RemoteWorkplace(place, notes)


def _remove_staging(place: Place) -> None:
    """Remove what another pack had made to replace what was here."""
    if place.is_local:
        with closing(_staging_of(place)) as work:
            work.clear()
            work.remove_marker()
    else:
        for entry in list_folder(place / STAGING_NAME):
            remove(place / STAGING_NAME / entry.name)


def _marker(place: Place) -> str:
    """The request in a place's marker; empty if it is torn."""
    try:
        return read_request(read_bytes(place / PARTIAL_NAME).partition(b"\n")[0] + b"\n") or ""
    except DamagedError:  # it is gone by now
        return ""
