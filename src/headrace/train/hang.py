"""What a rank that makes no progress is at, and who of all ranks is to blame.

Each rank that hangs leaves a sighting of itself in `RUN/hang`: the stacks of its threads to read, and a line of JSON to
judge by. In a hang nearly all ranks wait for one. That one has either left no word (it was stopped, or holds the
interpreter's lock), or is seen in code that waits for nobody. Where all wait, some left out a collective that others
are in. Needs no torch.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

FOLDER = "hang"
REPORT = "report.txt"

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_REDUCTION = "the reduction of gradients"
_WAITS = {
    ("train/tally.py", "wait"): "all_reduce",
    ("train/parallel/compression/reducer.py", "go_on"): _REDUCTION,
    ("train/guards/exchange.py", "read"): "all_gather_into_tensor",
    ("train/background.py", "wait"): "work in its background",
    ("train/loss_scale.py", "_divide"): "the scaling of the loss",
    ("train/guards/update.py", "step_if"): "the guarded step",
}
"""What our own functions wait for with a call into C, or into the standard library, which leaves no frame to see."""
_STDLIB = str(sysconfig.get_paths()["stdlib"]) + os.sep
_SITE = os.sep + "site-packages" + os.sep
_TORCH = _SITE + "torch" + os.sep
_OPS = _TORCH + "_ops.py"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a rank was when it had made no progress for too long."""

    rank: int
    pid: int
    step: int | None
    """The step that was being made, counted from 1; None before the first."""
    phase: str
    sec: float
    """Since its last progress."""
    waits: bool
    """Whether it was waiting for other ranks, or for its device."""
    place: str
    """Such as "all_reduce" or "user code (loss.py:12, in loss)"."""
    stack: str
    """Of the thread that trains."""


def sight(rank: int, step: int | None, phase: str, sec: float, frame: FrameType) -> Sighting:
    """This process's sighting; `frame` is where its training thread is."""
    stack = traceback.extract_stack(frame)
    waits, place = place_of(stack)
    return Sighting(rank, os.getpid(), step, phase, round(sec, 1), waits, place, "".join(traceback.format_list(stack)))


def place_of(stack: Iterable[traceback.FrameSummary]) -> tuple[bool, str]:
    """Whether a stack, outermost frame first, waits for other ranks or the device, and what to call where it is."""
    inner = [frame for frame in reversed(list(stack)) if not _is_passage(frame)]
    user = next((frame for frame in inner if not _is_library(frame)), None)
    first = inner[0] if inner else None
    if first is None:
        return False, "the standard library"
    if _within(first, "distributed"):
        return True, _collective(inner) + _called_from(inner)
    wait = _WAITS.get((first.filename.removeprefix(_PACKAGE), first.name))
    if wait is not None:
        return True, wait
    if _within(first, "autograd") and first.name == "_engine_run_backward":
        return True, _REDUCTION
    if _within(first, "cuda") and first.name == "synchronize":
        return True, "work of its GPU"
    if first.filename.startswith(os.path.join(_PACKAGE, "load")):
        return False, "its loader"
    if user is not None and not first.filename.startswith(_PACKAGE):
        return False, f"user code ({_line(user)}, in {user.name})"
    return False, f"{_line(first)}, in {first.name}"


def judge(sightings: Mapping[int, Sighting], ranks: Iterable[int], limit_sec: float) -> tuple[int, str]:
    """Whom of `ranks` to blame, and what to say of it and the others; `sightings` by rank, at least one."""
    silent = [rank for rank in ranks if rank not in sightings]
    groups = _grouped(sightings)
    if silent:
        blamed = silent
        said = f"without a sign of life for {limit_sec:g} s (stopped, or in code that holds Python's lock)"
    else:
        # Whoever waits for nobody holds up the others. Where all wait, the few are the odd ones.
        (waits, place), blamed = min(groups.items(), key=lambda item: (item[0][0], len(item[1]), item[1]))
        del groups[waits, place]
        said = f"{'waiting in' if waits else 'in'} {place} for {sightings[blamed[0]].sec:.0f} s"
    also = f" ({_named(blamed[1:])} too)" if blamed[1:] else ""
    others = " and ".join(_clause(ranks, *key) for key, ranks in groups.items())
    said += f"{also}, while {others}" if others else also
    if others and not silent and all(one.waits for one in sightings.values()):
        said += ": a collective was left out, or called in another order"
    return blamed[0], said


def write_sighting(folder: Path, sighting: Sighting) -> None:
    """Leave a sighting with the stacks of all threads for people, and one line for `read_sightings`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"rank {sighting.rank}, step {sighting.step}, {sighting.phase}: {sighting.sec} s in {sighting.place}\n"
    (folder / f"rank-{sighting.rank}.txt").write_text(head + _all_stacks())
    partial = folder / f"rank-{sighting.rank}.partial"
    partial.write_text(json.dumps(asdict(sighting)))
    partial.replace(folder / f"rank-{sighting.rank}.json")


def read_sightings(folder: Path, pids: list[int]) -> dict[int, Sighting]:
    """The sightings left by processes of these ids, by rank; those of an earlier attempt are not."""
    found = [Sighting(**json.loads(path.read_text())) for path in folder.glob("rank-*.json")]
    return {one.rank: one for one in found if one.rank < len(pids) and one.pid == pids[one.rank]}


def _all_stacks() -> str:
    parts = [f"\nthread {number}\n{''.join(traceback.format_stack(f))}" for number, f in sys._current_frames().items()]
    return "".join(parts)


def _grouped(sightings: Mapping[int, Sighting]) -> dict[tuple[bool, str], list[int]]:
    groups: dict[tuple[bool, str], list[int]] = {}
    for rank, one in sorted(sightings.items()):
        groups.setdefault((one.waits, one.place), []).append(rank)
    return groups


def _clause(ranks: list[int], waits: bool, place: str) -> str:
    many = len(ranks) > 1
    verb = ("wait in" if many else "waits in") if waits else ("are in" if many else "is in")
    return f"{_named(ranks)} {verb} {place}"


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _collective(inner: list[traceback.FrameSummary]) -> str:
    """The name by which it was called: the outermost of the frames in torch.distributed."""
    calls = []
    for frame in inner:
        if not _within(frame, "distributed"):
            break
        calls.append(frame)
    named = [frame.name for frame in calls if frame.filename.endswith("distributed_c10d.py")]
    return (named or [calls[0].name])[-1]


def _called_from(inner: list[traceback.FrameSummary]) -> str:
    caller = next(frame for frame in [*inner, inner[-1]] if not _within(frame, "distributed") or frame is inner[-1])
    return "" if _is_library(caller) else f" ({_line(caller)}, in {caller.name})"


def _line(frame: traceback.FrameSummary) -> str:
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"


def _within(frame: traceback.FrameSummary, part: str) -> bool:
    """Whether a frame lies in a part of torch."""
    return _TORCH + part + os.sep in frame.filename


def _is_stdlib(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith((_STDLIB, "<frozen")) and _SITE not in frame.filename


def _is_passage(frame: traceback.FrameSummary) -> bool:
    """Whether a frame says nothing of who called: the standard library's, and those by which torch calls kernels."""
    return _is_stdlib(frame) or frame.filename.endswith(_OPS)


def _is_library(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_PACKAGE) or _SITE in frame.filename or _is_stdlib(frame)
