"""The record of a training loop of one's own, with any loader, for `headrace report`.

A step is what lies between two ends of `step()`: in it, the time in the loader's own `next` is waiting, the time inside
the block is computing, unless `timed` gives a part of it another name, and what is left is the rest. So the parts add
up to the wall time. No device is waited for: on a GPU, whose work goes on behind the loop, the parts are right where
the loop waits for it at every step, as by reading the loss.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from headrace.alarms import Alarms, Watcher
from headrace.errors import OptionError, StorageError
from headrace.rank import process_rank, resolve_rank
from headrace.sinks import Sink, Sinks, sinks_of
from headrace.telemetry import FILE_NAME, EventWriter
from headrace.version import __version__

B = TypeVar("B")

_FEED_EVERY_SEC = 5.0
_METERS = ("stages", "threads", "dropped", "padded", "skipped", "restarts")
_KINDS = ("copy", "communication", "checkpoint", "rest")


class Monitor:
    """Writes a run's events. The first process writes; in others the same calls do nothing but take the time.

    For one thread. A loop that goes on from a checkpoint says so by `first_step`; on the same folder, steps that are
    done again are counted once, and as lost work.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        first_step: int = 0,
        total_steps: int | None = None,
        config: Any = None,
        alarms: Alarms | None = None,
        sinks: Sequence[Sink | str] = (),
    ) -> None:
        """`run_dir` is made if it is not there.

        Args:
            run_dir: where `events.jsonl` goes.
            first_step: how many steps were done before, 0 or more.
            total_steps: how many the run is to have in all; None: not known.
            config: what describes the run, a JSON value by name; shown in the report.
            alarms: what rings while the run is under way, and whom it tells; None: nothing.
            sinks: where the events go, too, as for the Trainer.
        """
        if first_step < 0:
            raise OptionError(f"first_step must be at least 0: got {first_step}")
        self.steps_done = first_step
        """Completed steps of the run."""
        self._about = {"total_steps": total_steps, "config": dict(config or {})}
        self._run_dir = Path(run_dir)
        self._record: EventWriter | None = None
        self._alarms = alarms
        self._watcher: Watcher | None = None
        self._sinks = sinks_of(sinks)
        self._feeding: Sinks | None = None
        self.world_size = 0
        """How many processes have a share of the data; 0: nothing was asked for yet."""
        self._loader: Any = None
        self._noted: dict[str, Any] = {}
        self._samples = 0
        self._said: int | None = None
        self._closed = False
        self._sec = dict.fromkeys(("wait", *_KINDS), 0.0)
        self._ended: float | None = None
        self._fed = 0.0

    def watch(self, loader: Iterable[B]) -> Watched[B]:
        """The loader's batches, each `next` of it timed. With a headrace.Loader its meters are recorded, too.

        For the training loader: batches of another one would be counted as the next step's.
        """
        self._loader = loader
        return Watched(self, loader)

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step: everything between its batches and the next step's. A step that fails is not recorded."""
        self._begin()
        before = sum(self._sec.values())
        began = time.perf_counter()
        since = began if self._ended is None else self._ended
        try:
            yield
        except BaseException:
            self._forget()
            raise
        now = time.perf_counter()
        self._end(since, now, now - began - (sum(self._sec.values()) - before))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count what the block takes as `kind`: "copy", "communication", "checkpoint" or "rest"."""
        if kind not in _KINDS:
            raise OptionError(f"kind must be one of {', '.join(_KINDS)}: got {kind!r}")
        began = time.perf_counter()
        try:
            yield
        finally:
            self._sec[kind] += time.perf_counter() - began

    def note(
        self, *, loss: float | None = None, lr: float | None = None, samples: int | None = None, **metrics: float
    ) -> None:
        """Say something of the step under way, for its line in the record: numbers on the host, of this rank.

        `samples`: how many it has; None: what its batches seem to have (`num_samples`).
        """
        self._noted = {"loss": loss, "lr": lr, "metrics": metrics}
        self._said = self._said if samples is None else samples

    def evaluated(self, loss: float | None = None, *, samples: int = 0, sec: float = 0.0, **metrics: float) -> None:
        """Record an evaluation after the steps that are done. What it took belongs to no step."""
        self._begin()
        if self._record is not None:
            found = {"loss": loss, "metrics": metrics, "samples": samples, "sec": sec}
            self._record.write("evaluate", step=self.steps_done, epoch=self._epoch(), **found)
        self.pause()

    def write(self, event: str, **fields: Any) -> None:
        """Record an event of another kind, one that the report knows (`guard`, say); rank 0 writes."""
        self._begin()
        if self._record is not None:
            self._record.write(event, **fields)

    def pause(self) -> None:
        """Count what comes until the next batch or step as no part of any."""
        self._ended = None
        self._feed()

    def close(self) -> None:
        """The run is complete: record its end. Nothing can be recorded afterwards."""
        if self._record is not None:
            self.pause()
            self._record.write("end", step=self.steps_done, epochs=None, samples=None, sec=None, loss=None, metrics={})
        self._shut()

    def _shut(self, *, failed: bool = False) -> None:
        record, self._record, self._closed = self._record, None, True
        watcher, self._watcher = self._watcher, None
        try:
            if watcher is not None:
                watcher.close()
            if self._feeding is not None:
                self._feeding.close(failed=failed)
        finally:
            if record is not None:
                record.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the end, unless the block failed."""
        if error is None:
            self.close()
        else:
            self._shut(failed=True)

    def _waited(self, sec: float, batch: Any) -> None:
        self._sec["wait"] += sec
        self._samples += num_samples(batch)
        if self._ended is None:
            self._ended = time.perf_counter() - sec

    def _begin(self) -> None:
        """The first batch, or step, begins an attempt at the run."""
        if self._closed:
            raise OptionError("a Monitor that was closed records nothing more: make another one, with first_step")
        if self.world_size:
            return
        rank = process_rank()
        self.world_size = resolve_rank().world_size
        if rank.rank != 0:
            return
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StorageError(f"the run's folder {self._run_dir} cannot be made: {err.strerror}") from err
        self._record = EventWriter(self._run_dir / FILE_NAME)
        if self._alarms is not None:
            self._watcher = Watcher(self._alarms, self._record)
        self._fed = time.monotonic()
        if self._sinks:
            self._feeding = Sinks(self._sinks, self._run_dir, self._record.write)
        self._record.write(
            "start",
            attempt=0,
            step=self.steps_done,
            resumed_from=None,
            world_size=rank.world_size,
            pids=[os.getpid()],
            versions={"headrace": __version__, "python": platform.python_version()},
            machine={"host": platform.node(), "cpus": len(os.sched_getaffinity(0)), "platform": platform.platform()},
            global_batch_size=getattr(self._loader, "global_batch_size", None),
            **self._about,
        )

    def _end(self, since: float, now: float, compute_sec: float) -> None:
        self.steps_done += 1
        whole = now - since
        sec, self._sec = self._sec, dict.fromkeys(self._sec, 0.0)
        sec["rest"] += max(0.0, whole - compute_sec - sum(sec.values()))
        samples = self._samples if self._said is None else self._said
        self._samples, self._said = 0, None
        noted, self._noted = self._noted or {"loss": None, "lr": None, "metrics": {}}, {}
        self._ended = now
        if self._record is None:
            return
        parts = {f"{kind}_sec": value for kind, value in sec.items()}
        self._record.write(  # at once: the loop may have saved a checkpoint within the step
            "step",
            step=self.steps_done,
            epoch=self._epoch(),
            samples=samples * self.world_size,
            **noted,
            sec=sum(sec.values()) + compute_sec,
            compute_sec=compute_sec,
            **parts,
        )
        if time.monotonic() - self._fed >= _FEED_EVERY_SEC:
            self._feed()

    def _forget(self) -> None:
        """What a step that failed has counted is no part of the next one."""
        self._sec = dict.fromkeys(self._sec, 0.0)
        self._samples, self._said, self._noted, self._ended = 0, None, {}, None

    def _epoch(self) -> int:
        each = getattr(self._loader, "steps_per_epoch", None)
        return max(0, self.steps_done - 1) // each if each else 0

    def _feed(self) -> None:
        self._fed = time.monotonic()
        meters = getattr(self._loader, "meters", None)
        if self._record is not None and meters is not None:
            read = meters()
            self._record.write("feed", step=self.steps_done, **{name: read.get(name) for name in _METERS})


class Watched(Generic[B]):
    """A loader, watched: iterating it is all that changes; other attributes are the loader's own."""

    def __init__(self, monitor: Monitor, loader: Iterable[B]) -> None:
        self._monitor = monitor
        self._watched = loader

    def __iter__(self) -> Iterator[B]:
        self._monitor._begin()
        began = time.perf_counter()
        batches = iter(self._watched)  # where some loaders start their processes
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._monitor._waited(time.perf_counter() - began, batch)
            yield batch
            began = time.perf_counter()

    def __len__(self) -> int:
        return len(self._watched)  # type: ignore[arg-type]  # TypeError where the loader has none

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watched, name)


def num_samples(batch: Any) -> int:
    """How many samples a batch has: the length of `__key__`, else of its first array or list of samples; 0: unknown."""
    if isinstance(batch, Mapping):
        fields = [batch["__key__"]] if "__key__" in batch else list(batch.values())
    else:
        fields = list(batch) if isinstance(batch, list | tuple) else [batch]
    return next(filter(None, map(_num_rows, fields)), 0)


def _num_rows(field: Any) -> int:
    if isinstance(field, list | tuple):
        return len(field)
    shape: Any = () if isinstance(field, memoryview) else getattr(field, "shape", ())
    return int(shape[0]) if len(shape) else 0
