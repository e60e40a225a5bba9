"""What ranks know only of each other: replicas that differ, compute that does not repeat, ranks that are slow.

Every few steps each rank sends four integers to all: the sum of its parameters' bits, how many replays differed, and
the quantiles of its time a step. They are read after the next step, and before a checkpoint, so that no state is saved
that was not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.guards.exchange import Exchange, row_of
from headrace.train.guards.finding import Finding, Note
from headrace.train.guards.learning import Learning
from headrace.train.guards.options import Guards
from headrace.train.guards.replay import repeats
from headrace.train.guards.replicas import Difference, Replicas
from headrace.train.guards.stragglers import Pace, stragglers

Tell = Callable[[int, list[float], list[float]], None]
"""Takes a step, and of the ranks the medians and the 90th percentiles of their own part of the steps before, in s."""


class Survey:
    """Asks all ranks, and judges what they say. All ranks call each method at the same steps."""

    def __init__(self, options: Guards, learner: Learning, note: Note, tell: Tell | None = None) -> None:
        """Find who should hold the same. Collective."""
        self._options = options
        self._learner = learner
        self._note = note
        self._tell = tell
        self._replicas = Replicas(learner)
        self._exchange = Exchange(learner.world)
        self._asked = 0
        self._differed = 0
        self._pace = Pace()

    def timed(self, sec: float) -> None:
        """Count what this rank took for its own part of a step."""
        self._pace.add(sec)

    def replay(self, step: int, compute: Callable[[], list[Tensor]]) -> None:
        """Compute twice, if `step` is one of those in which that is due."""
        every = self._options.replay_every
        if every is not None and step % every == 0:
            self._differed += not repeats(compute, self._learner.model, self._learner.world.device)

    def is_due(self, step: int) -> bool:
        """Whether `act` has anything to do."""
        return self._exchange.pending or self._asks(step)

    def act(self, step: int) -> bool:
        """Read what was asked after an earlier step, and ask if that is due; whether replicas were repaired."""
        repaired = self._exchange.pending and self._read()
        if self._asks(step):
            self._ask(step)
        return repaired

    def settle(self, step: int) -> bool:
        """Ask and read at once, before something is saved; whether replicas were repaired."""
        if self._learner.world.size == 1 and self._options.replay_every is None:
            return False
        if not self._exchange.pending:
            self._ask(step)
        return self._read()

    def _asks(self, step: int) -> bool:
        check, replay = self._options.check_every, self._options.replay_every
        together = check is not None and self._learner.world.size > 1 and step % check == 0
        return together or (replay is not None and step % replay == 0)

    def _ask(self, step: int) -> None:
        self._asked = step
        self._exchange.launch(row_of(self._replicas.fingerprint(), self._differed, *self._pace.quantiles()))
        self._differed = 0

    def _read(self) -> bool:
        rows = self._exchange.read()
        quantiles = [row[2:] for row in rows]
        if self._tell is not None and len(rows) > 1 and all(median for median, _ in quantiles):
            p50_sec, p90_sec = ([usec / 1e6 for usec in column] for column in zip(*quantiles, strict=True))
            self._tell(self._asked, p50_sec, p90_sec)
        for finding in self._slow(quantiles):
            self._note(finding)
        self._judge_replays([rank for rank, row in enumerate(rows) if row[1]])
        return self._judge_replicas(self._replicas.differences([row[0] for row in rows]))

    def _slow(self, quantiles: Sequence[Sequence[int]]) -> list[Finding]:
        ratio = self._options.straggler_ratio
        return [] if ratio is None else stragglers(self._asked, quantiles, ratio)

    def _judge_replays(self, ranks: list[int]) -> None:
        if not ranks:
            return
        shown = ", ".join(map(str, ranks))
        detail = f"the same micro-batch gave other bits the second time on rank {shown}"
        raises = self._options.on_corruption == "raise"
        self._note(Finding("replay", self._asked, "the run ends" if raises else "noted", detail, {"ranks": ranks}))
        if raises:
            raise TrainingError(
                f"a forward and backward pass must give the same bits again: up to step {self._asked} {detail}; have "
                "that device checked, or turn on torch.use_deterministic_algorithms"
            )

    def _judge_replicas(self, differences: Sequence[Difference]) -> bool:
        raises = self._options.on_corruption == "raise"
        for one in differences:
            action = "the run ends" if raises else f"rank {one.source}'s taken by all"
            self._note(Finding("replica", self._asked, action, str(one), {"ranks": list(one.odd)}))
        if differences and raises:
            raise TrainingError(
                f"replicas must hold the same parameters: after step {self._asked} {differences[0]}; go on from a "
                "checkpoint, have that device's memory checked, or say on_corruption='repair'"
            )
        self._replicas.repair(differences)
        return bool(differences)
