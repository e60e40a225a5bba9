"""From what the stages make apart to what the feed makes of them: arithmetic, and no measuring.

Readers read and then check, so their times add; so do those of decoding and augmenting, in each thread that
transforms. Readers, transforming threads and the hand-off work side by side: the slowest sets the rate. And all of
them live on the same processors, so no rate is above processors / (seconds of a processor that a sample takes).

    rate(T) = min(1 / (1/storage + 1/verify), 1 / (serial + parallel / T), hand-off, processors / cpu)

`serial` and `parallel` are the seconds of a sample's transform by Amdahl's law, from the two thread counts that were
measured: what holds the interpreter lock is serial. A prediction is this formula's ratio of after and before, times
the rate that was reached before: what the formula leaves out is then in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Amdahl:
    """Seconds of one sample: those that only one thread at a time can work, and those that threads share."""

    serial_sec: float
    parallel_sec: float

    @classmethod
    def of(cls, alone: float, together: float, num_threads: int) -> Amdahl:
        """From the samples/s of one thread and of `num_threads` threads; of one alone nothing is known to be serial.

        Noise may show more than `num_threads` times as much, or less than one thread: then nothing, or all, is serial.
        """
        one, many = 1 / alone, 1 / together
        if num_threads == 1:
            return cls(0.0, one)
        parallel = (one - many) / (1 - 1 / num_threads)
        parallel = min(one, max(0.0, parallel))
        return cls(one - parallel, parallel)

    def samples_per_sec(self, num_threads: int) -> float:
        """Of so many threads."""
        return 1 / (self.serial_sec + self.parallel_sec / num_threads)

    def times(self, factor: float) -> Amdahl:
        """The same work, taking so many times as long."""
        return Amdahl(self.serial_sec * factor, self.parallel_sec * factor)


@dataclass(frozen=True, slots=True)
class Model:
    """A feed. Rates are samples/s."""

    storage: float
    verify: float
    transform: Amdahl | None
    hand_off: float
    cpu_sec: float
    """Seconds of a processor that a sample takes, in all stages."""
    processors: float
    """That others leave to this feed."""

    def samples_per_sec(self, threads: int) -> float:
        """With so many threads that transform."""
        reading_sec = 1 / self.storage + 1 / self.verify
        transform_sec = 0.0 if self.transform is None else 1 / self.transform.samples_per_sec(threads)
        return 1 / max(reading_sec, transform_sec, 1 / self.hand_off, self.cpu_sec / self.processors)

    def with_processes(self, processes: int) -> float:
        """With so many worker processes that transform: each has an interpreter lock of its own.

        Sending them the samples is left out, so this is an upper bound.
        """
        each = self.transform
        apart = None if each is None else Amdahl(0.0, each.serial_sec + each.parallel_sec)
        return replace(self, transform=apart).samples_per_sec(processes)


def useful_threads(model: Model, counts: Sequence[int], enough: float = 0.95) -> int:
    """The least of these thread counts that comes within 5 % of the best of them."""
    best = max(model.samples_per_sec(count) for count in counts)
    return min(count for count in counts if model.samples_per_sec(count) >= enough * best)
