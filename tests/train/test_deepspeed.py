"""With engine="deepspeed" a run is the same run: ZeRO of every stage, real ranks, any checkpoint."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import problems as p
import pytest
import torch
from processes import HERE, run_ranks
from scenarios import SCENARIOS
from zero_runs import RUNS

import headrace as hr
from headrace.errors import OptionError

TOLERANCE = 1e-6
installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'headrace[deepspeed]'"
)


@pytest.fixture(scope="module", params=[1, 2, 3])
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stage):
    """Where ranks leave what they found; with the first half of a run of one process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp(f"zero-{stage}")
    SCENARIOS["begun"](folder)
    shutil.copytree(folder / "begun", folder / "begun-alone")
    return folder


@pytest.fixture(scope="module")
def ranks(folder, stage):
    """What each run gave on both ranks, name -> values by rank."""
    run_ranks(2, [HERE / "zero_runs.py", *RUNS, "--out", folder], TEST_ZERO_STAGE=str(stage))
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)] for name in RUNS}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@installed
@pytest.mark.slow
class TestOnTwoRanks:
    @pytest.mark.parametrize("name", ["clipped_momentum", "accumulated", "recomputed"])
    def test_weights_are_those_of_one_process_without_it(self, name, ranks, tmp_path):
        rank_0, rank_1 = ranks[name]
        assert p.largest_difference(rank_0, rank_1) == 0
        assert p.largest_difference(rank_0, SCENARIOS[name](tmp_path)) <= TOLERANCE

    @pytest.mark.parametrize(
        "name", ["plain", "in_blocks", "unequal_parts", "token_weighted", "filtered", "padded", "empty_on_one_rank"]
    )
    def test_unequal_batches_are_weighted_as_without_it(self, name, ranks, tmp_path):
        alone = SCENARIOS[name](tmp_path)
        weights = alone.pop("weights")
        for found in ranks[name]:
            assert p.largest_difference(found["weights"], weights) <= TOLERANCE
            assert {key: found[key] for key in alone} == pytest.approx(alone, abs=TOLERANCE)

    def test_layers_that_are_gathered_each_time_learn_the_same(self, ranks, tmp_path):
        alone = RUNS["wide"](tmp_path)
        for found in ranks["wide"]:
            assert p.largest_difference(found["weights"], alone["weights"]) <= TOLERANCE
            assert found["loss"] == pytest.approx(alone["loss"], abs=1e-5)
            assert p.largest_difference(found["weights"], found["again"]) == 0

    def test_bf16_trains_nearly_the_same(self, ranks, tmp_path):
        alone = SCENARIOS["in_bf16"](tmp_path)
        for found in ranks["in_bf16"]:
            assert {value.dtype for value in found["weights"].values()} == {torch.float32}
            assert p.largest_difference(found["weights"], alone["weights"]) <= 3e-3

    def test_evaluation_is_that_of_one_process(self, ranks, tmp_path):
        alone = SCENARIOS["evaluated"](tmp_path)
        for found in ranks["evaluated"]:
            assert found == pytest.approx(alone, abs=TOLERANCE)

    def test_resume_is_bit_for_bit(self, ranks):
        """With dropout, batch norm, AdamW, a schedule, and draws from every global generator."""
        for found in ranks["resumed"]:
            assert found["failed"] == "the power is off"
            assert found["resumed_from"] == "step-00000012"
            assert p.largest_difference(found["straight"], found["broken"]) == 0

    @pytest.mark.parametrize("name", ["resumed_with_momentum", "in_two_runs"])
    def test_a_second_fit_goes_on_where_the_first_ended(self, name, ranks):
        for straight, in_two in ranks[name]:
            assert p.largest_difference(straight, in_two) == 0

    def test_frozen_parameters_may_be_left_out(self, ranks):
        for found in ranks["adapted"]:
            assert p.largest_difference(found["straight"], found["again"]) == 0

    def test_a_run_goes_on_from_one_process_without_it(self, ranks):
        straight = p.network()
        p.trainer(straight, steps=20, optimizer=hr.adamw(0.01)).fit()
        for found in ranks["continued"]:
            assert found["resumed_from"] == "step-00000010"
            assert p.largest_difference(found["weights"], p.weights(straight)) <= TOLERANCE

    def test_a_run_goes_on_without_it(self, ranks, folder, tmp_path):
        """From the checkpoint that the ranks ended with."""
        straight, again = p.network(), p.network(seed=8)
        p.trainer(straight, steps=30, optimizer=hr.adamw(0.01)).fit()
        shutil.copytree(folder / "begun", tmp_path / "run")
        result = p.trainer(again, steps=30, optimizer=hr.adamw(0.01), run_dir=tmp_path / "run").fit()
        assert result.resumed_from.name == "step-00000020"
        assert p.largest_difference(p.weights(again), p.weights(straight)) <= TOLERANCE

    def test_an_exported_file_has_the_weights(self, ranks, folder, tmp_path):
        hr.export_safetensors(folder / "begun", tmp_path / "model.safetensors")
        model = p.network(seed=8)
        hr.load_weights(model, tmp_path / "model.safetensors")
        assert p.largest_difference(p.weights(model), ranks["continued"][0]["weights"]) == 0

    def test_gradients_that_are_not_finite_name_step_and_rank(self, ranks):
        for found in ranks["exploding"]:
            assert found["message"].startswith("the gradients of step 3 must be finite: got inf; ")
            assert "the loss of rank 1 is not finite" in found["message"]

    def test_a_step_without_any_sample_ends_every_rank(self, ranks):
        for found in ranks["nothing_to_learn"]:
            assert (
                "a step needs a sample on some rank: all of a global batch were filtered or skipped"
                in (found["message"])
            )


@installed
@pytest.mark.slow
def test_two_ranks_go_on_as_one_process_at_another_stage(tmp_path):
    """Started without a launcher, so that there is no process group to be joined."""
    run_ranks(2, [HERE / "scenarios.py", "begun", "--out", tmp_path], TEST_ZERO_STAGE="3")
    environment = {"PYTHONPATH": ":".join(sys.path), "TEST_ZERO_STAGE": "1", "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, HERE / "scenarios.py", "continued", "--out", tmp_path]
    subprocess.run(arguments, check=True, env=environment, capture_output=True)
    found = torch.load(tmp_path / "continued-0.pt", weights_only=False)
    straight = p.network()
    p.trainer(straight, steps=20, optimizer=hr.adamw(0.01)).fit()
    assert found["resumed_from"] == "step-00000010"
    assert p.largest_difference(found["weights"], p.weights(straight)) <= TOLERANCE


@installed
def test_parameters_that_it_cannot_take_are_refused():
    model = p.network()
    model.factor = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(OptionError, match=r"no parameter without dimensions: factor is one; give it the shape \(1,\)"):
        p.trainer(model, steps=1, engine="deepspeed").fit()
    with pytest.raises(OptionError, match=r"keeps parameters in fp32: 0\.weight is float64; call model\.float\(\)"):
        p.trainer(p.network().double(), steps=1, engine="deepspeed").fit()


REFUSED = {
    "engine must be None, or one of deepspeed, horovod: got 'fsdp'": {"engine": "fsdp"},
    "zero_stage must be 1, 2 or 3: got 0": {"zero_stage": 0},
    "zero_stage is for engine='deepspeed': got zero_stage=3 and engine=None": {"engine": None, "zero_stage": 3},
    "places the model itself, on all processes: got mesh='fsdp'; leave it away, or the engine": {"mesh": "fsdp"},
    "works in fp32 or bf16: got precision='fp16'": {"precision": "fp16"},
    "sends gradients itself: got compression=bf16": {"compression": "bf16"},
    "hooks into every layer, which compiled blocks leave out: got compile=True": {"compile": True},
    "keeps no average of the weights: got ema=EMA": {"ema": 0.9},
    "keeps gradients to itself, and guards must see them": {"guards": hr.Guards()},
    "this optimizer must see each whole: got LAMB": {"optimizer": hr.lamb(0.01)},
    "this optimizer must see each whole: got Muon": {"optimizer": hr.muon(0.01)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_cannot_do_is_refused_before_anything_is_begun(message):
    with pytest.raises(OptionError) as refusal:
        p.trainer(**{"steps": 1, "engine": "deepspeed", **REFUSED[message]})
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(OptionError, match=r"needs DeepSpeed: pip install 'headrace\[deepspeed\]'"):
        p.trainer(steps=1, engine="deepspeed")
