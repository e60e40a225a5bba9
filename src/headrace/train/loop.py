"""The loop: a batch, a step, and what is due after it.

After a step come, in this order, the evaluation (so that a checkpoint has it behind it), the checkpoint, and the step's
line in the record, which has the time of all but the evaluation in it. On a GPU what a step found is read one step
late, so its line is written one step late too; before a checkpoint everything is read, so that a step that went wrong
is never saved. A checkpoint that is due amid spikes waits until they end, except the last one of a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import nn

from headrace.errors import LoaderError
from headrace.telemetry import progress, silent
from headrace.train.batches import Batch, real_rows, to_device
from headrace.train.clock import Clock, Split
from headrace.train.contract import LoaderLike
from headrace.train.device_clock import DeviceClock
from headrace.train.evaluation import Evaluation, Evaluator
from headrace.train.flops import FlopCount
from headrace.train.guards import Watch
from headrace.train.interrupt import StopRequest
from headrace.train.parallel import NOTHING, Exposed, Traffic
from headrace.train.record import Journal
from headrace.train.saving import Saved
from headrace.train.schedules import Schedule
from headrace.train.step import Outcome, Stepper
from headrace.train.tally import Totals
from headrace.train.watchdog import Pulse
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
    guards: dict[str, Any] | None = None
    """The guards' state; None: there are none, or they begin anew."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is due when, in steps."""

    total_steps: int
    steps_per_epoch: int
    evaluate_every: int
    """Steps between evaluations; there is one after the last step anyway."""
    checkpoint_every: int | None
    """Steps between checkpoints; there is one after the last step anyway. None: only that."""


class Saves(Protocol):
    """Saves positions, if the run keeps any; see `archive.Archive`."""

    @property
    def failed(self) -> bool:
        """Whether a save that was begun has failed; `wait` raises why."""

    def is_best(self, position: Position, found: Evaluation | None) -> bool:
        """Whether this evaluation makes a checkpoint due."""

    def save(self, position: Position, found: Evaluation | None) -> bool:
        """Save, or begin to; False: the run keeps no checkpoints."""

    def wait(self) -> None:
        """Wait for what was begun."""

    def finished(self) -> list[Saved]:
        """What was committed since the last call."""


@dataclass(slots=True)
class _Made:
    """A step that is made, with what is not yet known of it."""

    step: int
    lr: float
    outcome: Outcome
    batch: Batch | None
    """Of this rank, as long as guards may ask whose samples these were."""
    totals: Totals | None = None
    """What it found; None until it is read."""
    split: Split | None = None
    """Where its time went, as soon as the clock knows; None while the step is the present one."""


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
        saves: Saves,
        journal: Journal,
        watch: Watch | None,
        pulse: Pulse,
        flops: FlopCount,
    ) -> None:
        self.latest: Totals | None = None
        self.evaluation: Evaluation | None = None
        self.traffic: Traffic | None = None
        """Gradients that this rank sent."""
        self.overflowed_steps = 0
        self._plan = plan
        self._position = position
        self._world = world
        self._model = model
        self._loader = loader
        self._stepper = stepper
        self._schedule = schedule
        self._evaluator = evaluator
        self._saves = saves
        self._journal = journal
        self._watch = watch
        self._pulse = pulse
        self._flops = flops
        self._lag = 0 if world.device.type == "cpu" else 1
        self._put_off = False
        self._saving = 0
        self._unread: deque[_Made] = deque()
        self._unwritten: deque[_Made] = deque()
        self._saved_now = False
        self.clock = Clock() if self._lag == 0 else DeviceClock()
        """Where the time of steps goes."""

    def run(self, request: StopRequest) -> str | None:
        """Train until the plan is done, or until a rank was asked to stop; the reason, if so. Collective."""
        if self._watch is not None:
            self._watch.begin(self._position.step, self._position.guards)
        self._stepper.forget()
        first = self._position.step + 1
        self.clock.skip()
        self._pulse.beat("start", self._position.step + 1)
        with self._bar() as advance, closing(self._batches()) as batches:
            advance(self._position.step)
            while self._position.step < self._plan.total_steps:
                self.clock.ask()
                self._position.making = self._position.step + 1
                batch = next(batches)
                self.clock.lap("wait")
                made = self._step(batch, request)
                stop = self._read(self._lag) and not self._done()
                self._after(stop)
                made.split = self.clock.next_step()
                self._write()
                if advance is not silent:
                    advance(1, note=_note(self.latest))
                if stop:
                    return self._stopped()
                if made.step == first:
                    request.begin()
        self._finish()
        return None

    def _step(self, batch: Batch, request: StopRequest) -> _Made:
        real, rows = real_rows(batch)
        if self._lag:
            real = to_device(real, self._world.device)
            self.clock.lap("copy")
        done = self._position.step
        if self._watch is not None and rows:
            self._watch.before(done + 1, lambda: self._stepper.alone(real, rows))
            self.clock.lap("guard")
        multiplier = self._schedule.multiplier(done, self._plan.total_steps)
        lr = self._stepper.set_rate(multiplier if self._watch is None else multiplier * self._watch.factor)
        self.clock.begin()
        ends, counted = partial(self._ends, request), self._flops.around(rows)
        outcome = self._stepper.step(real, rows, done + 1, ends, self.clock.lap, counted)
        self._position.step, self._position.making = done + 1, None
        if outcome.traffic is not None:
            self.traffic = outcome.traffic + self.traffic
        if outcome.scaled is not None:
            self.overflowed_steps += outcome.scaled.overflowed
        self._pulse.beat("training", done + 2)
        made = _Made(done + 1, lr, outcome, None if self._watch is None else real)
        self._unread.append(made)
        return made

    def _read(self, lag: int) -> bool:
        """Read what steps found, all but the newest `lag`; whether a rank was asked to stop by the last one read."""
        while len(self._unread) > lag:
            made = self._unread.popleft()
            self.latest = made.totals = made.outcome.totals(self._world)
            self._position.samples += self.latest.samples
            self._unwritten.append(made)
            if self._watch is not None and made.batch is not None:
                own_loss, overflowed = made.outcome.sums.own_loss(), made.outcome.overflowed
                self._watch.read(made.step, self.latest, own_loss, made.batch, overflowed)
                made.batch = None
        return self.latest is not None and self.latest.stop

    def _after(self, stop: bool) -> None:
        step, plan = self._position.step, self._plan
        done, every = step >= plan.total_steps, plan.checkpoint_every
        evaluates = not stop and (done or step % plan.evaluate_every == 0)
        if evaluates:
            self._read(0)  # guards judge a state before it is evaluated
        rewound = self._watch is not None and self._guard(self._watch)
        found = self._evaluate() if evaluates else None
        last = stop or done
        due = self._put_off or (every is not None and (rewound or step % every == 0))
        if last or due or (found is not None and self._saves.is_best(self._position, found)):
            self._put_off = not self._checkpoint(found, last) and due
        if self._saving:
            self._note_saved()
        if restarts := getattr(self._loader, "restarts", ()):
            self._journal.loader_restarts(step, restarts)
        if self._journal.feed_is_due():
            self._journal.feed(step, self._loader.meters())

    def _guard(self, watch: Watch) -> bool:
        """Let the guards act; whether the model went back, so that checkpoints since then are of what is left."""
        if watch.settles(self._position.step):
            self._read(0)
        self.clock.lap("rest")
        rewound = watch.act(self._position.step)
        self.clock.lap("guard")
        return rewound

    def _evaluate(self) -> Evaluation | None:
        if self._evaluator is None:
            return None
        self.clock.pause()
        self.evaluation = self._evaluator.run(self._model, lambda: self._pulse.beat("evaluation"))
        self._pulse.beat("training")
        self.clock.skip()
        self._journal.evaluate(self._position.step, self._epoch(self._position.step), self.evaluation)
        return self.evaluation

    def _checkpoint(self, found: Evaluation | None, last: bool) -> bool:
        """Save; the last one of a run is waited for. False: the state is in doubt, and nothing was saved.

        A failed save is why a run may stop: it is raised here.
        """
        self._read(0)
        self._write_known(wait=True)
        if self._watch is not None:
            self.clock.lap("rest")
            self._watch.settle(self._position.step)
            self.clock.lap("guard")
            if self._watch.in_doubt and not last:
                return False
            self._position.guards = self._watch.state_dict()
        self._position.loader = self._loader.state_dict()
        self.clock.lap("rest")
        self._pulse.beat("checkpoint")
        self._journal.flush()
        saved = self._saves.save(self._position, found)
        if saved and last:
            self._saves.wait()
        self._pulse.beat("training")
        if saved:
            self._saving += 1
            self._saved_now = True
            self.clock.lap("checkpoint")
        return True

    def _ends(self, request: StopRequest) -> bool:
        return request.requested or (self._saving > 0 and self._saves.failed)

    def _note_saved(self) -> None:
        for saved in self._saves.finished():
            self._saving -= 1
            self._journal.checkpoint(saved)

    def _write(self) -> None:
        self._write_known(wait=self._saved_now)
        if self._saved_now:
            self._journal.flush()  # a restart does not do these steps again
            self._saved_now = False

    def _write_known(self, wait: bool) -> None:
        """Write down the steps whose times are known; all but the present one, if the device may be waited for."""
        if wait:
            self.clock.settle()
        while self._unwritten:
            split = self._unwritten[0].split
            if split is None or not self.clock.knows(split):
                return
            self._write_down(self._unwritten.popleft(), split)

    def _write_down(self, made: _Made, split: Split) -> None:
        assert made.totals is not None
        outcome = made.outcome
        if outcome.exposed is not NOTHING:
            _take_out(outcome.exposed, split)
        if self._watch is not None:
            self._watch.timed(split.own)
        epoch = self._epoch(made.step)
        counted = self._flops.fields(made.totals.samples, split.sec)
        self._journal.step(made.step, epoch, made.lr, made.totals, split, outcome.traffic, outcome.scaled, counted)

    def _stopped(self) -> str:
        self._write_known(wait=True)
        self._journal.feed(self._position.step, self._loader.meters())
        self._journal.stop(self._position.step, "sigterm")
        return "sigterm"

    def _finish(self) -> None:
        """A run that had nothing left to do is still evaluated."""
        if self.latest is None:
            self._evaluate()
        self._write_known(wait=True)
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
            return nullcontext(silent)
        return progress("train", self._plan.total_steps, "steps")


def _take_out(exposed: Exposed, split: Split) -> None:
    """Count as communication what the passes waited for; if that goes on after them, the end is counted already."""
    counted = split.communication if exposed.to_the_end else 0.0
    split.move(exposed.sec() - counted, "passes" if split.passes else "backward", "communication")
    split.move(exposed.forward_sec, "forward", "communication")


def _note(totals: Totals | None) -> str:
    return "" if totals is None or totals.loss is None else f"loss {totals.loss:.4f}"
