"""Training in float8: what is converted, what it changes, and what it leaves alone."""

from __future__ import annotations

import json
import logging

import in_float8
import pytest
import torch
from problems import largest_difference, weights
from processes import HERE, run_ranks
from torch import nn

import headrace as hr
from headrace.errors import OptionError
from headrace.telemetry import read_events
from headrace.train.parallel import float8
from headrace.train.parallel.pipeline import cut_stages
from headrace.train.tensor_files import stored_tensors

pytest.importorskip("torchao", reason="needs the extra float8")


@pytest.fixture(autouse=True, scope="module")
def emulated():
    """By one thread, as the ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float8, "_EMULATED", True)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(emulated):
    return in_float8.FLOAT8["learned"](None)


def converted(model):
    return {name for name, module in model.named_modules() if "Float8" in type(module).__name__}


def moved(found, start):
    """How far weights are from those of a start, all together."""
    return sum(float((found[name] - start[name]).square().sum()) for name in found) ** 0.5


def near_bf16(found, bf16):
    """Roundings to 8 bits move the weights otherwise, by at most a tenth of how far they moved."""
    start = weights(in_float8.network())
    apart = moved(found["weights"], bf16["weights"]) / moved(bf16["weights"], start)
    assert 1e-4 < apart < 0.1
    assert found["loss"] == pytest.approx(bf16["loss"], abs=0.02)


def test_another_run_of_the_same_model_computes_as_it_is_told():
    model = in_float8.network()
    names = [name for name, _ in model.named_parameters()]
    for precision, layers in (("float8", in_float8.LAYERS), ("float8", in_float8.LAYERS), ("bf16", set())):
        in_float8.trainer(model, precision, steps=1).fit()
        assert converted(model) == layers
        assert [name for name, _ in model.named_parameters()] == names


def test_it_learns_what_bf16_learns(alone):
    near_bf16(alone["float8"], alone["bf16"])


@pytest.mark.parametrize("mesh", ["dp", "fsdp", "pp"])
def test_two_processes_learn_the_same(mesh, alone, tmp_path):
    run_ranks(2, [HERE / "in_float8.py", "learned", "resumed", "--out", tmp_path], TEST_MESH=mesh)
    one, other = (torch.load(tmp_path / f"learned-{rank}.pt") for rank in range(2))
    assert largest_difference(one["float8"]["weights"], other["float8"]["weights"]) == 0
    near_bf16(one["float8"], alone["bf16"])
    for rank in range(2):
        found = torch.load(tmp_path / f"resumed-{rank}.pt")
        assert largest_difference(found["straight"], found["again"]) == 0


def test_what_was_converted_is_logged_and_recorded_and_the_rest_is_as_it_was(tmp_path, caplog):
    model = in_float8.network()
    before = {name: (value.dtype, value.shape) for name, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "headrace.train"):
        in_float8.trainer(model, steps=1, run_dir=tmp_path).fit()
    assert converted(model) == in_float8.LAYERS
    assert "float8: 6 linear layers multiply in it: *.*.down, *.*.up" in caplog.messages
    start = next(read_events(tmp_path / "events.jsonl"))
    assert (start["precision"], set(start["config"]["float8_layers"])) == ("float8", in_float8.LAYERS)
    assert {name: (value.dtype, value.shape) for name, value in model.state_dict().items()} == before


def test_a_run_goes_on_bit_for_bit_or_in_bf16_and_is_exported(tmp_path):
    found = in_float8.FLOAT8["resumed"](tmp_path)
    assert largest_difference(found["straight"], found["again"]) == 0
    state = json.loads((tmp_path / "again/checkpoints/step-00000008/state.json").read_text())
    assert set(state["config"]["float8_layers"]) == in_float8.LAYERS
    done = hr.export_safetensors(tmp_path / "again", tmp_path / "model.safetensors")
    written = {name: stored.read() for name, stored in stored_tensors(done.path).items()}
    assert largest_difference(written, found["again"]) == 0
    model = in_float8.network(seed=9)
    made = in_float8.trainer(model, "bf16", optimizer=hr.adamw(0.01), run_dir=tmp_path / "again")
    made.fit(steps=8)
    assert largest_difference(weights(model), found["again"]) == 0
    assert made.fit(steps=9).steps == 9


def test_batches_of_any_size_and_recomputed_blocks_go_through(tmp_path):
    model = in_float8.network()
    in_float8.trainer(model, steps=2, micro_batch_size=5, activation_checkpointing="selective").fit()
    plain = in_float8.network()
    in_float8.trainer(plain, steps=2, micro_batch_size=5).fit()
    assert largest_difference(weights(model), weights(plain)) == 0


def test_a_loop_of_ones_own_gets_the_same_layers():
    model = in_float8.network()
    assert hr.parallelize(model, precision="float8", device="cpu") is model
    assert converted(model) == in_float8.LAYERS


class Attending(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2)
        self.odd, self.hooked, self.fits = nn.Linear(width, 17), nn.Linear(width, width), nn.Linear(width, width)
        self.hooked.register_forward_hook(lambda *_: None)


def test_only_layers_that_fit_are_converted():
    """Attention computes with its own layer's weights; dimensions must be multiples of 16; hooks would be lost."""
    blocks = nn.ModuleDict({"head": nn.Linear(32, 32), "blocks": nn.ModuleList(Attending(32) for _ in range(2))})
    assert set(float8._convertible(blocks)) == {"blocks.0.fits", "blocks.1.fits"}
    flat = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    assert set(float8._convertible(flat)) == {"1", "2"}


def test_converted_layers_outside_of_blocks_go_to_stages_as_they_are():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    hr.parallelize(model, precision="float8", device="cpu")
    first, second = cut_stages(model, 2)
    x = torch.randn(5, 16)
    assert torch.equal(second(first(x)), model(x))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(OptionError, match=r"whose dimensions are multiples of 16: Sequential has none; say precision="):
        in_float8.trainer(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)), steps=1).fit()


def test_a_device_without_float8_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(float8, "_EMULATED", False)
    model = in_float8.network()
    made = in_float8.trainer(model, steps=1, run_dir=tmp_path / "run")
    refusal = r"needs a CUDA device of capability 8\.9 or more .*: got device='cpu'; say precision='bf16'"
    with pytest.raises(OptionError, match=refusal):
        made.fit()
    assert converted(model) == set()
    assert not (tmp_path / "run").exists()


def test_tensor_parallel_is_refused_when_the_trainer_is_made():
    with pytest.raises(OptionError, match="tp cuts weights: got precision='float8' on a mesh with tp; say precision"):
        in_float8.trainer(in_float8.network(), mesh="tp=2")
