"""Models of Hugging Face's transformers are ordinary modules, and PEFT's adapters ordinary parameters."""

from __future__ import annotations

import json

import pytest
import torch
from problems import largest_difference
from processes import HERE, run_ranks

pytest.importorskip("transformers", reason="needs the extra dev (transformers)")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

import language_models as lm  # noqa: E402

import headrace as hr  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One where the model lies, and what one process made of it."""
    folder = tmp_path_factory.mktemp("alone")
    lm.make(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return lm.whole(folder, "whole-run")


def ranks(name, mesh, tmp_path):
    lm.make(tmp_path / "gpt2")
    run_ranks(2, [HERE / "language_models.py", name, "--out", tmp_path], TEST_MESH=mesh)
    return [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]


def saved_names(run_dir):
    newest = max((run_dir / "checkpoints").iterdir())
    metadata = torch.distributed.checkpoint.FileSystemReader(newest).read_metadata()
    return set(metadata.state_dict_metadata)


def test_a_checkpoint_folder_fills_a_model_of_the_same_configuration(folder):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder / "gpt2")
    model = transformers.AutoModelForCausalLM.from_config(config)
    hr.load_weights(model, folder / "gpt2")
    assert largest_difference(model.state_dict(), lm.gpt2(folder / "gpt2").state_dict()) == 0


def test_it_learns_and_resumes_bit_for_bit(alone):
    assert alone["loss"] < 3.0, "it began at log(32) = 3.47"
    assert largest_difference(alone["weights"], alone["again"]) == 0


@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_on_two_processes_it_is_the_same_model(mesh, alone, tmp_path):
    for found in ranks("whole", mesh, tmp_path):
        assert largest_difference(found["weights"], found["again"]) == 0
        assert largest_difference(found["weights"], alone["weights"]) <= 1e-6
        assert torch.equal(found["weights"]["lm_head.weight"], found["weights"]["transformer.wte.weight"])
    names = saved_names(tmp_path / "whole-run-once")
    assert "model.transformer.wte.weight" in names
    assert "model.lm_head.weight" not in names


@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_adapters_are_trained_and_saved_alone(mesh, folder, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    alone = lm.adapters(folder, f"alone-{mesh}")
    for found in (alone, *ranks("adapters", mesh, tmp_path)):
        assert found["base moved"] == 0
        assert found["loss"] < 3.47
        assert largest_difference(found["weights"], found["again"]) == 0
        assert largest_difference(found["weights"], alone["weights"]) <= 2e-5
    names = {name for name in saved_names(tmp_path / "adapters-run-once") if not name.startswith("random.")}
    assert all("lora_" in name or name == "ema_steps" for name in names)
    state = json.loads((max((folder / f"alone-{mesh}-once/checkpoints").iterdir()) / "state.json").read_text())
    assert len(state["frozen"]) == 32


def test_an_adapter_is_exported_as_pefts_own_folder(folder):
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    trained = lm.adapters(folder, "exported")
    model = peft.PeftModel.from_pretrained(lm.gpt2(folder / "gpt2"), folder / "exported-adapter")
    assert largest_difference(model.state_dict(), trained["weights"]) == 0


def test_a_model_s_own_plan_cuts_it_for_tensor_parallel_processes(folder, tmp_path):
    alone = lm.cut(folder, "cut")
    for found in ranks("cut", "tp", tmp_path):
        assert largest_difference(found["weights"], alone["weights"]) <= 1e-6
        assert "model.layers.1.self_attn.q_proj.weight" in found["parts"]
        assert "model.layers.0.mlp.down_proj.weight" in found["parts"]
    assert alone["loss"] < 3.47, "it began at log(32)"
