"""Whether the verdict on a run is right, and what it predicts comes true: bottlenecks put into runs, one at a time.

    python benchmarks/verdicts.py [--seconds 3] [--only checkpoint] [--traceml PYTHON] [--json FILE]

Each case is a run of one or two processes (`verdict_run.py`) with one known bottleneck: a feed that is slow by waiting,
by Python code or by decoding, a store behind a latency, a slow collate, synchronous checkpoints, gradients of millions
of parameters, a slow rank, a large stage, guards at every step, or nothing at all. A verdict is right if it names the
bottleneck (and the feed's stage, or the rank). What it predicts for the run without the bottleneck is compared with
that run, measured right after it: "within 20 %" is of the ratio of samples/s, over all cases with a bottleneck of which
both are known, whether the verdict was right or not. Where it names a remedy that headrace can make, that is made and
compared in the same way. Goals: right in 95 % of the cases, within 20 % in 80 %.

Not among the cases: a GPU, so neither slow copies to a device nor launches; and a network that is slow, as between
machines (ranks talk over loopback).

With --traceml, an interpreter that has traceml-ai, TraceML judges a plain loop over the same feed with the same
bottleneck, as far as it has a word for it (input, straggler, compute; all else is "residual").
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from headrace.report import Verdict, read_run, verdict
from make_images import write_images
from s3_server import BUCKET, serving

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A bottleneck, and the run without it."""

    name: str
    bound: str
    put: dict[str, Any]
    """What makes it; see verdict_run.py."""
    without: dict[str, Any] = field(default_factory=dict)
    """What takes it away again."""
    stage: str | None = None
    rank: int | None = None
    ranks: int = 1
    data: str = "small"


@dataclass
class Found:
    """What came of a case."""

    case: str
    bound: str
    said: str
    stage: str | None
    rank: int | None
    right: bool
    predicted: float | None
    achieved: float | None
    remedy: str | None = None
    remedy_predicted: float | None = None
    remedy_achieved: float | None = None
    traceml: str | None = None


def cases() -> Iterator[Case]:
    """All of them."""
    for ms in (10, 20, 40):
        yield Case(f"compute {ms} ms", "compute", {"step_sec": ms / 1e3})
    for sample_ms, step_ms in ((2, 5), (2, 10), (5, 10), (5, 20), (10, 20), (10, 40)):
        put = {"sample_sec": sample_ms / 1e3, "step_sec": step_ms / 1e3, "threads": 1}
        yield Case(f"augment waits {sample_ms} ms, step {step_ms} ms", "input", put, {"sample_sec": 0}, "transform")
    for sample_ms, step_ms in ((1, 5), (2, 5), (2, 10), (4, 20)):
        put = {"burn_sec": sample_ms / 1e3, "step_sec": step_ms / 1e3, "threads": 1}
        yield Case(f"augment works {sample_ms} ms, step {step_ms} ms", "input", put, {"burn_sec": 0}, "transform")
    for step_ms in (5, 10, 20):
        put = {"decode": True, "step_sec": step_ms / 1e3, "threads": 1, "batch_size": 16}
        without = {"decode": False}
        yield Case(f"decode, step {step_ms} ms", "input", put, without, "transform", data="images")
    for collate_ms, step_ms in ((10, 5), (20, 10), (40, 10)):
        put = {"collate_sec": collate_ms / 1e3, "step_sec": step_ms / 1e3}
        yield Case(f"collate {collate_ms} ms, step {step_ms} ms", "input", put, {"collate_sec": 0}, "collate")
    for step_ms in (1, 3, 5):
        put = {"step_sec": step_ms / 1e3, "batch_size": 32, "data": "store"}
        yield Case(f"store 30 ms, step {step_ms} ms", "input", put, {"data": "large"}, "read", data="large")
    for millions, every in ((4, 1), (8, 1), (8, 2), (16, 2), (16, 4)):
        put = {"millions": millions, "checkpoint_every": every, "step_sec": 0.01}
        name = f"checkpoint of {4 * millions} MB each {every}"
        yield Case(name, "checkpoint", put, {"checkpoint_every": None})
    for millions, step_ms in ((2, 5), (5, 5), (5, 20), (10, 20)):
        put = {"millions": millions, "step_sec": step_ms / 1e3}
        yield Case(f"gradients of {4 * millions} MB, step {step_ms} ms", "communication", put, {"ranks": 1}, ranks=2)
    for millions in (2, 5):
        put = {"millions": millions, "step_sec": 0.005, "mesh": "fsdp=2"}
        without = {"ranks": 1, "mesh": "dp"}
        yield Case(f"parts of {4 * millions} MB", "communication", put, without, ranks=2)
    for rank, ms, step_ms in ((1, 5, 10), (1, 10, 10), (1, 20, 20), (0, 10, 10), (0, 20, 20), (1, 40, 20)):
        put = {"slow_rank": rank, "slow_rank_sec": ms / 1e3, "step_sec": step_ms / 1e3}
        name = f"rank {rank} slower by {ms} ms, step {step_ms} ms"
        yield Case(name, "straggler", put, {"slow_rank": None}, rank=rank, ranks=2)
    for halves in ((5, 15), (20, 5), (4, 24)):
        put = {"mesh": "pp=2", "halves_sec": [ms / 1e3 for ms in halves], "copies": 2, "micro_batch_size": 2}
        even = [sum(halves) / 2e3] * 2
        slow = int(halves[1] > halves[0])
        name = f"stages of {halves[0]} and {halves[1]} ms"
        yield Case(name, "pipeline", put, {"halves_sec": even}, rank=slow, ranks=2)
    for millions, every in ((2, 1), (5, 1), (10, 2)):
        guards = {"check_every": every, "replay_every": every, "snapshot_every": every}
        put = {"millions": millions, "guards": guards, "step_sec": 0.005}
        yield Case(f"guards each {every} steps of {4 * millions} MB", "guard", put, {"guards": None})


class Bench:
    """Runs cases on data that is made once."""

    def __init__(self, folder: Path, seconds: float, urls: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._folder, self._seconds, self._urls = folder, seconds, urls
        self._environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def judge(self, case: Case, traceml: str | None) -> Found:
        """Run it with and without its bottleneck, and with the remedy."""
        judged, rate = self._run(case, case.put)
        clear = self._run(case, {**case.put, **case.without})[1] if case.without else None
        ranks = case.without.get("ranks", case.ranks)
        gain = clear / rate * case.ranks / ranks if clear else None
        right = (judged.bound, judged.stage if case.stage else None) == (case.bound, case.stage)
        right = right and judged.rank == case.rank
        predicted = None if judged.predicted_gain is None else 1 + judged.predicted_gain
        found = Found(case.name, case.bound, judged.bound, judged.stage, judged.rank, right, predicted, gain)
        if right and judged.remedies:
            best = judged.remedies[0]
            changes = {name: value for options in best.changes.values() for name, value in options.items()}
            if changes:
                found.remedy, found.remedy_predicted = best.name, 1 + best.gain
                found.remedy_achieved = self._run(case, {**case.put, **changes})[1] / rate
        if traceml is not None:
            found.traceml = self._traceml(case, traceml)
        return found

    def _run(self, case: Case, put: Mapping[str, Any]) -> tuple[Verdict, float]:
        run_dir = Path(tempfile.mkdtemp(dir=self._folder))
        ranks = put.get("ranks", case.ranks)
        plan = self._plan(case, put)
        self._start([sys.executable, str(HERE / "verdict_run.py"), plan, str(run_dir)], ranks)
        run = read_run(run_dir)
        rows = run.steady_rows()
        rate = float(run.steps["samples"][rows].sum() / run.steps["sec"][rows].sum())
        judged = verdict(run)
        shutil.rmtree(run_dir)
        return judged, rate

    def _plan(self, case: Case, put: Mapping[str, Any]) -> str:
        path = self._folder / "case.json"
        data = self._urls[put.get("data", case.data)]
        path.write_text(json.dumps({**put, "data": data, "seconds": self._seconds}))
        return str(path)

    def _start(self, command: list[str], ranks: int) -> None:
        with socket.socket() as port:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", 0))
            world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            env = {**self._environment, **world, "MASTER_PORT": str(port.getsockname()[1])}
            started = [
                subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                for rank in range(ranks)
            ]
            codes = [process.wait(timeout=300) for process in started]
        if any(codes):
            raise SystemExit(f"{command}: {codes}")

    def _traceml(self, case: Case, python: str) -> str | None:
        """TraceML's word for a plain loop with the same bottleneck; None where a plain loop has no counterpart."""
        if "guards" in case.put or "halves_sec" in case.put or case.put.get("mesh", "").startswith("fsdp"):
            return None
        logs = self._folder / "traceml"
        shutil.rmtree(logs, ignore_errors=True)
        traceml = str(Path(python).with_name("traceml"))
        script, plan = str(HERE / "verdict_traceml.py"), self._plan(case, case.put)
        command = [traceml, "run", script, f"--logs-dir={logs}", "--run-name=case", f"--nproc-per-node={case.ranks}"]
        environment = {**self._environment, "VERDICT_CASE": plan}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        summary = next(logs.rglob("final_summary.json"), None)
        if summary is None:
            raise SystemExit(f"TraceML said nothing: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return str(json.loads(summary.read_text())["primary_diagnosis"]["status"])


@contextmanager
def material() -> Iterator[tuple[Path, dict[str, str], dict[str, str]]]:
    """A folder, the datasets in it by name, and the environment that a client of the store needs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-verdicts-")))
        rng = np.random.default_rng(0)
        for name, count, size in (("small", 2_000, 200), ("large", 2_000, 500_000)):
            source = folder / f"{name}.files"
            source.mkdir()
            for number in range(count):
                (source / f"{number:05d}.bin").write_bytes(rng.bytes(size))
            hr.pack(source, folder / BUCKET / name)
            shutil.rmtree(source)
        (folder / "images.files").mkdir()
        write_images(folder / "images.files", 400)
        hr.pack(folder / "images.files", folder / BUCKET / "images")
        environment = stack.enter_context(serving(folder, 30.0))
        urls = {name: str(folder / BUCKET / name) for name in ("small", "large", "images")}
        yield folder, {**urls, "store": f"s3://{BUCKET}/large"}, environment


def within(predicted: float | None, achieved: float | None, share: float = 0.2) -> bool:
    """Whether a prediction came true."""
    return predicted is not None and achieved is not None and abs(predicted / achieved - 1) <= share


def shown(one: Found) -> str:
    """A line of the table."""
    numbers = [f"{value:6.2f}" if value is not None else "     -" for value in (one.predicted, one.achieved)]
    said = one.said + (f"/{one.stage}" if one.stage else "") + (f"/rank {one.rank}" if one.rank is not None else "")
    mark = "right" if one.right else "WRONG"
    remedy = ""
    if one.remedy is not None:
        remedy = f"  {one.remedy}: {one.remedy_predicted:.2f} predicted, {one.remedy_achieved:.2f} achieved"
    peer = f"  TraceML: {one.traceml}" if one.traceml else ""
    return f"{one.case:42} {one.bound:14} {said:24} {mark} {' '.join(numbers)}{remedy}{peer}"


def main() -> None:
    """Run the cases, and print each and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run's steps")
    parser.add_argument("--only", default="", help="cases whose name or bottleneck has this in it")
    parser.add_argument("--traceml", help="a Python that has traceml-ai")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in case.name or options.only in case.bound]
    found = []
    with material() as (folder, urls, environment):
        bench = Bench(folder, options.seconds, urls, environment)
        for case in chosen:
            found.append(bench.judge(case, options.traceml))
            print(shown(found[-1]), flush=True)
    right = sum(one.right for one in found)
    removed = [one for one in found if one.achieved is not None and one.predicted is not None]
    remedied = [one for one in found if one.remedy is not None]
    print(f"verdict right: {right} of {len(found)} ({right / len(found):.0%})")
    for name, pairs in (
        ("without the bottleneck", [(one.predicted, one.achieved) for one in removed]),
        ("with the remedy", [(one.remedy_predicted, one.remedy_achieved) for one in remedied]),
    ):
        if pairs:
            true = sum(within(*pair) for pair in pairs)
            print(f"predicted within 20 % of achieved, {name}: {true} of {len(pairs)} ({true / len(pairs):.0%})")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
