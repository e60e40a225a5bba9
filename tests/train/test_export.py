"""A checkpoint's weights as one safetensors file, whoever wrote the checkpoint."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from memory_loader import MemoryLoader
from problems import correct, fields, layered, network, trainer
from processes import HERE, run_ranks

import headrace as hr
from headrace.cli.main import app
from headrace.cli.output import run as run_cli
from headrace.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}


def tensors_in(path):
    """By the format's own description: 8 bytes of length, a JSON table, and the tensors without gaps."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    assert table.pop("__metadata__")["format"] == "pt"
    found, at = {}, 0
    for name, entry in table.items():
        (start, end), dtype = entry["data_offsets"], DTYPES[entry["dtype"]]
        assert start == at, "no gap"
        assert end - start == math.prod(entry["shape"]) * dtype.itemsize
        assert (8 + length + start) % dtype.itemsize == 0, "aligned"
        raw = bytearray(data[8 + length + start : 8 + length + end])
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        found[name], at = flat.reshape(entry["shape"]), end
    assert 8 + length + at == len(data)
    return found


@pytest.mark.parametrize(("mesh", "size"), [("dp", 1), ("dp", 2), ("fsdp", 2)])
def test_a_bare_model_gives_the_same_outputs_from_every_mesh(tmp_path, mesh, size):
    options = {"steps": 4, "checkpoint_async": mesh == "fsdp"}
    run_ranks(size, [HERE / "saving_run.py", tmp_path, json.dumps(options)], TEST_MESH=mesh)
    done = hr.export_safetensors(tmp_path, tmp_path / "out" / "model.safetensors")
    assert (done.step, done.bytes) == (4, done.path.stat().st_size)
    trained, bare = layered(), layered(seed=9)
    trained.load_state_dict(torch.load(tmp_path / "weights.pt"))
    bare.load_state_dict(tensors_in(done.path))
    x = torch.randn(5, 6)
    assert torch.equal(trained(x), bare(x))
    assert [path.name for path in done.path.parent.iterdir()] == ["model.safetensors"]


class Mixed(torch.nn.Module):
    """Parameters and buffers of several types, of which one has a single element and one has none."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.tensor([True, False, True]))
        self.register_buffer("counts", torch.arange(3))
        self.register_buffer("transposed", torch.ones(3, 5, dtype=torch.bfloat16).T)
        self.register_buffer("none", torch.empty(0, 4))

    def forward(self, x):
        return self.inner(x) * self.scale


def test_tensors_of_every_type_come_back_under_their_names(tmp_path):
    model = Mixed()
    trainer(model, run_dir=tmp_path).fit(steps=2)
    found = tensors_in(hr.export_safetensors(tmp_path, tmp_path / "model.safetensors").path)
    assert found.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value), name


def test_safetensors_own_reader_takes_the_file(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: pip install safetensors")
    model = Mixed()
    trainer(model, run_dir=tmp_path).fit(steps=2)
    found = library.load_file(hr.export_safetensors(tmp_path, tmp_path / "model.safetensors").path)
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def evaluated(run_dir, values, steps, **options):
    """A run whose evaluations after each second step find these accuracies."""
    given = iter(values)

    def metric(output, batch):
        return torch.full((len(output),), next(given))

    held_out = MemoryLoader(fields(12, seed=2), 12, shuffle=False, drop_last=False)
    every = 2 * 12 / 96
    options = {"evaluate": held_out, "evaluate_every": every, "keep_checkpoints": 1, "keep_best": "accuracy", **options}
    loader = MemoryLoader(fields(), 12, epochs=None)
    made = trainer(network(), loader, run_dir=run_dir, metrics={"accuracy": metric}, **options)
    made.fit(steps=steps)
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def state_of(run_dir, step):
    return json.loads((run_dir / f"checkpoints/step-{step:08d}/state.json").read_text())


@pytest.mark.parametrize("is_async", [False, True])
def test_the_best_evaluated_checkpoint_stays_beside_the_newest(tmp_path, is_async):
    """An evaluation that is better makes a checkpoint due; one that is not finite never is."""
    values = [0.25, 0.75, float("nan"), 0.5]
    assert evaluated(tmp_path, values, 8, checkpoint_async=is_async) == ["step-00000004", "step-00000008"]
    best = {"metric": "accuracy", "mode": "max", "value": 0.75, "step": 4}
    assert [state_of(tmp_path, step)["best"] for step in (4, 8)] == [best, best]
    assert state_of(tmp_path, 8)["evaluation"]["metrics"] == {"accuracy": 0.5}
    assert evaluated(tmp_path, [0.6, 0.8], 12) == ["step-00000012"], "what was best is remembered over a resume"


def test_the_best_is_known_to_a_second_fit_of_the_same_trainer(tmp_path):
    held_out = MemoryLoader(fields(12, seed=2), 12, shuffle=False, drop_last=False)
    given = iter([0.75, 0.5])
    options = {"evaluate": held_out, "keep_best": "accuracy", "keep_checkpoints": 1, "run_dir": tmp_path}
    made = trainer(metrics={"accuracy": lambda output, _: torch.full((len(output),), next(given))}, **options)
    made.fit(steps=2)
    made.fit(steps=4)
    assert state_of(tmp_path, 4)["best"]["step"] == 2
    assert (tmp_path / "checkpoints/step-00000002").exists()


def test_the_best_or_the_newest_is_exported(tmp_path, capsys):
    evaluated(tmp_path, [0.75, 0.5], 4)
    assert hr.export_safetensors(tmp_path, tmp_path / "model.safetensors", best=True).step == 2
    assert run_cli(app, ["export", str(tmp_path), str(tmp_path / "model.safetensors"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["tensors"]) == (4, 4)
    assert run_cli(app, ["export", str(tmp_path), str(tmp_path / "best.safetensors"), "--best"]) == 0
    assert capsys.readouterr().out.startswith("step 2: 4 tensors, ")


def test_without_a_best_or_any_checkpoint_that_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="is neither a checkpoint nor a folder that has some"):
        hr.export_safetensors(tmp_path, tmp_path / "model.safetensors")
    trainer(run_dir=tmp_path).fit(steps=1)
    with pytest.raises(CheckpointError, match="names no best checkpoint: train with keep_best"):
        hr.export_safetensors(tmp_path, tmp_path / "model.safetensors", best=True)


def test_a_damaged_checkpoint_is_not_exported(tmp_path, caplog):
    trainer(run_dir=tmp_path, checkpoint_every=2).fit(steps=4)
    table = tmp_path / "checkpoints/step-00000004/.metadata"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "headrace.train"):
        assert hr.export_safetensors(tmp_path, tmp_path / "model.safetensors").step == 2
    assert "differs from its checksum" in caplog.text
    table.with_name("state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        hr.export_safetensors(table.parent, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("evaluate", "asked", "averaged"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_the_weights_that_were_evaluated_are_exported_unless_others_are_asked_for(tmp_path, evaluate, asked, averaged):
    model = torch.nn.Sequential(network().to(torch.bfloat16), torch.nn.BatchNorm1d(3, dtype=torch.bfloat16))
    inputs = {"inputs": lambda batch: batch["x"].bfloat16()}
    made = trainer(model, run_dir=tmp_path, ema=hr.ema(0.9, evaluate=evaluate), **inputs)
    made.fit(steps=3)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with made.averaged():
        inside = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(trained["0.0.weight"], inside["0.0.weight"])
    done = hr.export_safetensors(tmp_path, tmp_path / "model.safetensors", averaged=asked)
    assert done.averaged == averaged
    for name, value in tensors_in(done.path).items():
        assert torch.equal(value, (inside if averaged else trained)[name]), name
    choice = {None: [], True: ["--averaged"], False: ["--no-averaged"]}[asked]
    assert run_cli(app, ["export", str(tmp_path), str(tmp_path / "again.safetensors"), *choice]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == done.path.read_bytes()


def test_an_average_that_is_not_there_is_not_exported(tmp_path):
    trainer(run_dir=tmp_path).fit(steps=1)
    with pytest.raises(CheckpointError, match="has no averaged weights: train with ema, or leave out --averaged"):
        hr.export_safetensors(tmp_path, tmp_path / "model.safetensors", averaged=True)


def test_a_checkpoint_without_its_frozen_parameters_is_not_exported(tmp_path):
    model = network()
    model[0].requires_grad_(False)
    trainer(model, run_dir=tmp_path, save_frozen=False).fit(steps=1)
    with pytest.raises(CheckpointError, match=r"leaves out the frozen parameters .*save_pretrained.*save_frozen=True"):
        hr.export_safetensors(tmp_path, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_best": "f1"}, r"keep_best must be .*\('f1', 'max'\): got 'f1'"),
        ({"keep_best": ("f1", "up")}, "keep_best must be"),
        ({"keep_best": "loss", "evaluate": None, "metrics": None}, "needs a loader to be evaluated on: set evaluate"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_once(options, words):
    held_out = MemoryLoader(fields(12), 12)
    with pytest.raises(hr.errors.OptionError, match=words):
        trainer(**{"evaluate": held_out, "metrics": {"f1": correct}, "run_dir": "unused", **options})


def test_a_metric_that_the_evaluation_does_not_have_is_named(tmp_path):
    with pytest.raises(hr.errors.TrainingError, match=r"needs a metric of the evaluation: it has loss, accuracy, not"):
        evaluated(tmp_path, [0.5], 2, keep_best=("bleu", "max"))
