"""What bounds a run, on what evidence, and what removing it would gain.

Every step's wall time is split into compute, communication that is not hidden, copying to the device, waiting for
input, checkpoints and the rest. The first step of every attempt is left out: it starts everything up. Over the others,

    AU = seconds of compute / seconds of wall time

(accelerator utilization, as MLPerf Storage defines it), and the verdict is the largest part beside compute, if it is
large enough to bound the run. What is large enough differs. The feed and the copies run ahead of the steps, so a wait
that remains says that they are slower than the model: its rate is the run's rate, and a tenth of the time is enough.
The others simply come on top of compute, and must take a fifth. Else the run is compute-bound, which is what one wants.

Of several ranks one may hold up the others, whose waiting for it looks like communication: where the ranks' own times
are known and one of them has a tenth of a step more to do than the others, that is the verdict, unless some part takes
more than that on every rank. In a pipeline it is a stage that is too large. On a GPU a step that the host takes as long
to hand over as it lasts is launch-bound.

The gain is what Amdahl's law gives if the bounding part vanished: wall / (wall - part) - 1. It is an upper bound.
What a change would make of it is predicted by `remedies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.report import formatting as fmt
from headrace.report.ranks import RankTime, Straggler, rank_times, straggler
from headrace.report.remedies import Case, Remedy, remedies
from headrace.report.runlog import PARTS, Run, read_run
from headrace.report.stages import Stage, bottleneck, feed_stages

Bound: TypeAlias = Literal[
    "input",
    "copy",
    "compute",
    "communication",
    "guard",
    "checkpoint",
    "overhead",
    "straggler",
    "pipeline",
    "launch",
    "too short to tell",
    "unknown",
]

_LARGE_ENOUGH = {"wait": 0.10, "copy": 0.10, "communication": 0.20, "guard": 0.20, "checkpoint": 0.20, "rest": 0.20}
_BOUNDS: dict[str, Bound] = {
    "wait": "input",
    "copy": "copy",
    "communication": "communication",
    "guard": "guard",
    "checkpoint": "checkpoint",
    "rest": "overhead",
}
_MIN_STEPS = 5
_LAUNCH_BOUND = 0.9
_MOST_RANKS = 8

_WHAT = {
    "wait": "waiting for data",
    "copy": "copying batches to the device",
    "communication": "communication that compute does not hide",
    "guard": "what guards do between steps (Guards(snapshot_every=, check_every=, replay_every=))",
    "checkpoint": "writing checkpoints",
    "rest": "work between the parts that are measured, such as logging and Python code",
}
_OWN = {
    "wait": "waiting for data",
    "copy": "copying to the device",
    "compute": "compute",
    "guard": "guards",
    "checkpoint": "checkpoints",
    "rest": "work between the measured parts",
}
"""What a rank does while others wait for it."""


@dataclass(frozen=True)
class Verdict:
    """What bounds a run. Shares are of the wall time, 0 to 1; what is not known is None."""

    bound: Bound
    sentence: str
    shares: dict[str, float] = field(default_factory=dict)
    """By part: compute, communication, copy, wait, guard, checkpoint, rest."""
    au: float | None = None
    """Seconds of compute over seconds of wall time, without first steps."""
    evidence: tuple[str, ...] = ()
    predicted_gain: float | None = None
    """By how much steps/s would rise if the bounding part vanished: 0.4 is 40 % more. At most that much."""
    stage: str | None = None
    """The stage of the feed that bounds it, where the run is input-bound."""
    rank: int | None = None
    """The rank that the others wait for, where there is one."""
    remedies: tuple[Remedy, ...] = ()
    """What headrace can change, with the predicted gain, the largest first."""
    num_steps: int = 0
    """How many steps it is judged by."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def verdict(run: str | Path | Run) -> Verdict:
    """The verdict on a run: its folder, its file of events, or what `read_run` gave."""
    run = run if isinstance(run, Run) else read_run(run)
    rows = run.steady_rows()
    num_steps = int(rows.sum())
    if num_steps < _MIN_STEPS:
        return Verdict(
            "too short to tell",
            f"Too short to tell: it takes at least {_MIN_STEPS} steps after the first one, and there are {num_steps}.",
            num_steps=num_steps,
        )
    shares = _shares(run, rows)
    if shares is None:
        return Verdict("unknown", "Unknown: the steps do not say where their time went.", num_steps=num_steps)
    times = rank_times(run)
    slow = straggler(times)
    if slow is not None and slow.extra_sec / slow.sec >= _common_share(times, slow.sec):
        return _held_up(run, slow, shares, num_steps)
    part = _bounding_part(shares)
    if part is None:
        launch = _launch_share(run, rows)
        if launch is not None and launch >= _LAUNCH_BOUND:
            return _launch_bound(launch, shares, num_steps)
        return _compute_bound(shares, num_steps)
    gain = shares[part] / (1 - shares[part]) if shares[part] < 1 else None
    evidence = [_split(shares, num_steps)]
    stages = feed_stages(run) if part == "wait" else []
    slowest = bottleneck(stages)
    stage = slowest.name if slowest else None
    if part == "wait":
        evidence += _stage_evidence(slowest, stages)
    found = remedies(part, Case(run, shares, stages, slowest))
    return Verdict(
        _BOUNDS[part],
        _sentence(part, shares, stage, gain),
        shares,
        shares["compute"],
        (*evidence, *(one.sentence(shares["compute"]) for one in found)),
        gain,
        stage,
        remedies=tuple(found),
        num_steps=num_steps,
    )


def _shares(run: Run, rows: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float] | None:
    known = rows & np.isfinite(run.steps["sec"])
    for part in PARTS:
        known &= np.isfinite(run.steps[f"{part}_sec"])
    wall = float(run.steps["sec"][known].sum())
    if wall <= 0:
        return None
    return {part: float(run.steps[f"{part}_sec"][known].sum()) / wall for part in PARTS}


def _bounding_part(shares: dict[str, float]) -> str | None:
    large = {part: share for part, share in shares.items() if share >= _LARGE_ENOUGH.get(part, 2)}
    return max(large, key=lambda part: large[part], default=None)


def _common_share(times: Sequence[RankTime], sec: float) -> float:
    """The largest share of a step of `sec` that a part takes on every rank, and that is large enough to bound a run."""
    shares = {part: min(one.parts[part] for one in times) / sec for part in _OWN if part != "compute"}
    return max((share for part, share in shares.items() if share >= _LARGE_ENOUGH[part]), default=0.0)


def _compute_bound(shares: dict[str, float], num_steps: int) -> Verdict:
    largest = max(_BOUNDS, key=lambda part: shares[part])
    evidence = (
        _split(shares, num_steps),
        f"the largest part beside compute is {_WHAT[largest]}, and too small to bound the run",
    )
    sentence = (
        f"Compute-bound: {fmt.percent(shares['compute'])} of the time goes into the model. "
        "The feed keeps up; a faster step needs a faster model or device."
    )
    return Verdict("compute", sentence, shares, shares["compute"], evidence, num_steps=num_steps)


def _held_up(run: Run, slow: Straggler, shares: dict[str, float], num_steps: int) -> Verdict:
    """One rank has more to do than the others; in a pipeline that is its stage."""
    start = run.attempts[-1].start if run.attempts else {}
    in_stages = "pp" in str(start.get("mesh") or "")
    what = _OWN[slow.part]
    sentence = (
        f"{'Pipeline' if in_stages else 'Straggler'}-bound: the others wait for rank {slow.rank}, which takes "
        f"{fmt.seconds(slow.extra_sec)} longer for a step of {fmt.seconds(slow.sec)}, most of it {what}. "
        f"If it were as they are, the run would make up to {1 + slow.gain:.2f} times as many steps a second."
    )
    if in_stages:
        sentence += " Its stage has too much of the model: choose the stages by hand (pp_stages=)."
    evidence = tuple(
        f"rank {one.rank} itself: {fmt.seconds(one.own_sec)} of a step of {fmt.seconds(one.sec)}"
        for one in sorted(rank_times(run), key=lambda one: -one.own_sec)[:_MOST_RANKS]
    )
    return Verdict(
        "pipeline" if in_stages else "straggler",
        sentence,
        shares,
        shares["compute"],
        (_split(shares, num_steps), *evidence),
        slow.gain,
        rank=slow.rank,
        num_steps=num_steps,
    )


def _launch_share(run: Run, rows: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    """Of the time of the steps, how much the host took to hand them to the device; None where it computes itself."""
    launch, sec = run.steps["launch_sec"][rows], run.steps["sec"][rows]
    known = np.isfinite(launch) & np.isfinite(sec)
    return float(launch[known].sum() / sec[known].sum()) if known.any() and sec[known].sum() > 0 else None


def _launch_bound(launch: float, shares: dict[str, float], num_steps: int) -> Verdict:
    sentence = (
        f"Launch-bound: the host takes {fmt.percent(min(1.0, launch))} of a step to hand it to the device, which so "
        "has no work ahead. Fewer and larger operations would help: a larger batch, or compile=True; an .item() in the "
        "loss, where the host waits for the device, counts too."
    )
    evidence = (_split(shares, num_steps), f"handing over takes {launch:.2f} of a step's time; from {_LAUNCH_BOUND} on")
    return Verdict("launch", sentence, shares, shares["compute"], evidence, num_steps=num_steps)


def _sentence(part: str, shares: dict[str, float], stage: str | None, gain: float | None) -> str:
    bound = _BOUNDS[part].capitalize()
    text = f"{bound}-bound: {fmt.percent(shares[part])} of the time goes into {_WHAT[part]}."
    if gain is not None:
        text += f" Without that, the run would make up to {1 + gain:.2f} times as many steps a second."
    if stage is not None:
        text += f" The feed's slowest stage is {stage}."
    return text


def _split(shares: dict[str, float], num_steps: int) -> str:
    largest = sorted(shares, key=lambda part: -shares[part])
    return f"of the time of {num_steps:,} steps: " + ", ".join(
        f"{part} {fmt.percent(shares[part])}" for part in largest
    )


def _stage_evidence(slowest: Stage | None, stages: Sequence[Stage]) -> list[str]:
    if slowest is None:
        loads = [_load(stage) for stage in stages if stage.busy_share is not None]
        held_up = "the feed is held up between them: by too few cores for it and the model, or too few batches ahead"
        return [*loads, f"no stage is busy most of the time, so {held_up} (prefetch=)"] if loads else []
    evidence = [f"{_load(slowest)}, at {fmt.rate(slowest.items_per_sec, 'samples')}"]
    if slowest.name == "transform":
        each = fmt.rate(slowest.items_per_thread_sec, "samples")
        evidence.append(f"a thread of it makes {each}: more of them (threads=), or less work a sample, would help")
    return evidence


def _load(stage: Stage) -> str:
    if stage.busy_share is None or stage.threads is None:
        return f"{stage.name} kept {fmt.number(stage.busy_threads, 2)} threads busy on average"
    return (
        f"{stage.name} kept its {fmt.plural(stage.threads, 'thread')} busy {fmt.percent(stage.busy_share)} of the time"
    )
