"""The right to write to a place, held by one process at a time, where no lock of an operating system reaches.

A lease is a small file. It is made if it is absent, so one of several wins; its owner writes a higher beat into it
every quarter of `stale_sec`. Whoever finds it watches it: if the beat rises, the owner lives and the place is taken; if
it stays the same for all of `stale_sec`, by the watcher's own clock, the owner is gone and the lease may be taken over.
No two machines' clocks are compared. An owner that was on this very machine and has ended is gone at once.

Taking over and beating write only if the file is still the version that was read, so that of two that take over one
wins, and an owner that slept too long cannot overwrite its successor. The local disk, S3, Google's and Azure's stores
and memory have such writes. Where a store ignores conditions (found out by trying) or has none (fsspec), the file is
written and read again after a pause: of two at the same moment the later then wins, but writes slower than the pause
can cross, and `is_exact` is False.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from headrace.errors import HeadraceError, OptionError, StorageError, TargetError
from headrace.storage.leasefile import LeaseFile
from headrace.storage.place import Place, quoted
from headrace.storage.retrying import ReadOptions

_BEATS = 4
"""How often an owner writes in the time after which it counts as gone."""
_SURE_SHARE = 0.75
_LOOKS = 20


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: what its file says."""

    owner: str
    host: str
    machine: str
    pid: int
    started: str
    beat: int = 0

    @classmethod
    def here(cls) -> Self:
        """This process, under a name drawn at random."""
        pid = os.getpid()
        return cls(secrets.token_hex(16), socket.gethostname(), _machine(), pid, _started(pid))

    @classmethod
    def of(cls, data: bytes) -> Self | None:
        """What the file says; None if it is no lease."""
        with suppress(orjson.JSONDecodeError, TypeError):
            found = cls(**orjson.loads(data))
            numbers, words = (found.pid, found.beat), (found.owner, found.host, found.machine, found.started)
            if all(type(number) is int for number in numbers) and all(isinstance(word, str) for word in words):
                return found
        return None

    def to_bytes(self) -> bytes:
        """The content of the lease's file."""
        return orjson.dumps(self)

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be gone: a process of this machine that is no more."""
        return self.machine == _machine() and self.started != _started(self.pid)

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine that lives."""
        return self.machine == _machine() and self.started == _started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {quoted(self.host)}"


class Lease:
    """`with Lease(place) as lease:` holds it; call `lease.check()` before each step that must not be done twice.

    A thread beats while it is held. Safe to use from several threads; not to be pickled or used after a fork.
    """

    def __init__(self, place: Place, *, stale_sec: float = 60.0, options: ReadOptions | None = None) -> None:
        """`place` is the lease's own file. `stale_sec`, at least 1, must be the same for all who may take it."""
        if stale_sec < 1:
            raise OptionError(f"stale_sec must be at least 1 second: got {stale_sec}")
        self._file = LeaseFile(place, options)
        self._stale_sec = stale_sec
        self._me = Holder.here()
        self._beaten_at = 0.0
        self._lost = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_exact(self) -> bool:
        """Whether the store itself sees to it that one owner wins; known once the lease is held."""
        return self._file.is_exact

    def acquire(self, tell: Callable[[str], object] = lambda _: None) -> None:
        """Take the lease. It may watch another owner's for `stale_sec`, and then tells so, in one line, before.

        Raises TargetError if another process holds it, StorageError if the store refuses.
        """
        if not self._file.create(self._me.to_bytes()):
            self._take_over(tell)
        self._beaten_at, self._lost = _now(), ""
        self._end.clear()
        self._thread = threading.Thread(target=self._beat, name="headrace-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises TargetError if the lease is lost, or if it was too long ago that a beat was written to be sure."""
        if self._lost:
            raise TargetError(self._lost)
        silent_sec = _now() - self._beaten_at
        if silent_sec > self._stale_sec * _SURE_SHARE:
            raise TargetError(
                f"{self._file.place} could not be renewed for {silent_sec:.0f} s, and another process may have taken "
                "it: see whether the store is up, and run the same again"
            )

    def refresh(self) -> None:
        """Write a beat now. Raises TargetError if another process has the lease, StorageError if the store refuses."""
        with self._lock:
            found = self._file.read()
            holder = Holder.of(found.data) if found else None
            if found is None or holder is None or holder.owner != self._me.owner:
                raise self._gone(holder)
            renewed, at = replace(holder, beat=holder.beat + 1), _now()
            if not self._file.replace(renewed.to_bytes(), found, settle=False):
                raise self._gone(None)
            self._beaten_at = at

    def release(self) -> None:
        """Let go: the file is removed, if it still is ours. Releasing twice is fine.

        Raises StorageError if the store refuses; the lease then ends by itself, after `stale_sec`.
        """
        self._end.set()
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        thread.join()
        # A store cannot remove on a condition. Right after a beat nobody may take over, so ours is what is removed.
        with suppress(TargetError):
            self.check()
            self.refresh()
            self._file.remove()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StorageError:
            if err is None:  # else what went wrong first is what should be seen
                raise

    def _beat(self) -> None:
        while not self._end.wait(self._stale_sec / _BEATS):
            try:
                self.refresh()
            except TargetError as err:
                self._lost = str(err)
                return
            except HeadraceError:
                continue  # the store is away: `check` says so when it has lasted too long

    def _take_over(self, tell: Callable[[str], object]) -> None:
        found = self._file.read()
        holder = Holder.of(found.data) if found else None
        if found is not None and holder is not None and not holder.has_ended:
            if holder.is_here:
                raise self._taken(holder)
            tell(f"{self._file.place}: {holder} held it; watching for {self._stale_sec:g} s whether it still does")
        if found is not None and (holder is None or not holder.has_ended):
            self._watch(found.data, holder)
        won = self._file.replace(self._me.to_bytes(), found) if found else self._file.create(self._me.to_bytes())
        if not won:
            raise self._taken(None)

    def _watch(self, content: bytes, holder: Holder | None) -> None:
        until = _now() + self._stale_sec
        while _now() < until:
            time.sleep(min(1.0, self._stale_sec / _LOOKS))
            found = self._file.read()
            if found is not None and found.data != content:
                raise self._taken(Holder.of(found.data) or holder)

    def _taken(self, holder: Holder | None) -> TargetError:
        who = str(holder) if holder else "another process"
        folder = self._file.place.parent
        return TargetError(f"{folder} is being written by {who}: wait for it to end, or choose another place")

    def _gone(self, holder: Holder | None) -> TargetError:
        self._lost = (
            f"{self._file.place} was taken by {holder or 'another process'}: this process must not go on writing"
        )
        return TargetError(self._lost)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # a machine that was suspended has lost time, too


def _machine() -> str:
    """What tells this machine, since it was started, and this container's processes from others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    """When a process was started, by the kernel's count; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
