"""Alarms of a run under way: in its record, in the log and at the webhook, and never in its way."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch
from receiver import receiving

import headrace as hr
from headrace.adapters.recorded import Recorded
from headrace.alarms import Watcher
from headrace.alarms.probe import family, probe
from headrace.errors import OptionError
from headrace.telemetry import RANKS, EventWriter, read_events
from waiting import running, wait_for

QUIET = {"au_below": None, "throughput_below": None, "no_step_sec": None, "memory_hours": None, "disk_free_bytes": None}
MUCH = 10**18
"""More bytes than any disk has."""


def alarms_of(path):
    return [event for event in read_events(path) if event["event"] == "alarm"]


def test_an_alarm_is_an_event_a_line_and_a_post(tmp_path, caplog):
    with receiving() as server:
        writer = EventWriter(tmp_path / "events.jsonl")
        with Watcher(hr.Alarms(webhook=f"{server.url}/s3cret", **QUIET), writer):
            for step in range(200):
                writer.write_often("step", step=step + 1, loss=9.0 if step == 150 else 2.0 + 0.01 * (step % 5))
        writer.close()
    (event,) = alarms_of(writer.path)
    assert (event["rule"], event["step"], event["limit"]) == ("loss_spike", 151, 10.0)
    assert event["value"] > 10
    assert caplog.messages == [f"alarm at step 151: {event['message']}"]
    (body,) = server.bodies
    assert {name: body[name] for name in ("step", "rule", "message", "value", "limit")} == {
        name: event[name] for name in ("step", "rule", "message", "value", "limit")
    }
    assert body["run"] == tmp_path.name


def test_what_the_machine_has_left_is_looked_at_without_any_event(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    with Watcher(hr.Alarms(**{**QUIET, "disk_free_bytes": MUCH}), writer):
        wait_for(lambda: alarms_of(writer.path), "an alarm")
    writer.close()
    assert [(event["rule"], event["step"]) for event in alarms_of(writer.path)] == [("disk", 0)]


def test_what_other_ranks_write_is_read(tmp_path):
    (tmp_path / RANKS).mkdir()
    writer = EventWriter(tmp_path / "events.jsonl")
    other = EventWriter(tmp_path / RANKS / "rank-1.jsonl")
    with Watcher(hr.Alarms(**QUIET), writer):
        writer.write("start", world_size=2)
        for step in range(1, 12):
            writer.write_often("step", step=step, sec=0.3, communication_sec=0.2)
        writer.write("feed", step=11)
        other.write("start", rank=1)
        for step in (20, 30, 40):
            other.write("rank", rank=1, step=step, steps=10, sec=3.0, communication_sec=0.0)
    other.close()
    writer.close()
    assert [event["message"] for event in alarms_of(writer.path)] == [
        "rank 1 takes 3 times as long for its part of a step as the others"
    ]


def test_silence_rings_while_nothing_is_written(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    with Watcher(hr.Alarms(**{**QUIET, "no_step_sec": 0.1}), writer):
        writer.write("start")
        wait_for(lambda: alarms_of(writer.path), "an alarm")
    writer.close()


@pytest.fixture
def full_disk(tmp_path):
    """A file that takes no byte more, as on a full disk: files may not be larger than it is."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n" * (1 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_does_not_end_the_thread(full_disk, caplog):
    writer = EventWriter(full_disk)
    watcher = Watcher(hr.Alarms(**{**QUIET, "disk_free_bytes": MUCH}), writer)
    wait_for(lambda: len(caplog.messages) == 2, "two lines in the log")
    assert "File too large" in caplog.messages[1]
    assert watcher._thread.is_alive()
    with pytest.raises(hr.HeadraceError, match="File too large"):
        watcher.close()
    assert not watcher._thread.is_alive()
    with pytest.raises(hr.HeadraceError, match="File too large"):
        writer.close()


def test_a_record_that_cannot_be_read_is_one_line(tmp_path, caplog):
    writer = EventWriter(tmp_path / "events.jsonl")
    with Watcher(hr.Alarms(**QUIET), writer):
        writer.path.unlink()
        writer.path.mkdir()
        wait_for(lambda: caplog.messages, "a line in the log")
    writer.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("alarms do not see what is written: cannot read the run's events from ")


def test_memory_is_that_of_the_process_and_all_that_it_started(tmp_path):
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', HOLD]); print(p.pid, flush=True); p.wait()"
    )
    hold = "x = bytearray(200_000_000); print('held', flush=True); input()"
    before = probe(tmp_path)
    with running(
        [sys.executable, "-c", code.replace("HOLD", repr(hold))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        assert {process.pid, child, os.getpid()} <= set(family(os.getpid()))
        assert probe(tmp_path)["memory_bytes"] - before["memory_bytes"] > 150_000_000
        process.stdin.close()
        process.wait()
    assert probe(tmp_path / "nowhere")["disk_free_bytes"] is None


def test_a_loop_of_ones_own_has_alarms_too(tmp_path):
    with hr.Monitor(tmp_path, alarms=hr.Alarms(**QUIET)) as monitor:
        for step in range(140):
            with monitor.step():
                monitor.note(loss=9.0 if step == 135 else 2.0)
    assert [event["step"] for event in alarms_of(tmp_path / "events.jsonl")] == [136]


def test_another_library_s_loop_has_alarms_too(tmp_path):
    hr.pack(({"__key__": f"{n:02d}", "cls": n} for n in range(12)), tmp_path / "numbers")
    loader = hr.Loader(hr.Stream(hr.open(tmp_path / "numbers")).decode(), global_batch_size=4)
    recorded = Recorded(loader, tmp_path / "run", alarms=hr.Alarms(**{**QUIET, "disk_free_bytes": MUCH}))
    assert sum(len(batch["cls"]) for batch in recorded) == 12
    recorded.close()
    loader.close()
    assert [event["rule"] for event in alarms_of(tmp_path / "run/events.jsonl")] == ["disk"]


class Points:
    """Batches of one sample: the loss is its square; step 135 is far off."""

    epochs, steps_per_epoch, global_batch_size, full_batches = 1, 140, 1, True

    def __iter__(self):
        for step in range(1, 141):
            yield {"__key__": [str(step)], "x": torch.full((1, 1), 30.0 if step == 135 else 1.0)}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def meters(self):
        return {"stages": {}}


def trainer(**options):
    return hr.Trainer(
        torch.nn.Linear(1, 1, bias=False),
        lambda output, batch: batch["x"].square().mean() + 0 * output.sum(),
        Points(),
        inputs=lambda batch: batch["x"],
        optimizer=hr.sgd(0.1),
        device="cpu",
        **options,
    )


def test_the_trainer_rings_and_its_record_says_by_what_rules(tmp_path):
    with receiving(500) as server:  # a webhook that fails does not disturb
        alarms = hr.Alarms(webhook=f"{server.url}/s3cret", **QUIET)
        assert trainer(run_dir=tmp_path, alarms=alarms).fit().steps == 140
        assert server.bodies
    (event,) = alarms_of(tmp_path / "events.jsonl")
    assert (event["rule"], event["step"]) == ("loss_spike", 135)
    start = next(iter(read_events(tmp_path / "events.jsonl")))
    assert start["config"]["alarms"]["webhook"] == server.url
    assert "s3cret" not in (tmp_path / "events.jsonl").read_text()


class Kept:
    """A sink that is a list."""

    name, keeps = "kept", True
    held, where = 0, "memory"

    def __init__(self):
        self.events, self.memory = [], {}
        self.take = self.events.append

    def check(self):
        pass

    def target(self, run_dir):
        return "memory"

    def open(self, run_dir, memory):
        return self

    def flush(self):
        pass

    def close(self, outcome):
        pass


def test_what_rings_at_the_end_reaches_the_sinks(tmp_path):
    kept = Kept()
    trainer(run_dir=tmp_path, alarms=hr.Alarms(**QUIET), sinks=[kept]).fit()
    assert [event["rule"] for event in kept.events if event["event"] == "alarm"] == ["loss_spike"]


def test_alarms_of_a_trainer_are_checked_before_it_works():
    with pytest.raises(OptionError, match=r"alarms must be headrace.Alarms\(...\), or None: got True"):
        trainer(alarms=True)
    with pytest.raises(OptionError, match="alarms needs a place for what the run keeps: set run_dir"):
        trainer(alarms=hr.Alarms()).fit()
