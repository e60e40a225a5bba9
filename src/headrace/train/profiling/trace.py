"""What a trace of the profiler's has, sorted by what it is. Times are in microseconds of the trace's own clock."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from headrace.errors import StorageError
from headrace.train.profiling.spans import Span

PART = "headrace."
STEP = "ProfilerStep#"
"""What torch's own names of steps begin with, which viewers know."""
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")


class Timed(NamedTuple):
    """Something that took a while."""

    begin: float
    end: float
    name: str
    thread: Any = None
    link: int | None = None
    """What a call has in common with the work that it gave the device."""

    @property
    def span(self) -> Span:
        """From when to when."""
        return self.begin, self.end


@dataclass(slots=True)
class Trace:
    """Of some steps of one rank; all lists in the order in which things began."""

    about: dict[str, Any]
    """rank, first_step and last_step."""
    steps: list[Timed] = field(default_factory=list)
    parts: list[Timed] = field(default_factory=list)
    """Of the loop, one after the other without gaps; named as the kinds of a step's time, as "wait"."""
    operators: list[Timed] = field(default_factory=list)
    """Of all threads, inner ones within outer ones."""
    optimizer: list[Timed] = field(default_factory=list)
    calls: list[Timed] = field(default_factory=list)
    """Of the host to the device's driver."""
    work: list[Timed] = field(default_factory=list)
    """Of the device: kernels, copies and fills."""

    @property
    def window(self) -> Span:
        """From the beginning of the first step to the end of the last."""
        return self.steps[0].begin, self.steps[-1].end

    @property
    def thread(self) -> Any:
        """The one that trains."""
        return self.steps[0].thread


def read_trace(path: str | Path) -> Trace:
    """The trace in a file that a run has left. Raises StorageError where there is none."""
    try:
        data = Path(path).read_bytes()
        content = orjson.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, orjson.JSONDecodeError) as err:  # gzip's own error is an OSError
        raise StorageError(f"cannot read a profile from {path}: {err}; give a file of RUN/profile/*.json.gz") from err
    if not isinstance(content, dict) or "headrace" not in content:
        raise StorageError(f"{path} is no profile of headrace's: give a file of RUN/profile/*.json.gz")
    return sorted_trace(content)


def sorted_trace(content: dict[str, Any]) -> Trace:
    """A trace as read from JSON, sorted."""
    trace = Trace(content["headrace"])
    for event in sorted((one for one in content["traceEvents"] if one.get("ph") == "X"), key=_order):
        _take(trace, event.get("cat"), _timed(event))
    last = trace.about["last_step"]
    trace.steps = [step for step in trace.steps if int(step.name.removeprefix(STEP)) <= last]
    if not trace.steps:
        raise StorageError("a profile must have a step: this one has none")
    for name in ("parts", "operators", "optimizer", "calls", "work"):  # not those of a step that was broken off
        setattr(trace, name, [one for one in getattr(trace, name) if one.begin < trace.window[1]])
    return trace


def name_parts(content: dict[str, Any], kinds: Sequence[str | None]) -> None:
    """Give the parts of the loop, which got their names only when they were over, these names, in their order.

    None: it is no part, and is left out. Their pictures on the device's side get them too.
    """
    events = content["traceEvents"]
    host = sorted((one for one in events if _is_unnamed(one) and one["cat"] == "user_annotation"), key=_order)
    names = {_external(event): kind for event, kind in zip(host, kinds, strict=False)}
    content["traceEvents"] = kept = []
    for event in events:
        if not _is_unnamed(event):
            kept.append(event)
        elif (kind := names.get(_external(event))) is not None:
            kept.append(event | {"name": PART + kind})


def _take(trace: Trace, kind: str | None, timed: Timed) -> None:
    if kind == "cpu_op":
        trace.operators.append(timed)
    elif kind in _ON_DEVICE:
        trace.work.append(timed)
    elif kind in _CALLS:
        trace.calls.append(timed)
    elif kind == "user_annotation":
        if timed.name.startswith(STEP):
            trace.steps.append(timed)
        elif timed.name.startswith(PART):
            trace.parts.append(timed._replace(name=timed.name.removeprefix(PART)))
        elif timed.name.startswith("Optimizer.step#"):
            trace.optimizer.append(timed)


def _timed(event: dict[str, Any]) -> Timed:
    begin, link = float(event["ts"]), (event.get("args") or {}).get("correlation")
    return Timed(begin, begin + float(event.get("dur") or 0.0), event["name"], (event["pid"], event["tid"]), link)


def _order(event: dict[str, Any]) -> tuple[float, float]:
    """As they began, outer ones first."""
    return float(event["ts"]), -float(event.get("dur") or 0.0)


def _is_unnamed(event: dict[str, Any]) -> bool:
    return event.get("name") == PART and event.get("ph") == "X"


def _external(event: dict[str, Any]) -> Any:
    return (event.get("args") or {}).get("External id")
