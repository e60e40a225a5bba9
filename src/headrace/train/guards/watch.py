"""The guards of one run, as the loop calls them.

All they decide on is the same on every rank: the loss is a sum over the ranks that the step has anyway, and the norm is
that of gradients which are reduced already. So ranks skip, go back and stop together without asking each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.batches import Batch
from headrace.train.guards.bad_steps import BadSteps
from headrace.train.guards.finding import Finding, Note, log
from headrace.train.guards.learning import Learning
from headrace.train.guards.options import Guards
from headrace.train.guards.snapshots import Snapshots
from headrace.train.guards.spikes import Spikes
from headrace.train.guards.survey import Survey, Tell
from headrace.train.tally import Totals


class Watch:
    """Takes each step's result when it is read, and acts between steps."""

    def __init__(self, options: Guards, learner: Learning, note: Note, tell: Tell | None = None) -> None:
        """`note` keeps what is found, `tell` how long each rank takes. Collective."""
        self._options = options
        self._keep = note
        self._log = learner.world.rank == 0
        self._bad_steps = BadSteps(options, learner.world, self._note)
        self._spikes = Spikes(options)
        self._snapshots = Snapshots(learner) if options.spike_score is not None else None
        self._survey = Survey(options, learner, self._note, tell)
        self._next_copy = math.inf
        """The step after which one is due."""
        self._row_began = 0
        self._num_rollbacks = 0
        self._go_back = False

    @property
    def factor(self) -> float:
        """What the schedule's learning rate is to be multiplied by for the next step."""
        return self._bad_steps.factor

    def begin(self, step: int, state: dict[str, Any] | None) -> None:
        """Training goes on after `step` steps, from a saved `state` of the guards, if there is one.

        Copies of before are dropped: they may be of another model than the one that is there now.
        """
        if self._snapshots is not None:
            self._snapshots.forget()
        if state is not None:
            self._bad_steps.load_state_dict(state["bad_steps"])
            self._spikes.load_state_dict(state["spikes"])
            self._num_rollbacks = int(state["rollbacks"])
            self._spikes.in_a_row = 0  # there is no copy from before them: a row that goes on begins here
        self._take(step)

    def read(self, step: int, totals: Totals, own_loss: float, batch: Batch, overflowed: bool) -> None:
        """Take what a step found. Collective where it was bad. Raises TrainingError where the run must end.

        `overflowed`: its scaled gradients were too large. With a finite loss it says nothing of the model: it was left
        out, and is neither good nor bad.
        """
        if not totals.finite:
            self._bad_steps.bad(step, totals, own_loss, batch)
            return
        if overflowed:
            return
        self._bad_steps.good()
        scores = self._spikes.judge(totals)
        if scores:
            self._spiked(step, totals, scores)

    @property
    def in_doubt(self) -> bool:
        """Whether the latest steps were spikes, so that the state may be one to go back from."""
        return self._spikes.in_a_row > 0

    def settles(self, step: int) -> bool:
        """Whether `act` must know of every step up to this one: none is judged by a state that was put back since."""
        return self._go_back or step >= self._next_copy

    def act(self, step: int) -> bool:
        """After `step` steps: go back if that is due (and say so), else keep a copy if that is."""
        if self._survey.is_due(step):
            self._repaired(step, self._survey.act(step))
        return self._back_or_on(step)

    def settle(self, step: int) -> None:
        """Before the state after `step` steps is saved: what can be wrong with it is found now. Collective."""
        self._repaired(step, self._survey.settle(step))
        self._back_or_on(step)

    def before(self, step: int, compute: Callable[[], list[Tensor]]) -> None:
        """Before a step; `compute` gives loss and gradients of its first micro-batch on this rank alone."""
        self._survey.replay(step, compute)

    def timed(self, sec: float) -> None:
        """A step took this rank so long, without what it waited for others."""
        self._survey.timed(sec)

    def _repaired(self, step: int, repaired: bool) -> None:
        if repaired and self._snapshots is not None and not self.in_doubt:
            self._snapshots.forget()  # of a replica that was odd they may hold what was wrong with it
            self._take(step)

    def _back_or_on(self, step: int) -> bool:
        if self._go_back:
            self._roll_back(step)
            return True
        if step >= self._next_copy and not self.in_doubt:
            self._take(step)
        return False

    def state_dict(self) -> dict[str, Any]:
        """A JSON value, the same on every rank."""
        return {
            "bad_steps": self._bad_steps.state_dict(),
            "spikes": self._spikes.state_dict(),
            "rollbacks": self._num_rollbacks,
        }

    def _note(self, finding: Finding) -> None:
        if self._log:
            log(finding)
        self._keep(finding)

    def _take(self, step: int) -> None:
        if self._snapshots is not None:
            self._snapshots.take(step, self._spikes.state_dict())
            self._next_copy = step + self._options.snapshot_every

    def _spiked(self, step: int, totals: Totals, scores: dict[str, float]) -> None:
        values = {"loss": totals.loss, "gradient norm": totals.grad_norm}
        detail = " and ".join(
            f"the {name} {values[name]:.4g} is {score:.0f} deviations above the median"
            for name, score in scores.items()
        )
        if self._spikes.in_a_row == 1:
            self._row_began = step
        self._go_back = self._spikes.in_a_row >= self._options.spike_steps
        ends = self._go_back and self._num_rollbacks >= self._options.max_rollbacks
        action = f"number {self._spikes.in_a_row} in a row"
        if self._go_back:
            action += ", the run ends" if ends else ", the run goes back"
        self._note(Finding("spike", step, action, detail, {"scores": scores}))
        if ends:
            raise TrainingError(
                f"a run may go back {self._options.max_rollbacks} times at most: it did, and in step {step} {detail}; "
                "lower the learning rate, look at the batches of these steps, or raise spike_score"
            )

    def _roll_back(self, step: int) -> None:
        assert self._snapshots is not None
        first = self._row_began
        to_step, spikes = self._snapshots.go_back(first)
        self._spikes.load_state_dict(spikes)
        self._num_rollbacks += 1
        self._go_back = False
        self._next_copy = step + self._options.snapshot_every  # what was put back is the newest good state there is
        detail = f"the spike began in step {first}"
        action = f"back to the state after step {to_step}, on with the batches after step {step}"
        fields = {"to_step": to_step, "rollbacks": self._num_rollbacks}
        self._note(Finding("rollback", step, action, detail, fields))
