from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import pytest
import torch
from memory_loader import MemoryLoader
from problems import correct, cross_entropy, fields, inputs, largest_difference, network, trainer, weights
from torch import nn

import headrace as hr
from headrace.errors import DamagedError, LoaderError, OptionError, TrainingError
from headrace.telemetry import read_events

HELD_OUT = fields(50, seed=2)


def held_out(**options):
    return MemoryLoader(HELD_OUT, 12, shuffle=False, drop_last=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "ep=2"}, "mesh must be axis=size pairs of dp"),
        ({"mesh": ""}, "mesh must be axis=size pairs of dp"),
        ({"inputs": "image"}, "inputs is a function, of a batch, such as .*: got 'image'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, float8: got 'fp8'"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm must be above 0"),
        ({"evaluate_every": 0}, "evaluate_every must be above 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"metrics": {"accuracy": correct}}, "metrics need a loader"),
        ({"evaluate": held_out(epochs=None)}, "evaluate must be a loader that ends"),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_trainer_is_made(options, message):
    with pytest.raises(OptionError, match=message):
        trainer(**options)


@pytest.mark.parametrize(
    ("options", "goal", "message"),
    [
        ({"mesh": "dp=2"}, {"steps": 1}, "got mesh='dp=2' on 1"),
        ({}, {}, "the loader is endless"),
        ({}, {"epochs": 1, "steps": 1}, "epochs or steps, not both"),
        ({"checkpoint_every": 2}, {"steps": 1}, "checkpoint_every needs a place"),
        ({"optimizer": lambda params: "adam"}, {"steps": 1}, "must return a torch optimizer: got a str"),
        ({"model": nn.ReLU()}, {"steps": 1}, "needs parameters that require gradients"),
    ],
)
def test_options_that_do_not_fit_the_run_are_refused_before_the_first_step(options, goal, message):
    made = trainer(**options)
    with pytest.raises(OptionError, match=message):
        made.fit(**goal)
    assert made.step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda output, batch: output.sum(1)}, r"a tensor of no dimension: got shape \(12,\)"),
        ({"loss": lambda output, batch: 1.0}, "a tensor of no dimension: got a float"),
        ({"loss": lambda output, batch: (output.sum(), 1)}, "a tensor and a dict: got a int"),
        ({"inputs": lambda batch: [batch["x"]]}, "inputs must return a tensor, a tuple"),
        (
            {"evaluate": held_out(), "metrics": {"m": lambda o, b: o.sum()}},
            r"metric 'm' must return one value a sample",
        ),
    ],
)
def test_answers_of_the_wrong_kind_are_told(options, message):
    with pytest.raises(TrainingError, match=message):
        trainer(**options).fit(steps=1)


@pytest.mark.parametrize("arguments", [lambda b: b["x"], lambda b: (b["x"],), lambda b: {"input": b["x"]}])
def test_inputs_are_a_tensor_arguments_or_keywords(arguments):
    model = network()
    trainer(model, inputs=arguments).fit(steps=3)
    other = network()
    trainer(other).fit(steps=3)
    assert largest_difference(weights(model), weights(other)) == 0


def test_the_trainer_does_what_a_loop_by_hand_does():
    loader = MemoryLoader(fields(), 12, epochs=None)
    by_hand = network()
    biases = [param for param in by_hand.parameters() if param.dim() == 1]
    matrices = [param for param in by_hand.parameters() if param.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for number, batch in zip(range(20), MemoryLoader(fields(), 12, epochs=None), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * hr.cosine(3).multiplier(number, 20)
        cross_entropy(by_hand(inputs(batch)), batch).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    model = network()
    options = {"optimizer": hr.adamw(0.01), "schedule": hr.cosine(3), "clip_grad_norm": 0.5}
    trainer(model, loader, **options).fit(steps=20)
    assert largest_difference(weights(model), weights(by_hand)) == 0


def test_gradients_that_were_there_before_are_no_part_of_the_run():
    """A step that an error broke off may have left some."""
    clean, littered = network(), network()
    for param in littered.parameters():
        param.grad = torch.ones_like(param)
    trainer(clean).fit(steps=3)
    trainer(littered).fit(steps=3)
    assert largest_difference(weights(clean), weights(littered)) == 0


def test_bf16_runs_the_forward_pass_in_bf16_and_keeps_weights_in_fp32():
    seen = []

    def loss(output, batch):
        seen.append(output.dtype)
        return cross_entropy(output, batch)

    model = network()
    trainer(model, loss=loss, precision="bf16").fit(steps=2)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_epochs_come_from_fit_or_the_trainer_or_the_loader():
    loader = MemoryLoader(fields(), 12, epochs=2)
    assert trainer(loader=loader).fit().steps == 16
    assert trainer(loader=MemoryLoader(fields(), 12), epochs=3).fit().epochs == 3
    result = trainer(loader=MemoryLoader(fields(), 12), epochs=3).fit(steps=10)
    assert (result.steps, result.epochs, result.samples) == (10, 1.25, 120)


def test_evaluation_counts_each_sample_once_and_leaves_modes_alone():
    model = network(dropout=0.5)
    model[0].eval()

    def accuracy(output, batch):
        assert not any(module.training for module in model.modules())
        assert "__real__" not in batch or batch["__real__"].all()
        return correct(output, batch)

    made = trainer(model, evaluate=held_out(), metrics={"accuracy": accuracy})
    result = made.fit(steps=8)
    with torch.no_grad():
        model.eval()
        output = model(torch.from_numpy(HELD_OUT["x"]))
        labels = torch.from_numpy(HELD_OUT["cls"])
        assert result.metrics["accuracy"] == pytest.approx((output.argmax(1) == labels).double().mean().item())
        assert result.loss == pytest.approx(nn.functional.cross_entropy(output, labels).item(), rel=1e-5)


def test_a_fraction_of_an_epoch_may_lie_between_evaluations(tmp_path):
    loader = MemoryLoader(fields(), 12, epochs=2)
    trainer(loader=loader, evaluate=held_out(), evaluate_every=0.5, run_dir=tmp_path).fit()
    found = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "evaluate"]
    assert [event["step"] for event in found] == [4, 8, 12, 16]
    assert {event["samples"] for event in found} == {50}


def test_the_parts_of_a_step_add_up_to_its_time(tmp_path):
    began = time.perf_counter()
    trainer(run_dir=tmp_path, checkpoint_every=3, evaluate=held_out()).fit(steps=9)
    took = time.perf_counter() - began
    steps = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 10))
    assert [event["epoch"] for event in steps] == [0] * 8 + [1]
    for event in steps:
        parts = ("wait", "copy", "compute", "communication", "guard", "checkpoint", "rest")
        assert sum(event[f"{part}_sec"] for part in parts) == pytest.approx(event["sec"], rel=1e-12)
        compute = [event[f"{part}_sec"] for part in ("forward", "backward", "optimizer")]
        assert min(compute) > 0
        assert sum(compute) == pytest.approx(event["compute_sec"], rel=1e-12)
        assert (event["checkpoint_sec"] > 0) == (event["step"] % 3 == 0)
    assert sum(event["sec"] for event in steps) <= took, "no moment counts twice"


def test_a_run_is_on_record_from_start_to_end(tmp_path):
    result = trainer(run_dir=tmp_path, clip_grad_norm=1.0).fit(steps=2)
    events = list(read_events(tmp_path / "events.jsonl"))
    kinds = [event["event"] for event in events]
    assert kinds[-2:] == ["feed", "end"]  # a run that takes long has more lines of the feed in between
    assert [kind for kind in kinds if kind != "feed"] == ["start", "step", "checkpoint", "step", "end"]
    start, end = events[0], events[-1]
    assert (start["attempt"], start["world_size"], start["step"], start["total_steps"]) == (0, 1, 0, 2)
    assert start["config"]["optimizer"] == repr(hr.sgd(0.1))
    assert (end["step"], end["samples"], end["loss"]) == (2, 24, result.loss)
    assert all(event["grad_norm"] > 0 for event in events if event["event"] == "step")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trainer().fit(steps=2).run_dir is None
    assert list(tmp_path.iterdir()) == []


def test_a_first_batch_without_samples_on_one_of_two_ranks_would_be_told_and_on_one_process_counts_for_nothing():
    model = network()
    before = weights(model)
    result = trainer(model, MemoryLoader(fields(), 12, epochs=None, keep=lambda row: False)).fit(steps=2)
    assert (result.samples, result.loss) == (0, None)
    assert largest_difference(before, weights(model)) == 0


def test_a_loader_that_ends_early_is_told():
    class Short(MemoryLoader):
        def __iter__(self):
            return iter(())

    with pytest.raises(LoaderError, match="the loader gave no batch after step 0"):
        trainer(loader=Short(fields(), 12)).fit()


def test_a_field_without_one_row_a_sample_cannot_be_cut():
    class Odd(MemoryLoader):
        def batch(self, epoch, number):
            return super().batch(epoch, number) | {"odd": torch.zeros(5), "scale": torch.tensor(2.0)}

    trainer(loader=Odd(fields(), 12)).fit(steps=1)
    with pytest.raises(TrainingError, match="'odd' has 5 rows in a batch of 12"):
        trainer(loader=Odd(fields(), 12), micro_batch_size=4).fit(steps=1)


def test_the_same_seed_gives_the_same_run():
    models = [network(dropout=0.3), network(dropout=0.3), network(dropout=0.3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed + 77)
        trainer(model, seed=seed).fit(steps=5)
    assert largest_difference(weights(models[0]), weights(models[1])) == 0
    assert largest_difference(weights(models[0]), weights(models[2])) > 0


def test_samples_that_are_skipped_are_listed_in_the_runs_folder(tmp_path):
    """Each as often as it was left out, also where the run ends in an error."""
    samples = ({"__key__": f"s{i:02d}", "x.npy": np.full(6, i, np.float32), "cls": i % 3} for i in range(48))
    hr.pack(samples, tmp_path / "data", shuffle=False)
    shard = tmp_path / "data" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"s07.x.npy") + 600] ^= 1
    shard.write_bytes(data)

    def fit(run_dir, **options):
        stream = hr.Stream(hr.open(tmp_path / "data"), epochs=None).decode()
        with hr.Loader(stream, batch_size=12, on_error="skip", **options) as loader:
            made = trainer(loader=loader, inputs=lambda batch: batch["x.npy"], run_dir=run_dir)
            made.fit(epochs=2)

    def listed(run_dir):
        return [json.loads(line) for line in (run_dir / "skipped" / "rank0.jsonl").read_text().splitlines()]

    fit(tmp_path / "whole")
    assert [one["key"] for one in listed(tmp_path / "whole")] == ["s07", "s07"]
    assert "its checksum is" in listed(tmp_path / "whole")[0]["reason"]
    events = read_events(tmp_path / "whole" / "events.jsonl")
    assert [event["skipped"] for event in events if event["event"] == "feed"][-1] == 2
    with pytest.raises(DamagedError, match="max_skipped"):
        fit(tmp_path / "strict", max_skipped=0)
    assert [one["key"] for one in listed(tmp_path / "strict")] == ["s07"]


def test_replaced_processes_of_the_loader_are_on_record(tmp_path):
    def die_once(sample):
        if sample["cls"] == 25 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(3)
        return {"x": np.full(6, sample["cls"], np.float32), "cls": sample["cls"] % 3}

    hr.pack(({"__key__": f"{i:02d}", "cls": i} for i in range(40)), tmp_path / "packed", shuffle=False)
    stream = (
        hr.Stream(hr.open(tmp_path / "packed"), shuffle=False)
        .decode()
        .map(die_once, shapes={"x": ("float32", (6,)), "cls": ("int64", ())})
    )
    with hr.Loader(stream, batch_size=4) as loader:
        trainer(loader=loader, run_dir=tmp_path / "run").fit(epochs=1)
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    assert events[0]["data"]["dataset"] == stream.dataset.fingerprint
    assert {event["processes"] for event in events if event["event"] == "feed"} == {1}
    (restart,) = [event for event in events if event["event"] == "loader_restart"]
    assert (restart["process"], restart["reason"], restart["epoch"]) == ("loader", "exit code 3", 0)
    assert 25 in restart["positions"]
    assert restart["batch"] <= 6
    assert [event["restarts"] for event in events if event["event"] == "feed"][-1] == 1


def test_float8_without_its_library_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(OptionError, match=r"precision='float8' needs torchao: pip install 'headrace\[float8\]'"):
        trainer(precision="float8")
