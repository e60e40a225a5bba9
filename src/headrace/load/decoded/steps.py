"""The steps of a stream in two: those that make the same of a sample every time, which are done once, and the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from headrace.load.decoded.encoding import decode, encode
from headrace.load.decoded.folder import FolderStore
from headrace.load.decoded.options import StorePlan
from headrace.load.decoded.ram import RamStore
from headrace.load.decoded.store import Store, UnsoundError
from headrace.storage.cache.options import RAM
from headrace.transform import Op, Sample, apply, may_write_arrays


class Origin(Enum):
    """Where a decoded sample came from."""

    KEPT = "kept"
    """The cache had it."""
    MADE = "made"
    UNSOUND = "unsound"
    """The cache had it damaged."""


@dataclass(slots=True)
class Came:
    """How one decoded sample came about, for those who count."""

    origin: Origin
    num_bytes: int = 0
    """Of its arrays and byte strings; of a kept one, what was read."""
    decode_sec: float = 0.0
    """Processor time of the first steps, or of taking it from the cache."""
    rest_sec: float = 0.0
    """Processor time of the other steps."""


class MissingError(Exception):
    """A sample that should be in the cache is not, and its stored bytes are not at hand."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.came = Came(origin) if origin is Origin.UNSOUND else None


class CachedSteps:
    """All steps of a stream, with a cache behind the first of them. Thread-safe; pickles as its description."""

    def __init__(self, plan: StorePlan, ops: Sequence[Op], *, keeps_samples: bool) -> None:
        """`keeps_samples` says that a function of the user's gets the finished samples."""
        self.plan = plan
        self._first, self.rest = tuple(ops[: plan.num_steps]), tuple(ops[plan.num_steps :])
        self._copies = keeps_samples or may_write_arrays(self.rest)
        """A function of the user's may write into arrays, which others will be given too."""
        self._store: Store | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_store": None, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def store(self) -> Store:
        """The store, opened when it is first needed. Raises StorageError."""
        with self._lock:
            if self._store is None:
                self._store = _open(self.plan)
            return self._store

    def decoded(self, number: int | None, raw: Sample | None) -> tuple[Sample, Came]:
        """The sample after the first steps, out of the cache or made and put there.

        `number` is the sample's in the store; None: the cache is not used. `raw` is None where only the cache can have
        it: then MissingError may be raised. Else TransformError, if a step fails.
        """
        began = time.thread_time()
        origin = Origin.MADE
        if number is not None:
            try:
                data = self.store.get(number)
                if data is not None:
                    sample = decode(data, copies=self._copies)
                    return sample, Came(Origin.KEPT, len(data), time.thread_time() - began)
            except UnsoundError:
                origin = Origin.UNSOUND
        if raw is None:
            raise MissingError(origin)
        made = apply(self._first, raw, _no_randomness)
        assert made is not None  # there is no filter among them
        if number is not None and (blob := encode(made)) is not None:
            self.store.put(number, blob)
        return made, Came(origin, sum(map(_num_bytes, made.values())), time.thread_time() - began)


def _open(plan: StorePlan) -> Store:
    options = plan.options
    if options.place == RAM:
        return RamStore(plan.name, plan.num_samples, options.max_bytes, is_modest=options.is_auto)
    return FolderStore(options.place, plan.name, plan.num_samples, options.max_bytes)


def _no_randomness() -> np.random.Generator:
    raise AssertionError("steps that are done once take no rng")


def _num_bytes(value: object) -> int:
    if isinstance(value, np.ndarray | memoryview):
        return value.nbytes
    return len(value) if isinstance(value, bytes | str) else 8
