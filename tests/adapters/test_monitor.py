"""A loop of one's own leaves the record of its run, with whatever loader."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import headrace as hr
from headrace.adapters.monitor import num_samples
from headrace.errors import OptionError, StorageError
from headrace.rank import Rank, set_data_rank
from headrace.report import read_run, verdict, write_page
from headrace.report.runlog import PARTS


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
        (memoryview(b"1234"), 0),
        (torch.ones(4, 4), 4),
        (torch.tensor(1.0), 0),
        ("text", 0),
        ({}, 0),
    ],
)
def test_samples_are_counted_by_keys_or_by_the_first_array(batch, expected):
    assert num_samples(batch) == expected


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(OptionError, match="first_step must be at least 0: got -1"):
        hr.Monitor(tmp_path, first_step=-1)
    monitor = hr.Monitor(tmp_path)
    with pytest.raises(OptionError, match="kind must be one of copy, communication, checkpoint, rest: got 'sleep'"):
        monitor.timed("sleep").__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"), hr.Monitor(tmp_path / "file/run").step():
        pass
