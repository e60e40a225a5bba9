"""The place that is packed into: what may be there already, and what a pack asks of it.

While a pack into a new place is under way there is `headrace.partial`. It keeps the place from opening as a dataset, is
the lock that keeps a second pack out, and the journal by which the same request goes on where it was cut off. Where a
dataset is appended to or replaced, all that is new waits in the folder `headrace.new` until it is whole; up to then the
old dataset stays as it is, and opens.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from headrace.dataset import PARTIAL_NAME
from headrace.errors import DamagedError, ManifestError, TargetError
from headrace.formats import FORMATS, INDEX_SUFFIX, MANIFEST_NAME, Manifest
from headrace.formats.keys import KEYS_NAME
from headrace.packing.journal import Milestone
from headrace.packing.options import Options
from headrace.packing.skipped import SkippedList
from headrace.storage import Place, exists, is_folder, list_folder, quoted, read_bytes

STAGING_NAME = "headrace.new"
LOCK_NAME = "headrace.lock"
SKIPPED_NAME = "headrace.skipped.jsonl"
START_OVER = "pass overwrite=True (--overwrite) to replace it, or choose another target"

_SUFFIXES = "|".join(re.escape(format_.suffix) for format_ in FORMATS.values() if format_.writer is not None)
_SHARD = re.compile(rf"shard-(\d{{6,}})({_SUFFIXES})({re.escape(INDEX_SUFFIX)})?")
_TEMPORARY = re.compile(r"(\.[0-9a-f]{8})?\.tmp")
_BESIDE = {SKIPPED_NAME, KEYS_NAME, *(name for format_ in FORMATS.values() for name in format_.beside)}
"""Files of a dataset that are neither shards nor its manifest."""
_SEVERAL = "+"  # between the requests of a dataset that was appended to


class Target(ABC):
    """A place that this process alone packs into, until `close`."""

    base: Manifest | None = None
    """The dataset that is appended to."""
    first_shard: int = 0
    """The number of the first shard that is new."""
    ready: Manifest | None = None
    """What the dataset will be, once all its shards are there."""

    @property
    @abstractmethod
    def shards(self) -> Place:
        """Where finished shards of this pack lie."""

    @abstractmethod
    def milestones(self) -> Iterator[Milestone]:
        """What was done when an earlier pack of the same request was cut off."""

    @abstractmethod
    def shard_path(self, name: str) -> Path:
        """Where on the local disk a shard of this name is written."""

    @abstractmethod
    def keep(self, milestone: Milestone) -> None:
        """Bring a finished shard and its index to their place, and note it. Called by one thread, in order."""

    @abstractmethod
    def make_ready(self, manifest: Manifest, skipped: SkippedList) -> None:
        """All shards are kept: note what the dataset will be."""

    @abstractmethod
    def mark(self) -> None:
        """Keep what is to be replaced from opening: it is about to go."""

    @abstractmethod
    def commit(self) -> None:
        """Put what is new in the place of what was there."""

    @abstractmethod
    def release(self) -> None:
        """Let the dataset open."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the lock. A target without a single finished shard is left as if nothing had been tried."""


def check_usable(place: Place, options: Options) -> None:
    """Raise TargetError if nothing can be packed there, whatever it is: so that nobody waits for a source in vain."""
    if place.is_local and exists(place) and not is_folder(place):
        raise TargetError(f"the target {place} is a file: give a folder that is empty or not there yet")
    names = {name for name in names_in(place) if not name.startswith(LOCK_NAME)}
    if names and not names & {MANIFEST_NAME, PARTIAL_NAME, STAGING_NAME}:
        shown = ", ".join(quoted(name) for name in sorted(names)[:3])
        raise TargetError(f"the target {place} holds other things ({shown}): give an empty folder")
    if MANIFEST_NAME in names and PARTIAL_NAME not in names and options.append:
        _check_appendable(place, read_manifest(place), options)


def check_holds_parts(place: Place) -> None:
    """Raise TargetError for a folder of a split's parts that is a dataset itself: one of them would hide the other."""
    if names_in(place) & {MANIFEST_NAME, PARTIAL_NAME}:
        raise TargetError(f"the target {place} is a dataset itself: give another folder for the parts of a split")


def find_finished(place: Place, request: str, options: Options) -> Manifest | None:
    """The manifest of a usable target that already holds just what is asked for; None if it is to be packed.

    Raises TargetError if it holds what must not be written over.
    """
    names = names_in(place)
    if PARTIAL_NAME in names or MANIFEST_NAME not in names:
        return None
    try:
        manifest = read_manifest(place)
    except (ManifestError, DamagedError):
        if options.overwrite:
            _check_all_ours(place, names)
            return None
        raise
    if options.overwrite:
        _check_replaceable(place, manifest, names)
        return None
    if answers(manifest, request, options):
        return manifest
    if not options.append:
        raise TargetError(f"{place} already holds a dataset of another source or options: {START_OVER}")
    return None


def read_manifest(place: Place) -> Manifest:
    """The manifest there. Raises ManifestError if it is malformed."""
    manifest = place / MANIFEST_NAME
    return Manifest.parse(read_bytes(manifest), str(manifest))


def find_base(place: Place) -> Manifest | None:
    """The manifest of the dataset that is appended to; None if nothing is finished there."""
    names = names_in(place)
    return None if PARTIAL_NAME in names or MANIFEST_NAME not in names else read_manifest(place)


def answers(manifest: Manifest, request: str, options: Options) -> bool:
    """Whether a dataset is what is asked for."""
    if options.append:
        return request in (manifest.request or "").split(_SEVERAL)
    # A dataset that was packed without its broken samples is not what on_error="raise" asks for.
    return manifest.request == request and not (manifest.skipped and options.on_error == "raise")


def joined_requests(base: Manifest, request: str) -> str:
    """The request of a dataset that was appended to."""
    return f"{base.request}{_SEVERAL}{request}"


def names_in(place: Place) -> set[str]:
    """Names of files and folders there; none if there is no such folder."""
    return {entry.name for entry in list_folder(place)}


def own_names(manifest: Manifest) -> list[str]:
    """Every file that a packed dataset has, its manifest aside."""
    shards = [name for file in manifest.shards.file for name in (file, file + INDEX_SUFFIX)]
    return [*shards, *sorted(_BESIDE)]


def may_be_removed(name: str) -> bool:
    """Whether a file in an unfinished target is what an earlier pack wrote and nobody will need. A manifest is not."""
    if not name.endswith(".tmp"):
        return bool(_SHARD.fullmatch(name)) or name in _BESIDE
    whole = _TEMPORARY.sub("", name)
    return bool(_SHARD.fullmatch(whole)) or whole in {*_BESIDE, MANIFEST_NAME, PARTIAL_NAME}


def next_shard(manifest: Manifest) -> int:
    """The first number that no shard of the dataset has."""
    numbers = [int(found[1]) for file in manifest.shards.file if (found := _SHARD.fullmatch(file))]
    return max(numbers, default=-1) + 1


def _check_appendable(place: Place, manifest: Manifest, options: Options) -> None:
    if manifest.request is None:
        raise TargetError(
            f"{place} holds shards that headrace did not write (it only indexed them), and appends nothing to them: "
            "pack them into a new dataset first"
        )
    if manifest.format != options.format.name:
        raise TargetError(
            f"{place} holds a dataset of the format {manifest.format}, and format={options.format.name!r} was asked "
            "for: shards of one dataset have one format"
        )


def _check_replaceable(place: Place, manifest: Manifest, names: set[str]) -> None:
    if manifest.request is None:
        raise TargetError(
            f"{place} holds shards that headrace did not write (it only indexed them), and replaces none of "
            "them: choose another target"
        )
    own = set(own_names(manifest))
    # What an append or a replacement left when it was cut off is numbered on.
    first_left = next_shard(manifest) if STAGING_NAME in names else None
    foreign = [name for name in names - own if (found := _SHARD.fullmatch(name)) and not _is_left(found, first_left)]
    _refuse_foreign(place, foreign, "is not in its manifest and")


def _is_left(found: re.Match[str], first_left: int | None) -> bool:
    return first_left is not None and int(found[1]) >= first_left


def _check_all_ours(place: Place, names: set[str]) -> None:
    """What lies beside an unreadable manifest must be what `pack` writes, or it may be somebody's only copy."""
    indexed = [name for name in names if name.endswith(INDEX_SUFFIX) and _SHARD.fullmatch(name)]
    if not indexed:
        raise TargetError(
            f"{place} holds a manifest that cannot be read, and no index of a shard that headrace packed: remove it "
            "yourself, or choose another target"
        )
    strange = [name for name in names if not may_be_removed(name) and name not in (MANIFEST_NAME, STAGING_NAME)]
    single = [name for name in names if _SHARD.fullmatch(name + INDEX_SUFFIX) and name + INDEX_SUFFIX not in names]
    _refuse_foreign(place, strange + single, "is not what a pack leaves beside a manifest that cannot be read, and")


def _refuse_foreign(place: Place, names: Sequence[str], why: str) -> None:
    if names:
        raise TargetError(
            f"{place} holds {quoted(min(names))}, which {why} would be written over: move it away, or choose another "
            "target"
        )
