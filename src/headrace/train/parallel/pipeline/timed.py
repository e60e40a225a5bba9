"""A stage that knows how long it worked: on the CPU the rest of a schedule's time is waiting for other stages."""

from __future__ import annotations

import time
from typing import Any

from torch.distributed.pipelining import PipelineStage


class TimedStage(PipelineStage):
    """Counts the seconds of its forward and backward passes."""

    _sec = 0.0

    def take_sec(self) -> float:
        """Seconds since the last call."""
        sec, self._sec = self._sec, 0.0
        return sec

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """See PipelineStage."""
        began = time.perf_counter()
        try:
            return super().forward_one_chunk(*args, **kwargs)
        finally:
            self._sec += time.perf_counter() - began

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """See PipelineStage."""
        began = time.perf_counter()
        try:
            return super().backward_one_chunk(*args, **kwargs)
        finally:
            self._sec += time.perf_counter() - began
