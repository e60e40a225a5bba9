"""The whole way, with the command a person would use: from a folder of files to a trained, measured model.

    python recipes/demo.py          handwritten digits; one process is killed part-way, and the run goes on by itself
    python recipes/demo.py text     a byte-level transformer on the standard library's source files

Ends with an error if a step fails, if the run was not killed and resumed, or if the model is worse than it should be.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
DATA, RUNS = Path("data"), Path("runs")
HEADRACE = [sys.executable, "-m", "headrace.cli.main"]
KILL_AFTER = 150  # the step after which a rank is killed; the newest checkpoint is then some steps behind


def main() -> None:
    if sys.argv[1:] not in ([], ["text"]):
        sys.exit(__doc__)
    began = time.monotonic()
    run_dir = RUNS / ("demo-text" if sys.argv[1:] else "demo")
    shutil.rmtree(run_dir, ignore_errors=True)
    if sys.argv[1:]:
        text(run_dir)
    else:
        digits(run_dir)
    print(f"\nthe demo took {time.monotonic() - began:.0f} s; the report:", flush=True)
    print(report(run_dir), flush=True)


def digits(run_dir: Path) -> None:
    """Write, pack, verify, train with a kill on the way."""
    say("1. handwritten digits as PNG files, one folder a class")
    run([sys.executable, str(HERE / "data.py"), "digits", str(DATA / "digits")])
    say("2. packed into shards, training and test split apart")
    headrace("pack", DATA / "digits", DATA / "digits-shards", "--split", "train=0.8,test=0.2")
    say("3. every checksum proved")
    for split in ("train", "test"):
        headrace("inspect", DATA / "digits-shards" / split, "--verify")
    say("4. trained on two processes; rank 1 will be killed on the way")
    killer = threading.Thread(target=kill_rank_1, args=(run_dir,), daemon=True)
    killer.start()
    result = headrace_json("train", HERE / "digits.py", "--nproc", "2", "--run", run_dir)
    check(result["metrics"]["accuracy"] >= 0.97, f"test accuracy should be at least 97 %: {result['metrics']}")
    check(result["restarts"] >= 1, "the run should have been killed and started again: it was not")
    check(result["resumed_from"] is not None, "the run should have gone on from a checkpoint: it began anew")
    say("5. one page about the run")


def text(run_dir: Path) -> None:
    """The same verbs on token shards."""
    source, shards = DATA / "stdlib", DATA / "stdlib-shards"
    say("1. the source files of Python's standard library")
    run([sys.executable, str(HERE / "data.py"), "stdlib", str(source)])
    say("2. packed into token shards, some files held out")
    transform = f"{HERE / 'bytes_gpt.py'}:to_tokens"
    options = ("--format", "tokens", "--transform", transform, "--split", "train=0.95,test=0.05")
    headrace("pack", source, shards, *options)
    say("3. every checksum proved")
    for split in ("train", "test"):
        headrace("inspect", shards / split, "--verify")
    say("4. a byte-level transformer, on two processes")
    result = headrace_json("train", HERE / "bytes_gpt.py", "--nproc", "2", "--run", run_dir)
    check(result["metrics"]["bits_per_byte"] < 2.3, f"bits per byte should be below 2.3: {result['metrics']}")
    say("5. one page about the run")


def kill_rank_1(run_dir: Path) -> None:
    """SIGKILL the process of rank 1 once the run has a checkpoint and is some steps past it."""
    pids, has_checkpoint = [], False
    for event in follow(run_dir / "events.jsonl"):
        if event["event"] == "start":
            pids = event["pids"]
        has_checkpoint = has_checkpoint or event["event"] == "checkpoint"
        if has_checkpoint and event["event"] == "step" and event["step"] >= KILL_AFTER:
            print(f"   step {event['step']}: SIGKILL to rank 1, process {pids[1]}", flush=True)
            os.kill(pids[1], signal.SIGKILL)
            return


def follow(path: Path):
    """The events of a run as they are written."""
    while not path.exists():
        time.sleep(0.1)
    with open(path) as file:
        line = ""
        while True:
            line += file.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            else:
                time.sleep(0.05)


def report(run_dir: Path) -> str:
    """Write the page; its path."""
    return str(headrace_json("report", run_dir, quiet=True)["path"])


def headrace(*arguments: object) -> str:
    """Run a verb, show what it says, and return it."""
    return run([*HEADRACE, *map(str, arguments)])


def headrace_json(*arguments: object, quiet: bool = False) -> dict:
    """Run a verb with --json and return the object it ends with."""
    out = run([*HEADRACE, *map(str, arguments), "--json"], quiet=True)
    result = json.loads(out.splitlines()[-1])
    if not quiet:
        print(f"   {result['summary']}", flush=True)
    return result


def run(command: list[str], quiet: bool = False) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not quiet or done.returncode:
        print("".join(f"   {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
    if done.returncode:
        sys.exit(f"the demo failed: {' '.join(command)} ended with exit code {done.returncode}")
    return done.stdout


def say(step: str) -> None:
    print(f"\n{step}", flush=True)


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"the demo failed: {otherwise}")


if __name__ == "__main__":
    main()
