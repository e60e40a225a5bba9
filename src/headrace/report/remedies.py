"""What would make a run faster, and by how much: from where its time went, by arithmetic, and no measuring.

A step lasts W seconds, of which the part that bounds it takes X. A remedy makes X' of it, so samples/s rise to
W / (W - X + X') times as many, or, where it changes the samples of a step, to as many as these:

    input           the feed, whose T threads have no time left, makes a batch in W, and with T' threads in W T/T'; a
                    step is as long as the slower of the two: max(W - X, W T/T')
    checkpoint      X' = X/n where one in n is made; X/10 where it goes on in the background, which is measured
    communication   of replicas: X' = X/2 with half the bytes, at most, as far as bytes take the time
    guard           X' = X/n where it is done n times more seldom
    overhead        X is the same for a batch twice as large, and all else is twice as long: 2 W / (2 (W - X) + X)

`at_most` says that the formula leaves something out that can only make the gain smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.report.runlog import Run
from headrace.report.stages import Stage

ASYNC_STALL = 0.1
_LEAST_GAIN = 0.02
_CHECKPOINT_SHARE = 0.02
"""What checkpoints may take: they are made more seldom until they do."""


@dataclass(frozen=True)
class Remedy:
    """A change, and what it is predicted to give."""

    name: str
    how: str
    gain: float
    """By how much samples/s would rise: 0.4 is 40 % more."""
    au: float
    """Accelerator utilization afterwards, 0 to 1."""
    at_most: bool = False
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options to change, of the "loader" and the "trainer"; empty where it cannot be done for you."""

    def sentence(self, au: float) -> str:
        """As in `threads 2 to 6: AU 0.62 to 0.91, 1.47 times as many samples/s`."""
        most = "at most " if self.at_most else ""
        return f"{self.name}: AU {au:.2f} to {self.au:.2f}, {most}{1 + self.gain:.2f} times as many samples/s"


@dataclass(frozen=True)
class Case:
    """What a remedy is found by: a run, the shares of its parts (0 to 1), and its feed's stages."""

    run: Run
    shares: Mapping[str, float]
    stages: Sequence[Stage]
    slowest: Stage | None

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the last start."""
        found = self.run.attempts[-1].start.get("config") if self.run.attempts else None
        return found if isinstance(found, dict) else {}

    @property
    def cores(self) -> int | None:
        """Processors for each rank of rank 0's machine."""
        start = self.run.attempts[-1].start if self.run.attempts else {}
        machine = start.get("machine") or {}
        cpus, ranks = machine.get("cpus"), machine.get("local_ranks") or len(start.get("pids") or [0])
        return max(1, int(cpus) // max(1, int(ranks))) if cpus else None

    def remedy(self, name: str, how: str, part: str, left: float, **more: Any) -> Remedy:
        """One that leaves a share `left` of the step (of W) of what `part` takes."""
        after = 1 - self.shares[part] + left
        return Remedy(name, how, 1 / after - 1, min(1.0, self.shares["compute"] / after), **more)


def remedies(part: str, case: Case) -> list[Remedy]:
    """Those of the part that bounds a run, the largest gain first; none where headrace has none."""
    find = {"wait": _input, "checkpoint": _checkpoint, "communication": _communication, "guard": _guard, "rest": _rest}
    found = find[part](case) if part in find else []
    return sorted((one for one in found if one.gain >= _LEAST_GAIN), key=lambda one: -one.gain)


def _input(case: Case) -> list[Remedy]:
    stage, cores = case.slowest, case.cores
    if stage is None or stage.name != "transform" or stage.threads is None or cores is None:
        return []
    loader = case.config.get("loader") or {}
    work = 1 - case.shares["wait"]
    wanted = cores if work <= 0 else min(cores, math.ceil(stage.threads / work))
    kind = "processes" if (loader.get("processes") or 1) > 1 else "threads"
    if wanted <= stage.threads or (kind == "threads" and loader and loader.get("threads") is None):
        return []  # the loader tries threads out by itself
    left = max(0.0, stage.threads / wanted - work)
    how = f"headrace.Loader(..., {kind}={wanted}); there are {cores} processors for a rank"
    changes = {"loader": {kind: wanted}}
    name = f"{kind} {stage.threads} to {wanted}"
    return [case.remedy(name, how, "wait", left, at_most=True, changes=changes)]


def _checkpoint(case: Case) -> list[Remedy]:
    share, found = case.shares["checkpoint"], []
    if case.config.get("checkpoint_async") is False:
        changes: dict[str, dict[str, Any]] = {"trainer": {"checkpoint_async": True}}
        how, left = "headrace.Trainer(..., checkpoint_async=True)", ASYNC_STALL * share
        found.append(case.remedy("checkpoints in the background", how, "checkpoint", left, changes=changes))
    every = case.config.get("checkpoint_every")
    if isinstance(every, int):
        times = math.ceil(share / _CHECKPOINT_SHARE / (1 - share)) if share < 1 else 1
        changes = {"trainer": {"checkpoint_every": every * times}}
        how = f"headrace.Trainer(..., checkpoint_every={every * times}): more is lost in a crash"
        name = f"checkpoint_every {every} to {every * times}"
        found.append(case.remedy(name, how, "checkpoint", share / times, changes=changes))
    return found


def _communication(case: Case) -> list[Remedy]:
    start = case.run.attempts[-1].start if case.run.attempts else {}
    axes = [axis.partition("=")[0] for axis in str(start.get("mesh") or "").split(",")]
    if axes != ["dp"] or case.config.get("engine") is not None or case.config.get("compression") is not None:
        return []
    how = 'headrace.Trainer(..., compression="bf16"): half the bytes; it gains where bytes take the time'
    changes = {"trainer": {"compression": "bf16"}}
    left = case.shares["communication"] / 2
    return [case.remedy("gradients as bf16", how, "communication", left, at_most=True, changes=changes)]


def _guard(case: Case) -> list[Remedy]:
    guards = case.config.get("guards")
    if not isinstance(guards, dict):
        return []
    how = "headrace.Guards(snapshot_every=, check_every=, replay_every=): each four times as large"
    return [case.remedy("guards four times more seldom", how, "guard", case.shares["guard"] / 4, at_most=True)]


def _rest(case: Case) -> list[Remedy]:
    rest = case.shares["rest"]
    after = 2 * (1 - rest) + rest
    how = "a global batch twice as large: what a step costs beside its samples is then shared by twice as many"
    return [Remedy("batch 2 times as large", how, 2 / after - 1, min(1.0, 2 * case.shares["compute"] / after))]
