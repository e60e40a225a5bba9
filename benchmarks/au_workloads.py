"""The workloads of MLPerf Storage, as far as their parameters go, on an H100."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_RECORD_BYTES = 256_000_000


@dataclass(frozen=True)
class Workload:
    """What MLPerf Storage says of one, on an H100, and how much data is made here."""

    batch_size: int
    compute_sec: float
    record_bytes: int
    std_bytes: int
    least_au: float
    num_records: int
    warm_up: int
    prefetch: int

    @property
    def samples_per_sec(self) -> float:
        """What one H100 takes at the AU that it must hold."""
        return self.batch_size / self.compute_sec * self.least_au

    def sizes(self, num_records: int) -> list[int]:
        """Bytes of each record."""
        drawn = np.random.default_rng(0).normal(self.record_bytes, self.std_bytes, num_records)
        furthest = MAX_RECORD_BYTES - self.record_bytes
        return [int(size) for size in drawn.clip(self.record_bytes - furthest, self.record_bytes + furthest)]


WORKLOADS = {
    "resnet50": Workload(400, 0.224, 114_660, 0, 0.90, 8_000, 8, 2),
    "unet3d": Workload(7, 0.323, 146_600_628, 68_341_808, 0.90, 14, 10, 1),
    "cosmoflow": Workload(1, 0.0035, 2_828_486, 0, 0.70, 300, 32, 2),
}
