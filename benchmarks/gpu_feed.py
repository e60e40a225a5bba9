"""ResNet-50 on a GPU, fed: images/s against one resident batch, what waits, and whether copies hide under compute.

    python benchmarks/gpu_feed.py [--quick] [--threads 8] [--processes 12] [--decode host|device]
                                  [--sweep-threads 2,4,8] [--sweep-processes 4,8,12] [--cache-decoded ram]
                                  [--profile FILE.json]

JPEGs of 450x415 and about 117 KB with random labels are packed, decoded, cropped to 224 and flipped by the loader
process (or by nvJPEG on the device), copied as uint8, and normalised to bfloat16, channels last, on the device. The
model has bfloat16 weights, is channels last and compiled; the optimizer is a fused SGD. The ceiling is the same step on
one batch that is on the device, normalised. Aim: waits of less than 1 %.

The host runs two steps ahead of the device at most. "Wait" is the larger of two shares of the time: that for which
`next(loader)` blocked, and that for which the device was idle between steps, by CUDA events. "Copy hidden" is the share
of the time of copies to the device in which kernels ran on another stream, by torch.profiler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import headrace as hr
from make_images import make_image
from measure import Spread, finish, ratio, rounds

SIDE, CLASSES = 224, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS_AHEAD = 2
WARM_UP_STEPS = 8
PROFILED_STEPS = 12
LARGE_BYTES = 1 << 20
"""Copies below this are labels and the like."""

Step = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Run:
    """What a run of some steps took; shares are of its time, 0 to 1."""

    images_per_sec: float
    blocked_share: float
    idle_share: float
    cores_busy: float

    @property
    def wait_share(self) -> float:
        return max(self.blocked_share, self.idle_share)


def pack_images(folder: Path, count: int) -> hr.Dataset:
    """Made by all cores, with random labels."""
    rng = np.random.default_rng(0)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        images = pool.map(make_image, range(count), chunksize=16)
        hr.pack(
            (
                {"__key__": f"{number:06d}", "jpg": data, "cls": int(rng.integers(CLASSES))}
                for number, data in enumerate(images)
            ),
            folder,
        )
    return hr.open(folder)


def label(sample: dict[str, Any]) -> dict[str, Any]:
    """The stored JPEG, for the device to decode, and the label as a number."""
    return {"jpg": sample["jpg"], "cls": int(bytes(sample["cls"]))}


def make_loader(
    dataset: hr.Dataset, options: argparse.Namespace, threads: int | None = None, processes: int = 1
) -> hr.Loader:
    """The loader whose batches are ready for the model."""
    stream, normalize = hr.Stream(dataset, epochs=None), hr.ondevice.Normalize(MEAN, STD, dtype="bfloat16", field="jpg")
    if options.decode == "device":
        stream = stream.map(label, shapes={"cls": ("int64", ()), "jpg": None})
        steps: tuple[Any, ...] = (hr.ondevice.DecodeJpeg(SIDE, field="jpg"), normalize)
    else:
        crop, flip = hr.transform.RandomResizedCrop(SIDE), hr.transform.RandomHorizontalFlip()
        stream, steps = stream.decode().map(crop).map(flip), (normalize,)
    workers = {"threads": threads, "processes": processes, "cache_decoded": options.cache_decoded}
    return hr.Loader(stream, batch_size=options.batch_size, device="cuda", on_device=steps, **workers)


def resnet50() -> torch.nn.Module:
    """From whichever of the two libraries is there."""
    try:
        from torchvision.models import resnet50 as make

        return make(num_classes=CLASSES)
    except ImportError:
        pass
    try:
        from timm import create_model

        return create_model("resnet50", num_classes=CLASSES)
    except ImportError:
        sys.exit("the model comes from torchvision or timm, and neither is here: pip install torchvision")


def make_step(compiled: bool) -> Step:
    """One step of training."""
    torch.manual_seed(0)
    model = resnet50().to(device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = functional.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def resident(batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """One batch on the device, again and again."""
    images = torch.randn(batch_size, 3, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    return itertools.repeat({"jpg": images, "cls": torch.randint(CLASSES, (batch_size,), device="cuda")})


def run_steps(step: Step, batches: Iterator[dict[str, Any]], num_steps: int, warm_up: int = WARM_UP_STEPS) -> Run:
    """Some steps, after a few that are not counted."""
    for _ in range(warm_up):
        batch = next(batches)
        step(batch["jpg"], batch["cls"])
    torch.cuda.synchronize()
    marks: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
    blocked = idle_sec = 0.0
    images, cpu_before, began = 0, cpu_sec(), time.perf_counter()
    last_end = None
    for number in range(num_steps):
        asked = time.perf_counter()
        batch = next(batches)
        blocked += time.perf_counter() - asked
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(batch["jpg"], batch["cls"])
        end.record()
        marks.append((start, end))
        images += len(batch["cls"])
        if number >= STEPS_AHEAD:
            idle_sec, last_end = idle_sec + finished(marks, last_end), marks.popleft()[1]
    torch.cuda.synchronize()
    sec, cores = time.perf_counter() - began, cpu_sec() - cpu_before
    while marks:
        idle_sec, last_end = idle_sec + finished(marks, last_end), marks.popleft()[1]
    return Run(images / sec, blocked / sec, idle_sec / sec, cores / sec)


def finished(marks: deque[tuple[torch.cuda.Event, torch.cuda.Event]], last_end: torch.cuda.Event | None) -> float:
    """Wait for the oldest step to end; seconds that the device was idle before it."""
    start, end = marks[0]
    end.synchronize()
    return last_end.elapsed_time(start) / 1000 if last_end is not None else 0.0


def cpu_sec() -> float:
    """Seconds of processor time that this process and those below it have used."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used[pid] for pid in ours)


def profile(step: Step, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
    """Some steps under torch.profiler: what of the copies was hidden, and how busy the device was."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    run_steps(step, batches, STEPS_AHEAD)
    with torch.profiler.profile(activities=activities) as profiled:
        run_steps(step, batches, PROFILED_STEPS, warm_up=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        return overlap(json.loads(path.read_bytes())["traceEvents"])


def overlap(events: list[dict[str, Any]]) -> dict[str, float]:
    """From the events of a trace: large copies to the device, and the kernels that ran meanwhile on other streams."""
    timed = [event for event in events if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy")]
    kernels = [event for event in timed if event["cat"] == "kernel"]
    copies = [
        event
        for event in timed
        if event["cat"] == "gpu_memcpy" and "HtoD" in event["name"] and event["args"].get("bytes", 0) >= LARGE_BYTES
    ]
    hidden = total = 0.0
    for copy in copies:
        others = merged([span(kernel) for kernel in kernels if kernel["args"]["stream"] != copy["args"]["stream"]])
        begin, end = span(copy)
        hidden += sum(max(0.0, min(end, last) - max(begin, first)) for first, last in others)
        total += end - begin
    busy = merged([span(event) for event in timed])
    window = busy[-1][1] - busy[0][0] if busy else 0.0
    return {
        "copies": len(copies),
        "pinned_copies": sum("Pinned" in copy["name"] for copy in copies),
        "copy_ms": total / 1000 / max(1, len(copies)),
        "copy_gb_per_sec": sum(copy["args"]["bytes"] for copy in copies) / total / 1000 if total else 0.0,
        "copy_hidden": hidden / total if total else 0.0,
        "device_busy": sum(last - first for first, last in busy) / window if window else 0.0,
    }


def span(event: dict[str, Any]) -> tuple[float, float]:
    """When it began and ended, in microseconds."""
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times without overlaps, in order."""
    result: list[tuple[float, float]] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], last)
        else:
            result.append((first, last))
    return result


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def measured(
    step: Step, fed: Iterator[dict[str, Any]], options: argparse.Namespace
) -> tuple[dict[str, Spread], list[Run]]:
    """Both rates by turns, and what was seen of the fed runs."""
    runs: list[Run] = []
    still = resident(options.batch_size)

    def feed() -> float:
        runs.append(run_steps(step, fed, options.steps))
        return runs[-1].images_per_sec

    rates = rounds(
        {
            "synthetic, images/s": lambda: run_steps(step, still, options.steps).images_per_sec,
            "fed, images/s": feed,
        },
        options.rounds,
    )
    return rates, runs[1:]


def swept(step: Step, dataset: hr.Dataset, options: argparse.Namespace) -> dict[str, Spread]:
    """The feed with each number of threads or processes, and what it leaves waiting."""
    figures = {}
    each = [{"threads": n} for n in options.sweep_threads] + [{"processes": n} for n in options.sweep_processes]
    for workers in each:
        with make_loader(dataset, options, **workers) as loader:
            run = run_steps(step, iter(loader), options.steps)
        name = " ".join(f"{count} {kind}" for kind, count in workers.items())
        figures[f"fed by {name}, images/s"] = Spread((run.images_per_sec,))
        figures[f"  waits, share of the time, with {name}"] = Spread((run.wait_share,))
        figures[f"  cores busy with {name}"] = Spread((run.cores_busy,))
        say(f"  {name}: {run}")
    return figures


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(number) for number in text.split(",")]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="distinct images, 117 KB each")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60, help="steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads of the loader process; default: one a core")
    parser.add_argument("--processes", type=int, default=1, help="worker processes of the loader process")
    parser.add_argument("--sweep-threads", type=numbers, default=[], metavar="N,N,...")
    parser.add_argument("--sweep-processes", type=numbers, default=[], metavar="N,N,...")
    parser.add_argument("--cache-decoded", metavar="ram|FOLDER", help="where decoded images are kept; default: nowhere")
    parser.add_argument("--decode", choices=("host", "device"), default="host")
    parser.add_argument("--profile", type=Path, metavar="FILE.json", help="write what torch.profiler saw")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--quick", action="store_true", help="few images, steps and rounds, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.images, options.batch_size, options.steps, options.rounds = 512, 64, 10, 1
    return options


def main() -> None:
    """Measure and print."""
    options = parsed()
    if not torch.cuda.is_available():
        print("gpu_feed.py measures on a CUDA device, and this machine has none: nothing was measured")
        return
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        dataset = pack_images(Path(folder) / "packed", options.images)
        say(f"{options.images} images made and packed in {time.perf_counter() - began:.0f} s")
        began, step = time.perf_counter(), make_step(options.compile)
        run_steps(step, resident(options.batch_size), 1, warm_up=1)
        say(f"the model is compiled in {time.perf_counter() - began:.0f} s")
        with make_loader(dataset, options, options.threads, options.processes) as loader:
            fed = iter(loader)
            rates, runs = measured(step, fed, options)
            seen = profile(step, fed) if options.profile else {}
        sweep = swept(step, dataset, options)
    if options.profile:
        options.profile.write_text(json.dumps(seen, indent=1) + "\n")
        print(f"copy hidden: {seen['copy_hidden']:.1%} of {seen['copies']:.0f} copies of {seen['copy_ms']:.2f} ms")
    synthetic, feed = rates.values()
    finish(
        f"ResNet-50, bfloat16, channels last, batch {options.batch_size}, decoded on the {options.decode}",
        {
            **rates,
            "fed / synthetic": ratio(feed, synthetic),
            "waits, share of the time": Spread(tuple(run.wait_share for run in runs)),
            "next(loader) blocked, share of the time": Spread(tuple(run.blocked_share for run in runs)),
            "device busy, share of the time (CUDA events)": Spread(tuple(1 - run.idle_share for run in runs)),
            "cores busy": Spread(tuple(run.cores_busy for run in runs)),
            **{f"profiler: {name.replace('_', ' ')}": Spread((value,)) for name, value in seen.items()},
            **sweep,
        },
        device=torch.cuda.get_device_name(),
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
    )


if __name__ == "__main__":
    main()
