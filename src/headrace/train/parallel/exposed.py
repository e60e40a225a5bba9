"""Communication of a step that no compute hid."""

from __future__ import annotations

import torch


class Exposed:
    """How long it took; on a GPU known only when the step is done there."""

    def __init__(
        self,
        sec: float = 0.0,
        marks: tuple[torch.cuda.Event, torch.cuda.Event] | None = None,
        forward_sec: float = 0.0,
        to_the_end: bool = False,
    ) -> None:
        self._sec = sec
        self._marks = marks
        self.forward_sec = forward_sec
        """Seconds of the forward passes."""
        self.to_the_end = to_the_end
        """Whether what comes after the passes is in it: else it is what they themselves waited for."""

    def sec(self) -> float:
        """Seconds of the backward passes, or from within them on."""
        return self._sec if self._marks is None else self._marks[0].elapsed_time(self._marks[1]) / 1e3


NOTHING = Exposed()
