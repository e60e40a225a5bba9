"""How a model is cut into the stages of a pipeline, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import Block, layered, trainer
from processes import HERE, run_ranks
from scheduled import with_statistics
from torch import nn

import headrace as hr
from headrace.errors import OptionError, TrainingError
from headrace.train.parallel.pipeline import cut_stages, micro_batch_plan


class Reader(nn.Module):
    """Not a Sequential: a table of places, blocks in a list, tensors of its own."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 9, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Skipping(nn.Module):
    """The first layer's output is needed to the end."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = self.first(x)
        return first + self.third(self.second(first))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x)) if x.sum() > 0 else x


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(nn.functional.dropout(self.first(x), training=self.training))


def names(stage):
    return sorted(name for name, _ in stage.named_parameters())


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("make", "x"), [(Reader, torch.tensor([[1, 2, 3, 4, 5, 6]])), (layered, torch.ones(2, 6))])
def test_stages_one_after_the_other_are_the_model(make, x, num_stages):
    model = make()
    whole = copy.deepcopy(model)(x)
    stages = cut_stages(model, num_stages)
    assert sorted(name for stage in stages for name in names(stage)) == names(model)
    for stage in stages:
        x = stage(x)
    assert torch.equal(x, whole)


def test_what_a_model_keeps_out_of_its_state_a_stage_does_too():
    class WithTable(Reader):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(6, 8), persistent=False)
            self.register_buffer("counts", torch.zeros(8))

        def forward(self, tokens):
            return super().forward(tokens) + (self.table.sum() + self.counts.sum())

    model = WithTable()
    stages = cut_stages(model, 2)
    assert sorted(name for stage in stages for name in stage.state_dict()) == sorted(model.state_dict())


def test_an_even_cut_has_the_smallest_largest_stage():
    model = Reader()
    sizes = [sum(param.numel() for param in stage.parameters()) for stage in cut_stages(model, 2)]
    block = sum(param.numel() for param in model.blocks[0].parameters())
    assert abs(sizes[0] - sizes[1]) <= block
    assert {name.split(".")[1] for name in names(cut_stages(model, 2)[0]) if "blocks" in name} == {"0", "1"}


def test_stages_begin_where_the_user_says():
    first, second = cut_stages(Reader(), 2, ["blocks.1"])
    assert [name for name in names(first) if "blocks" in name and "norm.weight" in name] == ["blocks.0.norm.weight"]
    assert "head.weight" in names(second)


@pytest.mark.parametrize(
    ("model", "num_stages", "starts", "error", "message"),
    [
        (Reader(), 2, ["blocks.9"], OptionError, r"cannot begin at 'blocks\.9': it can at blocks\.0, blocks\.1"),
        (Reader(), 3, ["blocks.2", "blocks.1"], OptionError, r"in the order of the forward pass: got blocks\.2, bl"),
        (Reader(), 3, ["blocks.2"], OptionError, r"at which each stage but the first begins, 2 here: got blocks\.2"),
        (Reader(tied=True), 2, None, OptionError, r"embed\.weight of stage 0 is head\.weight of stage 1; untie"),
        (nn.Linear(4, 4), 2, None, OptionError, "this model can be cut into 1; take fewer stages"),
        (Skipping(), 3, None, OptionError, "this model can be cut into 2; take fewer stages"),
        (Deciding(), 2, None, OptionError, "a forward pass that torch.fx can follow outside the repeated blocks: sym"),
        (Dropping(), 2, None, OptionError, "does not ask for self.training outside the repeated blocks"),
        (nn.ModuleDict({"a": nn.Linear(2, 2)}), 2, None, OptionError, "that torch.fx can follow"),
    ],
)
def test_what_cannot_be_cut_is_refused(model, num_stages, starts, error, message):
    with pytest.raises(error, match=message):
        cut_stages(model, num_stages, starts)


def test_a_parameter_of_no_stage_is_named():
    model = Reader()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"spare\.weight, spare\.bias got no gradient, being in no stage"):
        cut_stages(model, 2)


@pytest.mark.parametrize(
    ("rank_batch_size", "micro", "line", "schedule", "found"),
    [
        (16, None, 2, "1f1b", (4, 4)),
        (16, 3, 2, "gpipe", (6, 3)),
        (3, None, 4, "1f1b", (4, 1)),
        (10, 2, 2, "interleaved", (6, 2)),
        (32, 32, 2, "1f1b", (2, 32)),
    ],
)
def test_micro_batches_hold_a_batch(rank_batch_size, micro, line, schedule, found):
    number, size = micro_batch_plan(rank_batch_size, micro, line, schedule)
    assert (number, size) == found
    assert number * size >= rank_batch_size


def test_options_that_need_a_pipeline_are_refused_without_one():
    with pytest.raises(OptionError, match="pp_schedule must be one of gpipe, 1f1b, interleaved: got 'zero'"):
        trainer(mesh="pp=2", pp_schedule="zero")
    with pytest.raises(OptionError, match="pp_stages is for a mesh with pp: got mesh='dp'"):
        trainer(mesh="dp", pp_stages=["1"])


@pytest.mark.parametrize("schedule", ["gpipe", "interleaved"])
def test_every_schedule_trains_the_same(schedule, tmp_path):
    model = layered()
    trainer(model, steps=10, mesh="dp", clip_grad_norm=0.3).fit()
    run_ranks(2, [HERE / "scheduled.py", schedule, tmp_path / "weights.pt"])
    found = torch.load(tmp_path / "weights.pt")
    assert max(float((found[name] - value).abs().max()) for name, value in model.state_dict().items()) <= 1e-6


def test_a_loop_of_ones_own_is_given_the_loss_on_every_process_and_the_output_on_the_last(tmp_path):
    run_ranks(2, [HERE / "scheduled.py", "staged", tmp_path / "found.pt"])
    first, last = torch.load(tmp_path / "found.pt")
    model = with_statistics().eval()
    assert first["outputs"] == [None, None]
    for rows, output in zip((8, 3), last["outputs"], strict=True):
        assert torch.allclose(output, model(torch.ones(rows, 6)), atol=1e-6)
    # Micro-batches of the whole have the batch's statistics only where all samples are the same, as here.
    mean = nn.functional.cross_entropy(model.train()(torch.ones(8, 6)), torch.zeros(8, dtype=torch.long))
    assert torch.allclose(first["loss"], mean, atol=1e-5)
    assert torch.equal(first["loss"], last["loss"])
    assert sorted([*first["state"], *last["state"]]) == sorted(model.state_dict())
    assert first["state"]
    assert last["state"]
    for name, value in (*first["state"].items(), *last["state"].items()):
        assert value.isfinite().all(), name
        if name.endswith("num_batches_tracked"):
            assert value == 2  # the passes of one batch, and none of what was tried out


def test_pipelines_options_of_a_loop_of_ones_own_are_refused_without_one():
    with pytest.raises(OptionError, match="pp_micro_batches is for a mesh with pp: got 4"):
        hr.parallelize(layered(), "dp", pp_micro_batches=4, device="cpu")
    with pytest.raises(OptionError, match="pp_stages is for a mesh with pp: got mesh='dp'"):
        hr.parallelize(layered(), "dp", pp_stages=["1"], device="cpu")


def test_what_does_not_go_with_a_pipeline_is_refused_on_every_process(tmp_path):
    hr.pack(({"__key__": f"{i:02d}", "cls": i} for i in range(40)), tmp_path / "data", shuffle=False)
    run_ranks(2, [HERE / "scheduled.py", "refused", tmp_path / "messages.pt"])
    asked, few, uneven, other, muon, keywords, frozen = torch.load(tmp_path / "messages.pt")
    assert few.startswith("pp_micro_batches must be at least the 2 processes of a pipeline")
    assert few.endswith("a multiple of them: got 1")
    assert other.startswith("stages of a pipeline have room for batches of one size: got 4 samples after 8")
    assert uneven.startswith("with pipeline stages a batch must divide by pp_micro_batches, 4: got 6 samples")
    assert "Muon" in muon
    assert "a stage of a pipeline is a part: take adamw()" in muon
    assert keywords == "with pipeline stages inputs must return a tensor or a tuple of tensors: got a dict of keywords"
    assert frozen.startswith("every stage of a pipeline needs parameters to train: that of rank 0 is frozen whole")
    told = "this loader counted its steps for rank 0 of 2, and the mesh gives this process share 0 of 1"
    assert asked.startswith(told)
