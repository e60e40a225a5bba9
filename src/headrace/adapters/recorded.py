"""A loader that writes a run's events while another library's loop iterates it, for `headrace report`.

What a loop does between two batches is its step: the time in `next` is waiting, the rest is computing. So nothing of
the loop has to change, and Lightning's Trainer and Fabric, Accelerate, Hugging Face's Trainer and a loop of one's own
are all the same here. The state is the loader's, wherever the loop keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.adapters.monitor import Monitor
from headrace.alarms import Alarms
from headrace.errors import OptionError
from headrace.load import Loader


class Recorded:
    """Give it to a loop in place of the loader. Rank 0 writes; a run that is started again goes on in its folder."""

    def __init__(self, loader: Loader, run_dir: str | Path, *, alarms: Alarms | None = None) -> None:
        """`run_dir` is made if it is not there; `alarms` are as for a Monitor.

        Raises OptionError for what is no headrace.Loader.
        """
        if not isinstance(loader, Loader):
            raise OptionError(f"Recorded is for a headrace.Loader: got a {type(loader).__name__}")
        self.loader = loader
        self._monitor = Monitor(run_dir, alarms=alarms)
        self._batches = self._monitor.watch(loader)

    def note(self, *, loss: float | None = None, lr: float | None = None, **metrics: float) -> None:
        """Say something of the step under way, for its line in the record. Numbers on the host, of this rank."""
        self._monitor.note(loss=loss, lr=lr, samples=None, **metrics)

    def write(self, event: str, **fields: Any) -> None:
        """Record an event of another kind; see `Monitor.write`."""
        self._monitor.write(event, **fields)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._monitor.steps_done = self._steps_done()
        try:
            for batch in self._batches:
                if "__key__" not in batch:
                    self._monitor.note(samples=self.loader.global_batch_size // self._monitor.world_size)
                self._monitor.begin_step()
                try:
                    yield batch
                finally:  # most loops know the length, and never ask for a batch after the last one
                    self._monitor.end_step()
        finally:
            self._monitor.pause()

    @property
    def steps_done(self) -> int:
        """Steps in the record that are complete."""
        return self._monitor.steps_done

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be recorded any more."""
        return self._monitor.is_closed

    def close(self) -> None:
        """The run is complete: record its end."""
        self._monitor.close()

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The loader's."""
        self.loader.load_state_dict(state)

    def _steps_done(self) -> int:
        state = self.loader.state_dict()
        done: int = state["epoch"] * self.loader.steps_per_epoch + state["position"] // self.loader.global_batch_size
        return done
