"""What is measured, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.bench.material import Held, Reads, raw_samples
from headrace.load import Stream
from headrace.load.job import num_readers
from headrace.transform import Sample

_MOST_SAMPLES, _LEAST_SAMPLES = 2048, 256
_BATCHES = 4


@dataclass(frozen=True)
class Subject:
    """A stream, what is at hand of its data, and how the feed is to run it."""

    stream: Stream
    batch_size: int
    threads: int
    """That transform."""
    cores: int
    is_cold: bool
    """Whether reads are to find nothing of the shards in the page cache."""
    reads: Reads
    held: Sequence[Held]
    raw: Sequence[Sample]
    """The samples that lie in `held`."""
    folder: Path
    """For temporary data."""

    @classmethod
    def of(
        cls, stream: Stream, batch_size: int, threads: int | None, is_cold: bool, folder: Path, limit_sec: float
    ) -> Subject:
        """Read what the stages are measured on: a few batches, or what the time allows. Raises DamagedError."""
        cores = len(os.sched_getaffinity(0))
        reads = Reads(stream.dataset, stream)
        held = reads.hold(min(_MOST_SAMPLES, max(_LEAST_SAMPLES, _BATCHES * batch_size)), limit_sec)
        return cls(stream, batch_size, threads or cores, cores, is_cold, reads, held, raw_samples(held), folder)

    @property
    def readers(self) -> int:
        """Threads that read and check."""
        return num_readers(self.threads, self.stream.dataset.is_remote)

    @property
    def several(self) -> int:
        """How many threads show how transforming scales: the feed's, or all processors where it has one; 1 if there is
        only one."""
        return self.threads if self.threads > 1 else self.cores

    @property
    def stored_bytes(self) -> float:
        """Of a sample, on average."""
        return sum(len(one.data) for one in self.held) / sum(one.num_samples for one in self.held)

    def sweep(self) -> list[int]:
        """The numbers of threads that the real feed is measured with: the one asked for, and up to four others from 1
        to all processors."""
        counts = {1, self.cores // 4, self.cores // 2, self.cores, self.threads}
        return sorted(count for count in counts if count)
