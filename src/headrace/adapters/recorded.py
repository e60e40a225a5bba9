"""A loader that writes a run's events while another library's loop iterates it, for `headrace report`.

What a loop does between two batches is its step: the time in `next` is waiting, the rest is computing. So nothing of
the loop has to change, and Lightning's Trainer and Fabric, Accelerate, Hugging Face's Trainer and a loop of one's own
are all the same here. The state is the loader's, wherever the loop keeps it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import OptionError, StorageError
from headrace.load import Loader
from headrace.rank import resolve_rank
from headrace.telemetry import FILE_NAME, EventWriter
from headrace.version import __version__

_FEED_EVERY_SEC = 5.0


class Recorded:
    """Give it to a loop in place of the loader. Rank 0 writes; a run that is started again goes on in its folder."""

    def __init__(self, loader: Loader, run_dir: str | Path) -> None:
        """`run_dir` is made if it is not there. Raises OptionError for what is no headrace.Loader."""
        if not isinstance(loader, Loader):
            raise OptionError(f"Recorded is for a headrace.Loader: got a {type(loader).__name__}")
        self.loader = loader
        self._run_dir = Path(run_dir)
        self._record: EventWriter | None = None
        self._noted: dict[str, Any] = {}
        self._fed = time.monotonic()

    def note(self, *, loss: float | None = None, lr: float | None = None, **metrics: float) -> None:
        """Say something of the step under way, for its line in the record. Numbers on the host, of this rank."""
        self._noted = {"loss": loss, "lr": lr, "metrics": metrics}

    def write(self, event: str, **fields: Any) -> None:
        """Add an event of another kind, with JSON values. Rank 0 does, once the first batch was asked for."""
        if self._record is not None:
            self._record.write(event, **fields)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        world_size = self._begin()
        batches = iter(self.loader)
        done = self._steps_done()
        began = time.perf_counter()
        for batch in batches:
            got = time.perf_counter()
            epoch, done = done // self.loader.steps_per_epoch, done + 1
            try:
                yield batch
            finally:  # most loops know the length, and never ask for a batch after the last one
                now = time.perf_counter()
                samples = len(batch.get("__key__", ())) * world_size or self.loader.global_batch_size
                self._write_step(done, epoch, samples, got - began, now - got)
            began = now

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The loader's."""
        self.loader.load_state_dict(state)

    def _begin(self) -> int:
        """The first iteration of a process begins an attempt at the run; the world size."""
        rank = resolve_rank()
        if self._record is None and rank.rank == 0:
            try:
                self._run_dir.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise StorageError(f"the run's folder {self._run_dir} cannot be made: {err.strerror}") from err
            self._record = EventWriter(self._run_dir / FILE_NAME)
            fields = {"step": self._steps_done(), "world_size": rank.world_size, "pids": [os.getpid()]}
            about = {"global_batch_size": self.loader.global_batch_size, "versions": {"headrace": __version__}}
            self._record.write("start", attempt=0, total_steps=None, resumed_from=None, config={}, **fields, **about)
        return rank.world_size

    def _steps_done(self) -> int:
        state = self.loader.state_dict()
        done: int = state["epoch"] * self.loader.steps_per_epoch + state["position"] // self.loader.global_batch_size
        return done

    def _write_step(self, step: int, epoch: int, samples: int, wait_sec: float, compute_sec: float) -> None:
        if self._record is None:
            return
        noted, self._noted = self._noted or {"loss": None, "lr": None, "metrics": {}}, {}
        sec = {"sec": wait_sec + compute_sec, "wait_sec": wait_sec, "compute_sec": compute_sec}
        rest = dict.fromkeys(("copy_sec", "communication_sec", "checkpoint_sec", "rest_sec"), 0.0)
        self._record.write("step", step=step, epoch=epoch, samples=samples, **noted, **sec, **rest)
        if step % self.loader.steps_per_epoch == 0 or time.monotonic() - self._fed >= _FEED_EVERY_SEC:
            self._fed = time.monotonic()
            meters = self.loader.meters()
            names = ("stages", "threads", "dropped", "padded", "skipped", "restarts")
            self._record.write("feed", step=step, **{name: meters.get(name) for name in names})
