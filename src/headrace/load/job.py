"""What a loader process is asked to do, and what it sends back. Neither needs torch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.dataset import Dataset, Joined
from headrace.errors import HeadraceError, LoaderError, StorageError
from headrace.load.decoded import DecodedReading, StorePlan
from headrace.load.healing import Restart
from headrace.load.keys import Keys
from headrace.load.marks import Lane, Where
from headrace.load.thread_tuner import ThreadLimits
from headrace.order import Batches, MixedOrder, Order
from headrace.telemetry import Reading
from headrace.transform import Op, Sample

OnError: TypeAlias = Literal["raise", "skip"]
Collate: TypeAlias = Callable[[list[Sample]], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """The description that a loader process runs."""

    dataset: Dataset | Joined
    order: Order | MixedOrder
    ops: tuple[Op, ...]
    batches: Batches
    threads: int
    """That transform; where their number is tuned, one a processor."""
    processes: int
    num_slots: int
    memory_bytes: int
    collate: Collate | None
    on_error: OnError
    max_restarts: int
    hang_timeout_sec: float | None
    tuned: ThreadLimits | None = None
    """Within what the number of threads is tuned; None: it stays as it is."""
    decoded: StorePlan | None = None
    """What of the decoded samples is to be kept; None: nothing."""
    suspects: frozenset[Where] = frozenset()
    """Samples that a process before this one was at when it ended: they are transformed one at a time."""
    condemned: Mapping[Where, str] = field(default_factory=dict)
    """Samples that are not transformed, since processes ended over them, with what became of those."""


@dataclass(slots=True)
class Array:
    """An array in a slot."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(slots=True)
class Blob:
    """A byte string in a slot."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Blobs:
    """A list of byte strings in a slot."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


Content: TypeAlias = Array | Blobs | list[Array | Blob | None]
"""A field of a batch: a tensor, a list of byte strings, or a list of what is there; None: a plain object."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that was left out under on_error="skip"."""

    key: str
    reason: str


@dataclass(slots=True)
class Delivery:
    """One batch, or the error in its place."""

    generation: int
    epoch: int = -1
    step: int = -1
    slot: int = -1
    slot_bytes: int = 0
    used_bytes: int = 0
    keys: Keys = field(default_factory=list)
    fields: dict[str, Content] = field(default_factory=dict)
    plain: bytes = b""
    """Pickled field -> what is not in the slot: a list with the plain objects, or anything that `collate` returned."""
    real: NDArray[np.bool_] | None = None
    """Which rows are no repeats, in a step in which a rank has some; else None."""
    skipped: list[Skipped] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    """Worker processes that were replaced over it."""
    error: HeadraceError | None = None
    stages: dict[str, Reading] | None = None
    """What the meters showed, now and then."""
    decoded: DecodedReading | None = None
    """What the cache of decoded samples gave, with the stages; None where there is none."""
    num_threads: int = 0
    """Threads that transform."""
    decisions: list[str] = field(default_factory=list)
    """What was changed about them, in words."""
    num_readers: int = 0
    """Threads whose sum "read" and "verify" of it are."""


SPARE_SLOTS = 2
"""Batches in slots that the trainer may hold at a time: the one in use, and the last while it is replaced."""

STAGES = ("read", "verify", "transform", "collate")
"""The feed's stages in the order of flow, inside the loader process."""

MAX_READERS = 4
REMOTE_READERS = 16
MOST_REMOTE_READERS = 128
"""Requests in flight to a store, at first and at most (`pace.py`): each waits long for its first byte."""


def num_readers(threads: int, is_remote: bool) -> int:
    """At most so many threads read for those that transform: one keeps two in bytes, and each fights for the lock."""
    return MOST_REMOTE_READERS if is_remote else max(1, min(MAX_READERS, threads // 2))


@dataclass(frozen=True, slots=True)
class Lanes:
    """Whose lane is which, on the page of a loader process's marks."""

    main: Lane
    plan: Lane
    collate: Lane
    read: Sequence[Lane]
    transform: Sequence[Lane]

    @classmethod
    def of(cls, job: Job, lanes: Sequence[Lane]) -> Lanes:
        """Deal them out. A page has at least `num_lanes(job)`."""
        readers = 3 + num_readers(job.threads, job.dataset.is_remote)
        main, plan, collate = lanes[:3]
        return cls(main, plan, collate, lanes[3:readers], lanes[readers : num_lanes(job)])


def num_lanes(job: Job) -> int:
    """How many threads of a loader process mark what they are at."""
    return 3 + num_readers(job.threads, job.dataset.is_remote) + most_transforming(job)


def most_transforming(job: Job) -> int:
    """How many threads transform at most; those that each look after a process, where there are several."""
    if job.processes > 1:
        return job.processes
    return job.tuned.most if job.tuned else job.threads


class NoMemoryError(LoaderError):
    """The loader process cannot have the memory that its own work needs. A new one may: functions leak."""


def unexpected(err: BaseException) -> HeadraceError:
    """What the trainer is told of an error that nothing here raises on purpose."""
    text = " ".join(str(err).split())
    if isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno == errno.ENOMEM):
        return NoMemoryError(f"out of memory: {type(err).__name__}: {text}")
    if isinstance(err, OSError):
        return StorageError(f"the loader process cannot get what it needs: {text}")
    return LoaderError(f"the loader process failed: {type(err).__name__}: {text}")
