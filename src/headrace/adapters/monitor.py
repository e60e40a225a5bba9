"""The record of a training loop of one's own, with any loader, for `headrace report`.

A step is what lies between two ends of `step()`: in it, the time in the loader's own `next` is waiting, the time inside
the block is computing, unless `timed` gives a part of it another name, and what is left is the rest. So the parts add
up to the wall time (`parts.py`). No device is waited for: on a GPU, whose work goes on behind the loop, the parts are
right where the loop waits for it at every step, as by reading the loss.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from headrace.adapters.parts import StepParts
from headrace.adapters.watched import Counter, LoaderTally, Watched
from headrace.alarms import Alarms, Watcher
from headrace.errors import OptionError, StorageError
from headrace.rank import process_rank, resolve_rank
from headrace.sinks import Sink, Sinks, sinks_of
from headrace.telemetry import FILE_NAME, EventWriter
from headrace.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.adapters.late import Late

B = TypeVar("B")

_FEED_EVERY_SEC = 5.0
_METERS = ("stages", "threads", "dropped", "padded", "skipped", "restarts")


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
        self._first_step = first_step
        self._about: dict[str, Any] = {"total_steps": total_steps, "config": dict(config or {})}
        self._run_dir = Path(run_dir)
        self._record: EventWriter | None = None
        self._alarms = alarms
        self._watcher: Watcher | None = None
        self._sinks = sinks_of(sinks)
        self._feeding: Sinks | None = None
        self.world_size = 0
        """How many processes have a share of the data; 0: nothing was asked for yet."""
        self.parts = StepParts()
        """Where the time of the step under way goes; for what follows the loops of other libraries."""
        self._loader: Any = None
        self.counter = Counter(None)
        """Counts what comes out of the loader."""
        self._noted: dict[str, Any] = {}
        self._late: deque[tuple[dict[str, Any], Late | float | None]] = deque()
        self.epoch: int | None = None
        """Passes over the data that are complete; None: not told. For what follows the loops of other libraries."""
        self._iterations = 0
        self._samples: int | None = 0
        self._said: int | None = None
        self._closed = False
        self._fed = 0.0

    @classmethod
    def of(cls, run: Monitor | str | Path) -> Monitor:
        """The Monitor given, or one of the run in this folder."""
        return run if isinstance(run, Monitor) else cls(run)

    def go_on(self, *, first_step: int, total_steps: int | None) -> None:
        """Record from `first_step` on, as another start of the run; one that was closed is open again."""
        if self._record is not None:
            self.abandon()
        self.drop_step()
        self.steps_done, self._about["total_steps"] = first_step, total_steps
        self.world_size, self._closed = 0, False
        self.epoch, self._iterations, self._first_step = None, 0, first_step

    def watch(self, loader: Iterable[B]) -> Watched[B]:
        """The loader's batches, each `next` of it timed. With a headrace.Loader its meters are recorded, too.

        For the training loader: batches of another one would be counted as the next step's. Of one that moves another
        one's batches to a device, as Accelerate's and Fabric's do, the inner one's `next` is the waiting, and what it
        does itself is copying.
        """
        self.loads_from(loader)
        return Watched(self, loader)

    def loads_from(self, loader: Any) -> None:
        """What comes from now on comes out of this loader, whoever iterates it; the same one again is counted on."""
        if loader is not self._loader:
            self._loader, self.counter = loader, Counter(loader)

    def iterated(self) -> None:
        """The watched loader begins from its beginning."""
        self._begin()
        self._iterations += 1

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be recorded any more."""
        return self._closed

    def tally(self) -> LoaderTally:
        """What has come out of the watched loader: batches, samples, bytes, waits, and a DataLoader's workers."""
        return self.counter.tally()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step: everything between its batches and the next step's. A step that fails is not recorded."""
        self.begin_step()
        try:
            yield
        except BaseException:
            self.drop_step()
            raise
        self.end_step()

    def begin_step(self) -> None:
        """The same without a block: up to `end_step` or `drop_step` is computing."""
        self._begin()
        self.parts.begin_step()

    def end_step(self) -> None:
        """The step is complete."""
        self._end(self.parts.end_step())

    def drop_step(self) -> None:
        """What was counted since the last step is no part of any."""
        self.parts.forget()
        self._samples, self._said, self._noted = 0, None, {}

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count what the block takes as `kind`: "copy", "communication", "checkpoint" or "rest"; or, of the computing,
        "forward", "backward" or "optimizer". In a block within another each moment counts once, as the inner kind."""
        with self.parts.timed(kind):
            yield

    def note(
        self,
        *,
        loss: float | Tensor | None = None,
        lr: float | None = None,
        samples: int | None = None,
        **metrics: float,
    ) -> None:
        """Say something of the step under way, for its line in the record: numbers of this rank.

        What is said later is added to what was said before; of one name the last counts.

        loss: a number, or a tensor of one element. One on a CUDA device is not waited for: its step's line is written
            once it is there.
        samples: how many the step has; None: what its batches seem to have (`num_samples`).
        metrics: numbers on the host.
        """
        known = loss if loss is None or isinstance(loss, int | float) else _number(loss)
        said = {name: value for name, value in (("loss", known), ("lr", lr)) if value is not None}
        self._noted = {**self._noted, **said, "metrics": {**self._noted.get("metrics", {}), **metrics}}
        self._said = self._said if samples is None else samples

    def waited(self, sec: float) -> None:
        """The loader's own `next` took so long, and is over now."""
        self.counter.wait_sec += sec
        self.parts.waited(sec)

    def took(self, batch: Any) -> None:
        """The step under way has this batch."""
        found = self.counter.add(batch)
        self._samples = self._samples + found if found and self._samples is not None else None

    def evaluated(self, loss: float | None = None, *, samples: int = 0, sec: float = 0.0, **metrics: float) -> None:
        """Record an evaluation after the steps that are done. What it took belongs to no step."""
        self.write_evaluation(loss, samples, sec, metrics)
        self.pause()

    def write_evaluation(self, loss: float | None, samples: int | None, sec: float, metrics: dict[str, float]) -> None:
        """Record an evaluation whose time is left out of the steps already; `samples`: None where nobody knows."""
        self._begin()
        if self._record is not None:
            self._write_late(wait=True)
            found = {"loss": loss, "metrics": metrics, "samples": samples, "sec": sec}
            self._record.write("evaluate", step=self.steps_done, epoch=self._epoch(), **found)

    @contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        """The block writes a checkpoint at `path`, a file or a folder: its time is that of checkpoints, and it is in
        the record. One that fails is not."""
        began = time.perf_counter()
        with self.parts.timed("checkpoint"):
            yield
        self._begin()
        if self._record is not None:
            self._write_late(wait=True)
            found = {"path": str(path), "sec": time.perf_counter() - began, "bytes": _size(Path(path))}
            self._record.write("checkpoint", step=self.steps_done, **found)

    def write(self, event: str, **fields: Any) -> None:
        """Record an event of another kind, one that the report knows (`guard`, say); rank 0 writes."""
        self._begin()
        if self._record is not None:
            self._record.write(event, **fields)

    def pause(self) -> None:
        """Count what comes until the next batch or step as no part of any."""
        self.parts.pause()
        self._write_late(wait=True)
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
        feeding, self._feeding = self._feeding, None
        try:
            if watcher is not None:
                watcher.close()
            if feeding is not None:
                feeding.close(failed=failed)
        finally:
            if record is not None:
                record.close()

    def abandon(self) -> None:
        """The run failed: the record has no end, and nothing can be recorded afterwards."""
        self._write_late(wait=False)
        self._late.clear()
        self._shut(failed=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the end, unless the block failed."""
        if error is None:
            self.close()
        else:
            self.abandon()

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

    def _end(self, fields: dict[str, float]) -> None:
        now = time.time()
        self.steps_done += 1
        samples = self._said if self._said is not None else self._samples or None
        self._samples, self._said = 0, None
        noted, self._noted = {"loss": None, "lr": None, "metrics": {}, **self._noted}, {}
        if self._record is None:
            return
        of_all = None if samples is None else samples * self.world_size
        counted = {"step": self.steps_done, "epoch": self._epoch(), "samples": of_all}
        loss = noted.pop("loss")
        self._late.append(({"time": now, **counted, **noted, **fields}, loss))
        self._write_late(wait=False)
        if time.monotonic() - self._fed >= _FEED_EVERY_SEC:
            self._feed()

    def _write_late(self, wait: bool) -> None:
        """Write the steps whose loss is known, at once as a rule: the loop may have saved a checkpoint within one."""
        while self._late and self._record is not None:
            fields, loss = self._late[0]
            if loss is not None and not isinstance(loss, float | int):
                if not (wait or loss.is_there):
                    return
                loss = loss.value()
            self._late.popleft()
            self._record.write("step", **fields, loss=loss)

    def _epoch(self) -> int | None:
        """As the loader counts, else the loop's library; else the iterations of a run that began here."""
        each = getattr(self._loader, "steps_per_epoch", None)
        if each:
            return max(0, self.steps_done - 1) // int(each)
        if self.epoch is not None:
            return self.epoch
        return self._iterations - 1 if self._iterations and self._first_step == 0 else None

    def _feed(self) -> None:
        self._fed = time.monotonic()
        if self._record is None:
            return
        meters = getattr(self._loader, "meters", None)
        if meters is not None:
            read = meters()
            self._record.write("feed", step=self.steps_done, **{name: read.get(name) for name in _METERS})
        elif self._loader is not None:
            self._record.write("loader", step=self.steps_done, **self.tally().to_json())


def _number(value: Tensor) -> Late | float:
    if not getattr(value, "is_cuda", False):
        return float(value)
    from headrace.adapters.late import Late

    return Late(value)


def _size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None where nothing is on this machine's disks."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size if path.is_file() else None
