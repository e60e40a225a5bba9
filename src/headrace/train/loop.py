"""The loop: a batch, a step, and what is due after it.

After a step come, in this order, the evaluation (so that a checkpoint has it behind it), the checkpoint, and the step's
line in the record, which has the time of all but the evaluation in it. On a GPU what a step found is read one step
late, so its line is written one step late too; before a checkpoint everything is read, so that a step that went wrong
is never saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from headrace.errors import LoaderError
from headrace.telemetry import progress
from headrace.train.batches import Batch, real_rows, to_device
from headrace.train.checkpoint import Saved
from headrace.train.clock import Clock, Split
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Evaluation, Evaluator
from headrace.train.interrupt import StopRequest
from headrace.train.record import Journal
from headrace.train.schedules import Schedule
from headrace.train.step import Outcome, Stepper
from headrace.train.tally import Totals
from headrace.train.world import World


@dataclass(slots=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """Completed steps."""
    samples: int = 0
    """Real samples of these steps over all ranks."""
    loader: dict[str, Any] | None = None
    """The loader's state; None: where it is."""
    making: int | None = None
    """The step that is being made, counted from 1; None between steps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is due when, in steps."""

    total_steps: int
    steps_per_epoch: int
    evaluate_every: int
    """Steps between evaluations; there is one after the last step anyway."""
    checkpoint_every: int | None
    """Steps between checkpoints; there is one after the last step anyway. None: only that."""


@dataclass(slots=True)
class _Made:
    """A step that is made, with what is not yet known of it."""

    step: int
    lr: float
    outcome: Outcome
    split: Split | None = None
    """Where its time went; None while the step is the present one."""


class Loop:
    """Runs from a position to the end of a plan."""

    def __init__(
        self,
        plan: Plan,
        position: Position,
        world: World,
        model: nn.Module,
        loader: LoaderLike,
        stepper: Stepper,
        schedule: Schedule,
        evaluator: Evaluator | None,
        save: Callable[[Position], Saved | None],
        journal: Journal,
    ) -> None:
        """`save` writes a checkpoint of the position, if the run keeps any."""
        self.latest: Totals | None = None
        self.evaluation: Evaluation | None = None
        self._plan = plan
        self._position = position
        self._world = world
        self._model = model
        self._loader = loader
        self._stepper = stepper
        self._schedule = schedule
        self._evaluator = evaluator
        self._save = save
        self._journal = journal
        self._lag = 0 if world.device.type == "cpu" else 1
        self._unread: deque[_Made] = deque()
        self._unwritten: deque[_Made] = deque()
        self._clock = Clock()

    def run(self, request: StopRequest) -> str | None:
        """Train until the plan is done, or until a rank was asked to stop; the reason, if so. Collective."""
        self._clock.skip()
        with self._bar() as advance, closing(self._batches()) as batches:
            advance(self._position.step)
            while self._position.step < self._plan.total_steps:
                self._clock.lap("rest")
                self._position.making = self._position.step + 1
                batch = next(batches)
                self._clock.lap("wait")
                made = self._step(batch, request)
                stop = self._read(self._lag) and not self._done()
                self._after(stop)
                made.split = self._clock.next_step()
                self._write()
                advance(1, note=_note(self.latest))
                if stop:
                    return self._stopped()
        self._finish()
        return None

    def _step(self, batch: Batch, request: StopRequest) -> _Made:
        real, rows = real_rows(batch)
        if self._lag:
            real = to_device(real, self._world.device)
            self._clock.lap("copy")
        done = self._position.step
        lr = self._stepper.set_rate(self._schedule.multiplier(done, self._plan.total_steps))
        outcome = self._stepper.step(real, rows, done + 1, lambda: request.requested)
        self._clock.lap("compute")
        self._position.step, self._position.making = done + 1, None
        made = _Made(done + 1, lr, outcome)
        self._unread.append(made)
        return made

    def _read(self, lag: int) -> bool:
        """Read what steps found, all but the newest `lag`; whether a rank was asked to stop by the last one read."""
        while len(self._unread) > lag:
            made = self._unread.popleft()
            self.latest = made.outcome.totals(self._world)
            self._position.samples += self.latest.samples
            split = made.split or self._clock.split
            split.move(made.outcome.exposed.sec(), "compute", "communication")
            self._unwritten.append(made)
        return self.latest is not None and self.latest.stop

    def _after(self, stop: bool) -> None:
        step, plan = self._position.step, self._plan
        if not stop and (self._done() or step % plan.evaluate_every == 0):
            self._evaluate()
        every = plan.checkpoint_every
        if stop or self._done() or (every is not None and step % every == 0):
            self._checkpoint()
        self._note_restarts()
        if self._journal.feed_is_due():
            self._journal.feed(step, self._loader.meters())

    def _evaluate(self) -> None:
        if self._evaluator is None:
            return
        self._clock.lap("rest")
        self.evaluation = self._evaluator.run(self._model)
        self._clock.skip()
        self._journal.evaluate(self._position.step, self._epoch(self._position.step), self.evaluation)

    def _checkpoint(self) -> None:
        self._read(0)
        self._position.loader = self._loader.state_dict()
        self._clock.lap("rest")
        saved = self._save(self._position)
        if saved is not None:
            self._clock.lap("checkpoint")
            self._journal.checkpoint(self._position.step, saved)

    def _write(self) -> None:
        while self._unwritten:
            made = self._unwritten.popleft()
            assert made.split is not None
            totals = made.outcome.totals(self._world)
            self._journal.step(made.step, self._epoch(made.step), made.lr, totals, made.split)

    def _stopped(self) -> str:
        self._journal.feed(self._position.step, self._loader.meters())
        self._journal.stop(self._position.step, "sigterm")
        return "sigterm"

    def _note_restarts(self) -> None:
        self._journal.loader_restarts(self._position.step, getattr(self._loader, "restarts", ()))

    def _finish(self) -> None:
        """A run that had nothing left to do is still evaluated."""
        if self.latest is None:
            self._evaluate()
        self._journal.feed(self._position.step, self._loader.meters())

    def _done(self) -> bool:
        return self._position.step >= self._plan.total_steps

    def _epoch(self, step: int) -> int:
        return (step - 1) // self._plan.steps_per_epoch

    def _batches(self) -> Generator[Batch, None, None]:
        """Batches without end: each iteration of the loader goes on with its next epochs."""
        idle = 0
        while idle < 2:  # the first may be the end of an epoch that was resumed there
            idle += 1
            for batch in self._loader:
                idle = 0
                yield batch
            self._check_whole()
        raise LoaderError(f"the loader gave no batch after step {self._position.step}: it says it has more")

    def _check_whole(self) -> None:
        """An iteration ends with an epoch: one that ended earlier would leave the ranks at different batches."""
        step, per_epoch = self._position.step, self._plan.steps_per_epoch
        if step % per_epoch:
            raise LoaderError(
                f"every rank's loader must give the {per_epoch} batches of an epoch that steps_per_epoch says: that of "
                f"rank {self._world.rank} ended after step {step}, {step % per_epoch} batches into one"
            )

    def _bar(self) -> AbstractContextManager[Callable[..., None]]:
        if self._world.rank != 0:
            return nullcontext(lambda n=1, note="": None)
        return progress("train", self._plan.total_steps, "steps")


def _note(totals: Totals | None) -> str:
    return "" if totals is None or totals.loss is None else f"loss {totals.loss:.4f}"
