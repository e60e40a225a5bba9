"""The step under way in a loop of another library, as it is told: a batch, a backward pass, the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from headrace.adapters.monitor import Monitor


class FollowedStep:
    """For one thread. What is told at the turns divides the computing into forward, backward and optimizer."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._loss: Any = None
        self._lr: float | None = None
        self._is_open = False

    def begin(self) -> None:
        """The loop goes to work on a batch; the first since the last step begins a step."""
        if not self._is_open:
            self._is_open = True
            self._monitor.begin_step()
            self._monitor.parts.lap()

    def forward_done(self) -> None:
        """The backward pass begins."""
        self._monitor.parts.lap("forward")

    def backward_done(self) -> None:
        """It is over, of all replicas."""
        self._monitor.parts.lap("backward")

    @contextmanager
    def backward(self, *_: Any, **__: Any) -> Iterator[None]:
        """The block is the backward pass."""
        self.forward_done()
        yield
        self.backward_done()

    def add_loss(self, loss: Any) -> None:
        """A tensor that is a part of the step's loss: of batches that are accumulated, each share of the mean."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def optimizing(self, optimizer: Optimizer) -> None:
        """Gradients are whole."""
        self._lr = optimizer.param_groups[0]["lr"]

    def optimizer_done(self) -> None:
        """Parameters are new. Clipping gradients before that is the optimizer's, too."""
        self._monitor.parts.lap("optimizer")

    def end(self) -> None:
        """The step is done, if one was begun."""
        if self._is_open:
            self._monitor.note(loss=self._loss, lr=self._lr)
            self._monitor.end_step()
            self._loss, self._is_open = None, False

    def drop(self) -> None:
        """What was begun becomes no step."""
        if self._is_open:
            self._monitor.drop_step()
            self._loss, self._is_open = None, False
