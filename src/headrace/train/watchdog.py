"""The watchdog of a rank: it ends the run when the rank makes no progress for too long, and says who is to blame.

A collective waits for all ranks, so one that hangs holds up all. Each rank beats its pulse as it goes on, and a thread
looks at it. When it stands still, the rank leaves word of where it is (`hang`), gives the others a moment to do the
same, and ends. The first rank that left word tells the verdict, and kills ranks of its machine that are beyond
speaking. Ranks find each other's word in the run's folder, which works when the network or rank 0 does not.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch._C import _distributed_c10d

from headrace.train.failure import Failure
from headrace.train.hang import FOLDER, REPORT, Sighting, judge, read_sightings, sight, write_sighting
from headrace.train.world import TIMEOUT, World

HANG_TIMEOUT_SEC = 300.0
_PATIENCE = 3
"""Times longer for what may take longer than a step: the first one, which may compile, an evaluation, a checkpoint."""
_LONGEST_GRACE_SEC = 10.0
_DUMP_SEC = 5.0


@dataclass(slots=True)
class Pulse:
    """What a rank is at: written by the thread that trains, read by its watchdog."""

    phase: str = "start"
    """ "start", until the first step is done; "training", "evaluation", "checkpoint" or "end"."""
    step: int | None = None
    """The step that is being made, counted from 1."""
    beats: int = 0

    def beat(self, phase: str, step: int | None = None) -> None:
        """Progress was made, and `phase` goes on or begins."""
        self.phase = phase
        self.beats += 1
        if step is not None:
            self.step = step


def collective_timeout(hang_timeout_sec: float | None) -> timedelta:
    """How long a collective may wait: longer than any watchdog, which can say why."""
    return TIMEOUT if hang_timeout_sec is None else timedelta(seconds=max(60.0, (_PATIENCE + 1) * hang_timeout_sec))


def print_failure(failure: Failure) -> None:
    """Tell a failure on the terminal, where no launcher of ours does."""
    print(f"headrace: {failure.error()}", file=sys.stderr, flush=True)


class Watchdog:
    """While the block runs, watches this rank's pulse; does nothing without a limit, or on one process.

    Entering is collective.
    """

    def __init__(
        self, world: World, run_dir: Path | None, limit_sec: float | None, tell: Callable[[Failure], None]
    ) -> None:
        """`tell` is called on one rank with the verdict; without a run folder on every rank, with its own."""
        self.pulse = Pulse()
        self._world = world
        self._folder = run_dir / FOLDER if run_dir is not None else None
        self._limit_sec = limit_sec
        self._tell = tell
        self._peers: list[_Peer] = []
        self._trains = threading.get_ident()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pulse:
        if self._limit_sec is not None and self._world.size > 1:
            if self._folder is not None and self._world.rank == 0:
                with suppress(OSError):  # what stays is known by its processes' numbers
                    shutil.rmtree(self._folder)
            self._peers = [_Peer(*place) for place in self._world.gather((_machine(), os.getpid()))]
            self._thread = threading.Thread(target=self._watch, name="headrace-watchdog", daemon=True)
            self._thread.start()
        return self.pulse

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for peer in self._peers:
            peer.close()

    def _watch(self) -> None:
        assert self._limit_sec is not None
        look_sec = min(1.0, self._limit_sec / 10)
        beats, since, last = -1, 0.0, time.monotonic()
        while not self._over.wait(look_sec):
            now = time.monotonic()
            # What this process was itself suspended for (by a scheduler, a laptop's lid) is nobody's hang.
            since += max(0.0, now - last - 2 * look_sec - 1.0)
            last = now
            if self.pulse.beats != beats:
                beats, since = self.pulse.beats, now
            elif self._is_hung(now - since):
                self._end(now - since)

    def _is_hung(self, sec: float) -> bool:
        assert self._limit_sec is not None
        limit_sec = self._limit_sec * (1 if self.pulse.phase == "training" else _PATIENCE)
        # A rank that stands still for a shorter time is asked by those that wait for it already.
        return sec > limit_sec or (sec > self._limit_sec / 2 and bool(self._sightings()))

    def _end(self, sec: float) -> None:
        frame = sys._current_frames().get(self._trains)
        if frame is None:  # it has just ended
            return
        own = sight(self._world.rank, self.pulse.step, self.pulse.phase, sec, frame)
        del frame
        try:
            self._report(own)
        except (
            Exception
        ) as err:  # a full disk, say: the rank must end all the same, and its own word is better than none
            traceback.print_exc()
            where = f"the report cannot be written: {err}"
            self._tell(self._failure({own.rank: own}, [own.rank], where))
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(1)

    def _report(self, own: Sighting) -> None:
        if self._folder is None:
            self._tell(self._failure({own.rank: own}, [own.rank], "set run_dir for a report of all ranks"))
            return
        write_sighting(self._folder, own)
        self._record_flight(self._folder)
        self._wait(lambda: len(self._sightings()) == self._world.size)
        found = self._sightings()
        report = self._folder / REPORT
        if own.rank > min(found):
            self._wait(report.exists)  # a launcher may end all as soon as one has ended
            return
        failure = self._failure(found, range(self._world.size), f"stacks of all ranks are in {self._folder}")
        report.write_text(f"{failure.error()}\n")
        self._tell(failure)
        for rank, peer in enumerate(self._peers):
            if rank not in found:
                peer.kill()

    def _failure(self, found: dict[int, Sighting], ranks: Sequence[int], where: str) -> Failure:
        """The verdict on `ranks`, as the error that ends the run."""
        assert self._limit_sec is not None
        blamed, said = judge(found, ranks, self._limit_sec)
        seen = found.get(blamed) or next(iter(found.values()))
        way_out = f"if this only needs longer, raise hang_timeout_sec ({self._limit_sec:g})"
        stack = seen.stack[-8_000:]
        return Failure(blamed, seen.step, "TrainingError", f"hangs {said}; {where}; {way_out}", stack, time.time())

    def _sightings(self) -> dict[int, Sighting]:
        return read_sightings(self._folder, [peer.pid for peer in self._peers]) if self._folder is not None else {}

    def _wait(self, condition: Callable[[], bool]) -> None:
        assert self._limit_sec is not None
        deadline = time.monotonic() + min(_LONGEST_GRACE_SEC, max(2.0, self._limit_sec))
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _record_flight(self, folder: Path) -> None:
        """Write what torch's flight recorder has of the collectives. A thread does it: the device may not answer."""
        writer = threading.Thread(target=_write_flight, args=(folder, self._world.rank), daemon=True)
        writer.start()
        writer.join(_DUMP_SEC)


def _write_flight(folder: Path, rank: int) -> None:
    nccl = getattr(_distributed_c10d, "_dump_nccl_trace_json", None) if "nccl" in dist.get_backend_config() else None
    dump = nccl or getattr(_distributed_c10d, "_dump_fr_trace_json", None)
    if dump is not None:
        (folder / f"flight-{rank}.json").write_bytes(dump())


class _Peer:
    """Another rank's process."""

    def __init__(self, machine: str, pid: int) -> None:
        self.pid = pid
        # A descriptor, since the number may be another process's by the time that it is killed.
        self._fd: int | None = None
        if machine == _machine() and pid != os.getpid():
            with suppress(OSError):  # it died a moment ago: its connections say so
                self._fd = os.pidfd_open(pid)

    def kill(self) -> None:
        if self._fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


def _machine() -> str:
    """What processes have in common that see each other under the same numbers."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
