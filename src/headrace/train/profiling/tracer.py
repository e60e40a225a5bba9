"""Begins and ends the profiler between two steps, and names the parts of the loop while it runs.

The loop's clock is told at each turn from one part to another. While a profile is due, and only then, this object
stands between: it has the clock do as ever, and ends one range of the trace and begins the next. What a part was is
told at its end, so ranges get their names when the trace is written. The time that the profiler itself takes to begin
and end is no part of any step.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import orjson
import torch
from torch._C._autograd import _profiler_enabled
from torch.profiler import ProfilerActivity, record_function

from headrace.errors import StorageError
from headrace.train.clock import Clock, Split
from headrace.train.profiling.finish import summary_path
from headrace.train.profiling.options import Profile
from headrace.train.profiling.trace import PART, STEP

_log = logging.getLogger("headrace.train")

FOLDER = "profile"
SIGNAL = signal.SIGUSR2
SIGNAL_STEPS = 10
_HOOKS = ("lap", "skip", "next_step")
_FREE = (signal.SIG_DFL, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class Written:
    """A profile that was written."""

    path: Path
    first_step: int
    last_step: int
    sentence: str


class Tracer:
    """Profiles one rank's steps while the block runs: those that are due, and ten more at each SIGUSR2.

    Signals are taken in the main thread, and where the process does nothing of its own with them. For the thread that
    trains; `keep` is called with each profile that was written, by the thread that wrote it.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        clock: Clock,
        completed: Callable[[], int],
        due: Profile | None,
        keep: Callable[[Written], None],
    ) -> None:
        """`completed()`: steps of the run that are done. `due`: None, or the steps to profile on this rank."""
        self._folder, self._rank, self._clock = folder, rank, clock
        self._completed = completed
        self._keep = keep
        self._first: int | None = None
        """The step to begin at; None: the next."""
        self._num_steps = 0
        """How many are due; 0: nothing is."""
        self._trace: _Trace | None = None
        self._writer: threading.Thread | None = None
        self._previous: Any = None
        self._installed = False
        if due is not None:
            self._first, self._num_steps = due.first, due.end - due.first

    def __enter__(self) -> Tracer:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(SIGNAL) in _FREE:
            self._previous = signal.signal(SIGNAL, self._asked)
            self._installed = True
        if self._num_steps:
            self._begin_due()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what there is of a profile that is under way, and wait for it."""
        if self._installed:
            signal.signal(SIGNAL, self._previous)
        if self._trace is not None:
            self._stop()
        elif self._num_steps:
            self._unhook()
        self._join()

    def _begin_due(self) -> None:
        assert self._first is not None
        step = self._completed() + 1
        if step > self._first:
            _log.warning("no profile: step %d was made before, and the run goes on at %d", self._first, step)
            self._num_steps = 0
            return
        self._hook()
        if step == self._first:
            self._start(step)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._num_steps == 0:
            self._first, self._num_steps = None, SIGNAL_STEPS
            self._hook()

    def _hook(self) -> None:
        for name in _HOOKS:
            setattr(self._clock, name, getattr(self, f"_{name}"))

    def _unhook(self) -> None:
        for name in _HOOKS:
            delattr(self._clock, name)
        self._num_steps = 0  # last: only from here on a signal, which may come between any two lines, hooks it again

    def _lap(self, kind: str) -> float:
        sec = type(self._clock).lap(self._clock, kind)
        if self._trace is not None:
            self._trace.part(kind)
        return sec

    def _skip(self) -> float:
        sec = type(self._clock).skip(self._clock)
        if self._trace is not None:
            self._trace.part("rest" if self._trace.is_new else "evaluation")
        return sec

    def _next_step(self) -> Split:
        """A step is over, and the next one begins."""
        split = type(self._clock).next_step(self._clock)
        step = self._completed() + 1
        if self._trace is not None:
            if step >= self._trace.first + self._num_steps:
                self._stop()
            else:
                self._trace.next_step(step)
        elif self._first is None or step == self._first:
            self._start(step)
        return split

    def _start(self, step: int) -> None:
        self._clock.pause()
        try:
            self._trace = _Trace(step)
        except RuntimeError as err:  # of the profiler: the run can do without
            _log.warning("no profile: %s", str(err).partition("\n")[0])
            self._unhook()
        type(self._clock).skip(self._clock)

    def _stop(self) -> None:
        trace, self._trace = self._trace, None
        assert trace is not None
        self._clock.pause()
        self._unhook()
        last = min(self._completed(), trace.step)
        trace.stop()
        if last >= trace.first:
            self._join()  # one at a time
            self._writer = threading.Thread(
                target=self._write, args=(trace, last), name="headrace-profile", daemon=True
            )
            self._writer.start()
        type(self._clock).skip(self._clock)

    def _write(self, trace: _Trace, last: int) -> None:
        try:
            self._keep(trace.write(self._folder, self._rank, last))
        except (OSError, StorageError) as err:
            _log.warning("the profile cannot be written to %s: %s", self._folder, err)

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()


class _Trace:
    """A profiler at work on this thread."""

    def __init__(self, first: int) -> None:
        if _profiler_enabled():  # its trace would end here, without a word
            raise RuntimeError("another profiler is at work in this process")
        self.first = self.step = first
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self._kinds: list[str | None] = []
        self._step = self._part = record_function(PART)
        self._enter(first)

    @property
    def is_new(self) -> bool:
        """Whether no part was over yet."""
        return not self._kinds

    def part(self, kind: str) -> None:
        """What went on since the last call was of this kind."""
        self._part.__exit__(None, None, None)
        self._kinds.append(kind)
        self._part = record_function(PART)
        self._part.__enter__()

    def next_step(self, step: int) -> None:
        """A step is over, and this one begins."""
        self._leave()
        self._enter(step)

    def _enter(self, step: int) -> None:
        self.step = step
        self._step = record_function(f"{STEP}{step}")
        self._part = record_function(PART)
        self._step.__enter__()
        self._part.__enter__()

    def _leave(self) -> None:
        self._part.__exit__(None, None, None)
        self._kinds.append(None)
        self._step.__exit__(None, None, None)

    def stop(self) -> None:
        """The last step is over."""
        self._leave()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the trace lacks what the device has not done yet
        self._profiler.stop()

    def write(self, folder: Path, rank: int, last: int) -> Written:
        """Make its files; takes long."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"rank{rank}-steps{self.first}-{last}.json.gz"
        exported = folder / f"{target.name}.exported"
        self._profiler.export_chrome_trace(str(exported))
        about = {"rank": rank, "first_step": self.first, "last_step": last}
        order = {"exported": str(exported), "target": str(target), "about": about, "kinds": self._kinds}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-m", "headrace.train.profiling.finish"]
        done = subprocess.run(  # noqa: S603 - our own module
            command, input=orjson.dumps(order), env=environment, capture_output=True, check=False
        )
        if done.returncode:
            exported.unlink(missing_ok=True)
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise StorageError((said or [f"exit code {done.returncode}"])[-1])
        sentence = orjson.loads(summary_path(target).read_bytes())["sentence"]
        return Written(target, self.first, last, sentence)
