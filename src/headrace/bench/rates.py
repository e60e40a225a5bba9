"""What a measurement gives: how many samples in how long, and several such side by side."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

_MB = 1e6
_SCHEDULED = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True, slots=True)
class Count:
    """One repeat: what was done in `sec` seconds of wall time."""

    samples: int
    bytes: int
    sec: float
    cpu_sec: float = 0.0
    """Seconds that its threads were on a processor, summed over them; so are the next."""
    starved_sec: float = 0.0
    """Seconds that they were ready to run and had no processor, as the kernel says: others had it."""
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Rate:
    """Several repeats of one measurement."""

    counts: tuple[Count, ...]

    @property
    def repeats(self) -> tuple[float, ...]:
        """Samples/s of each."""
        return tuple(count.samples / count.sec for count in self.counts)

    @property
    def samples_per_sec(self) -> float:
        """The median."""
        return statistics.median(self.repeats)

    @property
    def low(self) -> float:
        """The least, in samples/s."""
        return min(self.repeats)

    @property
    def high(self) -> float:
        """The most, in samples/s."""
        return max(self.repeats)

    @property
    def bytes_per_sample(self) -> float:
        """Of what was worked on, over all repeats."""
        return sum(count.bytes for count in self.counts) / sum(count.samples for count in self.counts)

    @property
    def mb_per_sec(self) -> float:
        """The median in MB/s, of 10^6 bytes."""
        return self.samples_per_sec * self.bytes_per_sample / _MB

    @property
    def unstarved(self) -> float:
        """The median as it would be if the threads had never waited for a processor: what they hinder each other by,
        without what others on this machine take."""
        return statistics.median(
            count.samples / max(count.sec - count.starved_sec / count.threads, count.cpu_sec / count.threads)
            for count in self.counts
        )

    @property
    def starved_share(self) -> float:
        """How much of their time its threads were ready to run and had no processor, 0 to 1."""
        thread_sec = sum(count.sec * count.threads for count in self.counts)
        return min(1.0, sum(count.starved_sec for count in self.counts) / thread_sec)

    @property
    def cpu_sec_per_sample(self) -> float:
        """What a sample took of a processor."""
        return sum(count.cpu_sec for count in self.counts) / sum(count.samples for count in self.counts)

    def to_json(self) -> dict[str, Any]:
        """Median and spread, as JSON values."""
        return {
            "samples_per_sec": self.samples_per_sec,
            "low": self.low,
            "high": self.high,
            "mb_per_sec": self.mb_per_sec,
            "repeats": list(self.repeats),
        }


Turn: TypeAlias = Callable[[], tuple[int, int] | None]
"""A little of a stage's work: (samples, bytes) of it; None where there is no more. Called from several threads."""


def race(turn: Turn, num_threads: int, window_sec: float) -> Count:
    """What so many threads do together until the window is over; each finishes the turn that it is at."""
    done: list[Count] = []
    failures: list[BaseException] = []
    began = time.perf_counter()

    def work() -> None:
        samples = num_bytes = 0
        starved_before = _starved_sec()
        try:
            while (step := turn()) is not None:
                samples += step[0]
                num_bytes += step[1]
                if failures or time.perf_counter() - began >= window_sec:
                    break
        except BaseException as err:  # raised again below, where somebody can catch it
            failures.append(err)
        done.append(Count(samples, num_bytes, 0.0, time.thread_time(), _starved_sec() - starved_before))

    threads = [threading.Thread(target=work, name="bench", daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Count(
        samples=sum(one.samples for one in done),
        bytes=sum(one.bytes for one in done),
        sec=time.perf_counter() - began,
        cpu_sec=sum(one.cpu_sec for one in done),
        starved_sec=sum(one.starved_sec for one in done),
        threads=num_threads,
    )


def _starved_sec() -> float:
    """How long this thread has waited for a processor so far; 0 where the kernel does not count it."""
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Cycle:
    """The numbers 0 to n - 1 over and over, for threads that take turns."""

    def __init__(self, n: int) -> None:
        self._n, self._count, self._lock = n, itertools.count(), threading.Lock()

    def next(self) -> int:
        """The next one."""
        with self._lock:
            return next(self._count) % self._n
