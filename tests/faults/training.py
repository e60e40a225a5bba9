"""What befalls the trainer: it is killed, its clock jumps, the disk of its run is full."""

import calendar
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from feeding import MIDDLE, NUM_BATCHES, noted
from striking import GOES_ON, STOPS, Result, fill, resumed

import headrace as hr
from headrace.errors import CheckpointError
from waiting import family, running, wait_gone

HERE = Path(__file__).parent
HOURS = 6
ALLOWED_SKEW_SEC = 15 * 60


@contextmanager
def started(place, **environment):
    """A trainer in a process of its own."""
    path = os.pathsep.join([str(HERE), *sys.path])
    command = [sys.executable, str(HERE / "trainer_process.py"), place.url, str(place.cache or "")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running(command, env={**os.environ, "PYTHONPATH": path, **environment}, **pipes) as process:
        yield process


def next_line(process):
    """The trainer's next batch, the state after it, and its time of day."""
    return json.loads(process.stdout.readline())


def let_go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def killed_trainer(run):
    """Kill -9; another process goes on from the last state, and nothing is left of the first."""
    batches = []
    with started(run.place) as process:
        for number in range(MIDDLE):
            batch, state, _ = next_line(process)
            batches.append(batch)
            if number < MIDDLE - 1:
                let_go_on(process)
        pids = family(process.pid)
        assert len(pids) > 1
        process.kill()
    wait_gone(pids)
    return Result(STOPS, *resumed(run.place, json.dumps(state), batches))


def clock_step(run):
    """The time of day jumps hours ahead, and hours back."""
    clock = run.fixture("tmp_path") / "clock"
    refused, seen = set(), set()

    def refuse_a_wrong_clock(handler):
        """As Amazon's S3 does, which the emulator leaves out; and once it has, the clock is set right."""
        signed = calendar.timegm(time.strptime(handler.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
        if abs(signed - time.time()) < ALLOWED_SKEW_SEC:
            return False
        refused.add(round((signed - time.time()) / 3600))
        set_clock(clock, 0)
        return handler.refuse(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")

    if run.place.name == "s3":
        run.place.server.always = refuse_a_wrong_clock
    batches, longest_sec = [], 0.0
    with started(run.place, **own_clock(clock)) as process:
        for number in range(NUM_BATCHES):
            began = time.monotonic()
            batch, _, now = next_line(process)
            batches.append(batch)
            seen.add(round((now - time.time()) / 3600))
            if number >= MIDDLE:
                longest_sec = max(longest_sec, time.monotonic() - began)
            if number in (MIDDLE, 2 * MIDDLE):
                set_clock(clock, HOURS if number == MIDDLE else -HOURS)
            let_go_on(process)
        assert process.wait(120) == 0
    assert (refused if run.place.name == "s3" else seen - {0}) == {HOURS, -HOURS}
    return Result(GOES_ON, longest_sec, batches)


def set_clock(path, hours):
    """Set how far off the time of day is for processes under `own_clock`."""
    with path.open("r+b") as file:
        file.write(struct.pack("q", hours * 3600))


def own_clock(offset):
    """The environment of a process that has a time of day of its own. Skips the test where there is no C compiler."""
    compiler, library = shutil.which("cc"), offset.with_suffix(".so")
    if compiler is None:
        pytest.skip("there is no C compiler, with which processes get a clock of their own: apt-get install gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c"], check=True)
    offset.write_bytes(bytes(8))
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}


def full_run_disk(run):
    """The disk of the run's folder is full from some step on; with room again, the run goes on from its checkpoint."""
    disk = run.fixture("roomy_disk")
    filler, before, after, times = disk / "filler", [], [], []

    def inputs(batch):
        before.append(noted(batch))
        if len(before) == MIDDLE:
            fill(filler)
        return batch["npy"]

    def inputs_again(batch):
        times.append(time.monotonic())
        after.append(noted(batch))
        return batch["npy"]

    with pytest.raises(CheckpointError, match=r"No space left on device .*make room") as caught:
        fit(run.place, disk, inputs)
    filler.unlink()
    began = time.monotonic()
    done = fit(run.place, disk, inputs_again)
    kept = int(done.resumed_from.name.rpartition("-")[2])
    assert 0 < kept <= MIDDLE
    assert done.steps == NUM_BATCHES
    return Result(STOPS, times[0] - began, before[:kept] + after, str(caught.value))


def fit(place, disk, inputs):
    """Train on one epoch, with a checkpoint every three steps."""
    torch.manual_seed(0)
    with place.loader() as loader:
        options = {"inputs": inputs, "optimizer": hr.sgd(0.01), "checkpoint_every": 3, "device": "cpu"}
        trainer = hr.Trainer(torch.nn.Linear(1000, 1), lambda out, _: out.mean(), loader, run_dir=disk / "r", **options)
        return trainer.fit(epochs=1)
