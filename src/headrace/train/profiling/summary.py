"""What a trace says in short: where the host's time went, and why the device was idle.

Of a trace of a CPU: seconds of the loop's parts, how much of each lies outside all operators (Python, waiting), and the
operators with the most time of their own.

Of a trace with a device: the device is idle where no kernel, copy or fill runs. Such a gap ends with work that some
call of the host gave it. Until that call the device waited for the host, and the gap has the name of what the host was
at: a part of the loop, the optimizer, a call that waits for the device, or else `launch`: getting the next kernel out.
Where the host had waited for the device within the gap, so that nothing could be queued, it is `sync` instead. After
that call the work was there, and the device took its time: `device`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from headrace.train.profiling.spans import Span, common, length, union, without
from headrace.train.profiling.trace import Timed, Trace, read_trace

_MOST = 12
_LAUNCHING = 0.1
_COMPUTING = ("compute", "forward", "backward", "passes", "synchronize", "optimizer")
"""Parts in which the host gets work out: there the call tells more than the part."""
_SHOWN = {
    "wait": "waiting for data",
    "copy": "copying batches",
    "launch": "launching kernels",
    "sync": "having waited for the device",
    "device": "between kernels that were queued",
    "rest": "work between the parts",
}


def profile_summary(path: str | Path) -> dict[str, Any]:
    """The summary of a trace file of RUN/profile, as JSON values: what `...summary.json` beside it holds.

    Keys: rank, first_step, last_step, device ("cpu" or "cuda"), wall_sec (of these steps), parts_sec (of the loop, by
    name), outside_operators_sec (of the training's thread, by part), operators (name, calls, self_sec, share of the
    wall time; the most first) and sentence. With a device, else None: idle_sec, idle_share, causes_sec (by name; they
    add up to idle_sec), kernels (as operators), num_kernels, median_kernel_usec, median_launch_usec (between launches),
    launch_bound (whether the median kernel is shorter than that and a tenth of the time is idle for launching), syncs
    (name, calls, sec). Raises StorageError.
    """
    return summarized(read_trace(path))


def summarized(trace: Trace) -> dict[str, Any]:
    """The same of a trace that was read."""
    wall = length([trace.window])
    summary: dict[str, Any] = {
        **trace.about,
        "device": "cuda" if trace.work else "cpu",
        "wall_sec": wall / 1e6,
        "parts_sec": _by_name(trace.parts),
        "outside_operators_sec": _outside(trace),
        "operators": _most(_own_times(trace.operators), wall),
    }
    summary |= _device(trace, wall) if trace.work else dict.fromkeys(_DEVICE)
    return summary | {"sentence": _sentence(summary)}


def _by_name(timed: Iterable[Timed]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for one in timed:
        sums[one.name] += (one.end - one.begin) / 1e6  # type: ignore[assignment]
    return dict(sums)


def _outside(trace: Trace) -> dict[str, float]:
    busy = union(one.span for one in trace.operators if one.thread == trace.thread)
    spans = _spans_by_name(trace.parts)
    return {name: length(without(union(ones), busy)) / 1e6 for name, ones in spans.items()}


def _spans_by_name(timed: Iterable[Timed]) -> dict[str, list[Span]]:
    spans: dict[str, list[Span]] = defaultdict(list)
    for one in timed:
        spans[one.name].append(one.span)
    return spans


def _own_times(operators: Iterable[Timed]) -> list[tuple[str, float]]:
    """Name and time of each without that of those within it, in microseconds."""
    open_ones: dict[Any, list[int]] = defaultdict(list)
    ends: list[float] = []
    own: list[tuple[str, float]] = []
    for one in operators:
        stack = open_ones[one.thread]
        while stack and ends[stack[-1]] <= one.begin:
            stack.pop()
        if stack:
            name, sec = own[stack[-1]]
            own[stack[-1]] = name, sec - (one.end - one.begin)
        stack.append(len(own))
        ends.append(one.end)
        own.append((one.name, one.end - one.begin))
    return own


def _most(times: Iterable[tuple[str, float]], wall: float) -> list[dict[str, Any]]:
    calls: Counter[str] = Counter()
    sums: dict[str, float] = defaultdict(float)
    for name, usec in times:
        calls[name] += 1
        sums[name] += max(0.0, usec)
    names = sorted(sums, key=lambda name: -sums[name])[:_MOST]
    return [
        {"name": name, "calls": calls[name], "self_sec": sums[name] / 1e6, "share": sums[name] / wall if wall else 0.0}
        for name in names
    ]


_DEVICE = (
    "idle_sec",
    "idle_share",
    "causes_sec",
    "kernels",
    "num_kernels",
    "median_kernel_usec",
    "median_launch_usec",
    "launch_bound",
    "syncs",
)


def _device(trace: Trace, wall: float) -> dict[str, Any]:
    idle = list(without([trace.window], union(one.span for one in trace.work)))
    kernels = [one for one in trace.work if not one.name.startswith(("Memcpy", "Memset"))]
    given = {one.link for one in kernels} - {None}
    launches = [call.begin for call in trace.calls if call.link in given]
    took = median(one.end - one.begin for one in kernels) if kernels else None
    every = median(b - a for a, b in pairwise(launches)) if len(launches) > 1 else None
    syncs = [call for call in trace.calls if _is_sync(call)]
    seconds = _by_name(syncs)
    counted = Counter(call.name for call in syncs)
    causes = _causes(trace, idle, syncs)
    # Of many kernels that one call launches, as a graph does, none is waited for.
    is_slow = took is not None and every is not None and took < every
    return {
        "idle_sec": length(idle) / 1e6,
        "idle_share": length(idle) / wall if wall else 0.0,
        "causes_sec": {name: usec / 1e6 for name, usec in causes.items()},
        "kernels": _most([(one.name, one.end - one.begin) for one in kernels], wall),
        "num_kernels": len(kernels),
        "median_kernel_usec": took,
        "median_launch_usec": every,
        "launch_bound": is_slow and causes.get("launch", 0.0) >= _LAUNCHING * wall,
        "syncs": [{"name": name, "calls": counted[name], "sec": seconds[name]} for name in seconds],
    }


def _is_sync(call: Timed) -> bool:
    return "Synchronize" in call.name or call.name in ("cudaMemcpy", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2")


def _causes(trace: Trace, idle: list[Span], syncs: list[Timed]) -> dict[str, float]:
    """Microseconds of idle time by cause, the largest first."""
    calls = {call.link: call for call in trace.calls}
    starts = [one.begin for one in trace.work]
    sync_ends = sorted(call.end for call in syncs)
    host = _HostTime(trace)
    found: dict[str, float] = defaultdict(float)
    for begin, end in idle:
        at = bisect_left(starts, end)
        link = trace.work[at].link if at < len(starts) else None
        call = None if link is None else calls.get(link)
        ready = end if call is None else min(max(begin, call.end), end)
        found["device"] += end - ready
        waited = bisect_right(sync_ends, ready) > bisect_left(sync_ends, begin)
        for name, usec in host.during((begin, ready)).items():
            found["sync" if name == "launch" and waited else name] += usec
    return dict(sorted(((name, usec) for name, usec in found.items() if usec > 0), key=lambda item: -item[1]))


class _HostTime:
    """What the thread that trains was at, at any time."""

    def __init__(self, trace: Trace) -> None:
        self._parts = [part for part in trace.parts if part.name not in _COMPUTING]
        self._begins = [part.begin for part in self._parts]
        self._optimizer = union(one.span for one in trace.optimizer)
        self._optimizer_begins = [begin for begin, _ in self._optimizer]

    def during(self, span: Span) -> dict[str, float]:
        """Microseconds of the span by what it was; they add up to the span."""
        found: dict[str, float] = defaultdict(float)
        first = max(0, bisect_right(self._begins, span[0]) - 1)
        known: list[Span] = []
        for part in self._parts[first : bisect_left(self._begins, span[1])]:
            inside = list(common([span], [part.span]))
            found[part.name] += length(inside)
            known += inside
        left = list(without([span], known))
        first = max(0, bisect_right(self._optimizer_begins, span[0]) - 1)
        stepping = self._optimizer[first : bisect_left(self._optimizer_begins, span[1])]
        found["optimizer"] += length(common(left, stepping))
        found["launch"] += length(without(left, stepping))
        return found


def _sentence(summary: dict[str, Any]) -> str:
    first, last = summary["first_step"], summary["last_step"]
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    each = summary["wall_sec"] / (last - first + 1)
    head = f"rank {summary['rank']}, {steps}, {_sec(each)} each"
    wall = summary["wall_sec"] or 1.0
    if summary["device"] == "cpu":
        outside = sum(summary["outside_operators_sec"].values())
        shares = sorted(summary["outside_operators_sec"].items(), key=lambda item: -item[1])
        where = [f"{_percent(sec / wall)} in {name}" for name, sec in shares if sec >= 0.01 * wall][:4]
        top = [f"{one['name']} {_percent(one['share'])}" for one in summary["operators"][:3]]
        return (
            f"{head}: {_percent(outside / wall)} of the time lies outside operators"
            + (f" ({', '.join(where)})" if where else "")
            + (f"; the operators with the most time are {', '.join(top)}" if top else "")
        )
    causes = [
        f"{_percent(sec / wall)} {_SHOWN.get(name, name)}"
        for name, sec in summary["causes_sec"].items()
        if sec >= 0.01 * wall
    ]
    text = f"{head}: the device is idle {_percent(summary['idle_share'])} of the time"
    text += f": {', '.join(causes[:5])}" if causes else ""
    if summary["launch_bound"]:
        took, every = summary["median_kernel_usec"], summary["median_launch_usec"]
        text += f"; kernels take {took:.3g} µs and launches come every {every:.3g} µs: larger batches, or compile=True"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _sec(sec: float) -> str:
    return f"{sec:.3g} s" if sec >= 1 else f"{1000 * sec:.3g} ms"
