"""A loop of one's own leaves the record of its run, with whatever loader."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import headrace as hr
from headrace.errors import OptionError, StorageError
from headrace.load.foreign import LoaderFacts, loader_facts, num_bytes, num_samples
from headrace.rank import Rank, set_data_rank
from headrace.report import read_run, verdict, write_page
from headrace.report.runlog import PARTS
from headrace.telemetry import read_events


class Slow:
    """Batches of 4 samples that take a while each."""

    def __init__(self, num_batches, sec):
        self.num_batches, self.sec = num_batches, sec

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        for _ in range(self.num_batches):
            time.sleep(self.sec)
            yield {"x": torch.ones(4, 2)}


def seconds(run, *parts):
    return sum(run.steps[f"{part}_sec"] for part in parts)


def test_the_parts_of_a_step_are_told_apart_and_add_up_to_the_time_that_passed(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        began = time.perf_counter()
        for _ in monitor.watch(Slow(6, 0.02)):
            with monitor.step():
                time.sleep(0.01)
                with monitor.timed("communication"):
                    time.sleep(0.03)
            with monitor.timed("checkpoint"):
                time.sleep(0.04)
            time.sleep(0.05)
        whole = time.perf_counter() - began
    run = read_run(tmp_path)
    assert np.allclose(seconds(run, *PARTS), run.steps["sec"])
    least = {"wait": 0.02, "compute": 0.01, "communication": 0.03}
    assert all((seconds(run, part) >= sec).all() for part, sec in least.items())
    # What follows a step belongs to the next one; of the last one it is nobody's.
    assert (seconds(run, "checkpoint")[1:] >= 0.04).all()
    assert (seconds(run, "rest")[1:] >= 0.05).all()
    assert (seconds(run, "checkpoint")[0], run.end["step"]) == (0, 6)
    assert run.steps["sec"].sum() == pytest.approx(whole - 0.09, rel=0.2)


def test_a_loop_that_waits_for_its_loader_is_input_bound(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch(Slow(12, 0.02)):
            with monitor.step():
                time.sleep(0.002)
    assert verdict(tmp_path).bound == "input"


def test_batches_of_a_dataloader_are_counted_and_noted(tmp_path):
    data = TensorDataset(torch.arange(10.0).reshape(10, 1), torch.arange(10))
    with hr.Monitor(tmp_path, total_steps=4, config={"lr": 0.1}) as monitor:
        batches = monitor.watch(DataLoader(data, batch_size=4))
        assert len(batches) == 3
        assert batches.batch_size == 4
        for x, _ in batches:
            with monitor.step():
                monitor.note(loss=float(x.sum()), lr=0.1, accuracy=0.5)
        monitor.evaluated(0.25, samples=10, sec=0.1, accuracy=1.0)
    run = read_run(tmp_path)
    assert run.steps["samples"].tolist() == [4, 4, 2]
    assert run.steps["loss"].tolist() == [6, 22, 17]
    assert run.metrics["accuracy"].tolist() == [0.5] * 3
    assert (run.evaluations[0]["step"], run.evaluations[0]["loss"]) == (3, 0.25)
    assert (run.attempts[0].start["total_steps"], run.attempts[0].start["config"]) == (4, {"lr": 0.1})
    assert write_page(tmp_path).is_file()


def test_several_batches_may_make_one_step(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        batches = iter(monitor.watch(Slow(10, 0.02)))
        began = time.perf_counter()
        for _ in range(5):
            with monitor.step():
                next(batches)
                next(batches)
        whole = time.perf_counter() - began
    run = read_run(tmp_path)
    assert run.steps["samples"].tolist() == [8] * 5
    assert (run.steps["wait_sec"] >= 0.04).all()
    assert run.steps["sec"].sum() == pytest.approx(whole, rel=0.2)
    assert run.steps["compute_sec"].sum() < whole / 2


def test_what_a_failed_step_counted_is_no_part_of_the_next(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for number, _ in enumerate(monitor.watch(Slow(3, 0))):
            with suppress(MemoryError), monitor.step():
                monitor.note(loss=float(number))
                if number == 1:
                    raise MemoryError
    run = read_run(tmp_path)
    assert run.steps["samples"].tolist() == [4, 4]
    assert run.steps["loss"].tolist() == [0, 2]


def test_what_is_named_within_what_is_named_counts_once(tmp_path):
    """Each moment belongs to the innermost name, and forward, backward and optimizer are parts of the computing."""
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch(Slow(3, 0)):
            with monitor.step(), monitor.timed("backward"), monitor.timed("copy"):
                time.sleep(0.01)
                with monitor.timed("communication"):
                    time.sleep(0.05)
    run = read_run(tmp_path)
    steps = [event for event in read_events(run.path) if event["event"] == "step"]
    assert np.allclose(seconds(run, *PARTS), run.steps["sec"])
    assert (seconds(run, "communication") >= 0.05).all()
    assert all(step["copy_sec"] < step["communication_sec"] for step in steps)
    assert all(step["backward_sec"] <= step["compute_sec"] < 0.05 for step in steps)


def test_a_step_that_names_its_phases_computes_in_these(tmp_path):
    with hr.Monitor(tmp_path) as monitor, monitor.step():
        for phase in ("forward", "backward", "optimizer"):
            with monitor.timed(phase):
                time.sleep(0.01)
        time.sleep(0.03)
    [step] = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert step["forward_sec"] + step["backward_sec"] + step["optimizer_sec"] == pytest.approx(step["compute_sec"])
    assert step["rest_sec"] >= 0.03
    assert step["rest_sec"] + step["compute_sec"] == pytest.approx(step["sec"])


def test_checkpoints_are_recorded_with_their_sizes_if_they_came_about(tmp_path):
    with hr.Monitor(tmp_path / "run") as monitor:
        for number, _ in enumerate(monitor.watch(Slow(3, 0))):
            with monitor.step():
                pass
            with suppress(OSError), monitor.saving(tmp_path / "saved"):
                if number == 1:
                    raise OSError("no space")
                (tmp_path / "saved").mkdir(exist_ok=True)
                (tmp_path / "saved/model").write_bytes(bytes(100))
    run = read_run(tmp_path / "run")
    assert [(event["step"], event["bytes"]) for event in run.checkpoints] == [(1, 100), (3, 100)]
    assert (seconds(run, "checkpoint")[1:] > 0).all()


def test_a_loader_of_another_kind_is_counted_with_what_it_says_of_itself(tmp_path):
    data = TensorDataset(torch.arange(10.0).reshape(10, 1), torch.arange(10))
    loader = DataLoader(data, batch_size=4, num_workers=1, prefetch_factor=3)
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch(loader):
            with monitor.step():
                pass
        found = monitor.tally()
    assert found.facts == LoaderFacts("DataLoader", num_workers=1, prefetch_factor=3, batch_size=4)
    assert (found.batches, found.samples, found.bytes_per_batch) == (3, 10, 4 * (4 + 8))
    assert found.wait_sec == pytest.approx(read_run(tmp_path).steps["wait_sec"].sum())
    [written] = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "loader"]
    assert {**written, **found.to_json()} == written


def test_one_that_goes_on_makes_another_start_of_the_run(tmp_path):
    """After it was closed, and after a loop that broke off and left it open."""
    monitor = hr.Monitor(tmp_path, config={"lr": 1})
    for first_step in (0, 1, 1):
        monitor.go_on(first_step=first_step, total_steps=3)
        with monitor.step():
            monitor.took(torch.ones(4, 2))
        monitor.took(torch.ones(4, 2))  # of a step that never comes
        if first_step == 0:
            monitor.close()
    monitor.close()
    run = read_run(tmp_path)
    assert run.steps["step"].tolist() == [1, 2]
    assert run.steps["samples"].tolist() == [4, 4]
    assert [attempt.step for attempt in run.attempts] == [0, 1, 1]
    assert all(attempt.start["config"] == {"lr": 1} for attempt in run.attempts)
    assert run.end["step"] == 2


def test_lines_wait_for_losses_that_are_not_there_yet_and_keep_their_order(tmp_path, monkeypatch):
    class Loss:
        is_there = False

        def value(self):
            return 0.5

    monkeypatch.setattr("headrace.adapters.monitor._number", lambda loss: loss)
    losses = [Loss(), Loss(), 0.25]
    monitor = hr.Monitor(tmp_path)
    for loss in losses:
        with monitor.step():
            monitor.note(loss=loss)
    assert read_run(tmp_path).num_steps == 0
    losses[0].is_there = True
    with monitor.step():
        pass
    assert read_run(tmp_path).num_steps == 1
    monitor.close()
    assert read_run(tmp_path).steps["step"].tolist() == [1, 2, 3, 4]
    assert read_run(tmp_path).steps["loss"][:3].tolist() == [0.5, 0.5, 0.25]


@pytest.mark.gpu
def test_a_loss_on_a_device_is_written_without_waiting_for_it(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for number, _ in enumerate(monitor.watch(Slow(5, 0))):
            with monitor.step():
                monitor.note(loss=torch.full((), float(number), device="cuda"))
    assert read_run(tmp_path).steps["loss"].tolist() == [0, 1, 2, 3, 4]


def test_a_closed_one_records_no_more(tmp_path):
    monitor = hr.Monitor(tmp_path)
    monitor.close()
    with pytest.raises(OptionError, match="was closed records nothing more: make another one"):
        monitor.step().__enter__()


def test_of_processes_with_one_share_of_the_data_the_first_writes(tmp_path, monkeypatch):
    """As tensor parallel ones have: each is rank 0 of 1 for loaders."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    set_data_rank(Rank(0, 1))
    try:
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            with hr.Monitor(tmp_path / rank) as monitor:
                for _ in monitor.watch(Slow(2, 0)):
                    with monitor.step():
                        pass
    finally:
        set_data_rank(None)
    assert read_run(tmp_path / "0").steps["samples"].tolist() == [4, 4]
    assert not (tmp_path / "1").exists()


def test_a_loop_that_goes_on_has_one_history(tmp_path):
    def train(monitor):
        for number, _ in enumerate(monitor.watch(Slow(6, 0))):
            with monitor.step():
                if number == 4:
                    raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), hr.Monitor(tmp_path) as monitor:
        train(monitor)
    assert read_run(tmp_path).end is None
    assert read_run(tmp_path).num_steps == 4
    with hr.Monitor(tmp_path, first_step=2) as monitor:
        for _ in monitor.watch(Slow(3, 0)):
            with monitor.step():
                pass
    run = read_run(tmp_path)
    assert run.steps["step"].tolist() == [1, 2, 3, 4, 5]
    assert (run.num_restarts, run.lost_steps, run.end["step"]) == (1, 2, 5)


def test_a_loaders_meters_are_in_the_record(tmp_path):
    hr.pack(({"__key__": f"{i:03d}", "cls": i} for i in range(40)), tmp_path / "data", shuffle=False)
    loader = hr.Loader(hr.Stream(hr.open(tmp_path / "data"), epochs=2).decode(), global_batch_size=10)
    with hr.Monitor(tmp_path / "run") as monitor:
        for _ in monitor.watch(loader):
            with monitor.step():
                pass
    run = read_run(tmp_path / "run")
    assert run.steps["epoch"].tolist() == [0] * 4 + [1] * 4
    assert run.feeds[-1]["stages"]["read"]["items"] >= 80  # it reads ahead
    assert run.attempts[0].start["global_batch_size"] == 10


def test_another_rank_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with hr.Monitor(tmp_path / "run") as monitor:
        for _ in monitor.watch(Slow(2, 0)):
            with monitor.step():
                monitor.note(loss=1.0)
    assert not (tmp_path / "run").exists()
    assert monitor.steps_done == 2


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"__key__": ["a", "b"], "x": torch.ones(2, 3)}, 2),
        ({"name": "x", "x": np.ones((5, 3))}, 5),
        ((torch.ones(3, 2), torch.ones(3)), 3),
        (([torch.ones(3, 8, 8)] * 16, [{}] * 16), 16),
        ({"text": ["a", "b"]}, 2),
        ({"jpg": [memoryview(b"1234")] * 8}, 8),
        (([torch.ones(6, 3), torch.ones(6, 3)], torch.ones(6)), 6),
        ({"views": [torch.ones(6, 3), torch.ones(6, 3)]}, 0),
        ({"a": [torch.ones(6, 3)], "b": [torch.ones(6, 3)]}, 0),
        ({"inputs": {"ids": torch.ones(6, 3)}}, 6),
        ({"waves": [torch.ones(5), torch.ones(7)]}, 2),
        ([{"x": torch.ones(3, 8)}] * 16, 0),
        ([(torch.ones(3, 8), 1)] * 16, 0),
        (memoryview(b"1234"), 0),
        (torch.ones(4, 4), 4),
        (torch.tensor(1.0), 0),
        ("text", 0),
        ({}, 0),
    ],
)
def test_samples_are_counted_by_keys_or_by_the_first_array(batch, expected):
    assert num_samples(batch) == expected


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"views": [torch.ones(6, 3), torch.ones(6, 3)]}, 6),
        ({"a": [torch.ones(6, 3)], "b": [torch.ones(6, 3)]}, 6),
        (([torch.ones(3, 8, 8)] * 6, [{"boxes": torch.ones(2, 4)}] * 6), 6),
        ([(torch.ones(3, 8), 1)] * 6, 6),
        ((torch.ones(50, 6), torch.ones(6)), 6),
        ((torch.ones(4, 3), torch.ones(4)), 4),
    ],
)
def test_what_the_loader_says_of_its_batches_tells_samples_from_views_of_them(batch, expected):
    assert num_samples(batch, 6) == expected


def test_samples_that_do_not_show_are_unknown_and_not_none(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch([{"views": [torch.ones(4, 2)] * 2}] * 3):
            with monitor.step():
                pass
    assert [event["samples"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"] == [
        None
    ] * 3
    assert " 0<small>samples/s" not in write_page(tmp_path).read_text()


def test_what_is_noted_of_a_step_is_added_up(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch(Slow(2, 0)):
            with monitor.step():
                monitor.note(accuracy=0.5, lr=0.1, samples=3)
                monitor.note(loss=1.0, margin=2.0)
    run = read_run(tmp_path)
    assert run.steps["loss"].tolist() == [1, 1]
    assert run.steps["lr"].tolist() == [0.1, 0.1]
    assert run.steps["samples"].tolist() == [3, 3]
    assert {name: values.tolist() for name, values in run.metrics.items()} == {"accuracy": [0.5] * 2, "margin": [2] * 2}


@pytest.mark.parametrize(("first_step", "expected"), [(0, [0, 0, 1, 1]), (4, [None] * 4)])
def test_the_epochs_of_any_loader_are_counted(tmp_path, first_step, expected):
    with hr.Monitor(tmp_path, first_step=first_step) as monitor:
        batches = monitor.watch(Slow(2, 0))
        for _ in range(2):
            for _ in batches:
                with monitor.step():
                    pass
    steps = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert [event["epoch"] for event in steps] == expected
    assert write_page(tmp_path).is_file()


def test_a_phase_within_another_counts_once(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        for _ in monitor.watch(Slow(1, 0)):
            with monitor.step(), monitor.timed("optimizer"):
                for phase in ("forward", "backward"):
                    with monitor.timed(phase):
                        time.sleep(0.05)
                time.sleep(0.02)
    (step,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert step["optimizer_sec"] == pytest.approx(0.02, abs=0.02)
    assert step["compute_sec"] == pytest.approx(0.12, abs=0.03)


def test_a_checkpoint_after_a_pause_takes_nothing_from_the_next_step(tmp_path):
    with hr.Monitor(tmp_path) as monitor:
        with monitor.step():
            pass
        monitor.evaluated(0.5)
        with monitor.saving(tmp_path / "kept"):
            time.sleep(0.1)
        monitor.waited(0.0)
        time.sleep(0.05)
        with monitor.step():
            pass
    _, step = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert step["rest_sec"] >= 0.05
    assert step["checkpoint_sec"] >= 0.1


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"__key__": ["a", "b"], "x": torch.ones(2, 3), "cls": np.ones(2, np.int64)}, 24 + 16),
        ((torch.ones(3, 2), [b"12", memoryview(b"123"), "ä"]), 24 + 2 + 3 + 2),
        ([{"a": [{"b": torch.ones(2)}]}, 1.5, None], 8 + 8),
        (object(), 0),
    ],
)
def test_bytes_are_those_of_tensors_arrays_and_texts_however_nested(batch, expected):
    assert num_bytes(batch) == expected


def test_webdatasets_loader_says_how_many_workers_it_has():
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset: pip install 'headrace[dev]'")
    loader = webdataset.WebLoader(webdataset.DataPipeline(), num_workers=2, batch_size=None)
    assert loader_facts(loader) == LoaderFacts("WebLoader", num_workers=2, prefetch_factor=2)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(OptionError, match="first_step must be at least 0: got -1"):
        hr.Monitor(tmp_path, first_step=-1)
    monitor = hr.Monitor(tmp_path)
    with pytest.raises(
        OptionError,
        match="kind must be one of copy, communication, checkpoint, rest, forward, backward, optimizer: got 'sleep'",
    ):
        monitor.timed("sleep").__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"), hr.Monitor(tmp_path / "file/run").step():
        pass
