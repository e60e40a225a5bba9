"""Replicas that send fewer bytes stay one model, learn the same, say what they sent, and go on where they were."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from compressed import SCENARIOS, WAYS, wide
from problems import largest_difference, trainer
from processes import HERE, run_ranks

import headrace as hr
from headrace.errors import OptionError

NAMES = sorted(SCENARIOS)
LOSSY = ("power_sgd", "top_k")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compressed")


@pytest.fixture(scope="module")
def ranks(folder):
    """What each scenario gave on two gloo processes, scenario -> values by rank."""
    run_ranks(2, [HERE / "compressed.py", *NAMES, "--out", folder])
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)] for name in NAMES}


@pytest.mark.parametrize("scenario", ["curve", "shrunk"])
@pytest.mark.parametrize("way", WAYS)
def test_replicas_stay_one_model(ranks, scenario, way):
    one, other = ranks[scenario]
    assert largest_difference(one[way]["weights"], other[way]["weights"]) == 0


@pytest.mark.parametrize(("way", "tolerance"), [("bf16", 5e-3), ("fp16", 5e-3), ("power_sgd", 0.03), ("top_k", 0.03)])
def test_every_loss_is_near_that_of_whole_gradients(ranks, way, tolerance):
    found = ranks["curve"][0]
    plain, losses = ([step["loss"] for step in found[name]["steps"]] for name in ("plain", way))
    assert losses == pytest.approx(plain, abs=tolerance)
    assert losses != plain
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(("way", "tolerance"), [("bf16", 2e-3), ("fp16", 2e-4), ("power_sgd", 0.1), ("top_k", 0.1)])
def test_parts_unequal_batches_and_clipping_change_nothing(ranks, way, tolerance):
    found = ranks["shrunk"][0]
    assert 0 < largest_difference(found[way]["weights"], found["plain"]["weights"]) <= tolerance


def test_all_elements_are_the_whole_gradient(ranks):
    for found in ranks["exact"]:
        assert largest_difference(found["plain"], found["top_k"]) <= 1e-6


@pytest.mark.parametrize("way", LOSSY)
def test_what_was_not_sent_is_sent_later(ranks, way):
    """Each gradient sent lacks much of the true one; their mean over many steps lacks little."""
    found = ranks["repeated"][0]
    for first, mean, true in zip(found[way]["first"], found[way]["mean"], found["plain"]["first"], strict=True):
        if true.dim() > 1 and min(true.shape) > 3:
            assert (first - true).norm() > 0.2 * true.norm()
        assert (mean - true).norm() < 0.1 * true.norm()


def test_power_sgd_sends_matrices_of_its_rank(ranks):
    square = ranks["repeated"][0]["power_sgd"]["first"][2]
    assert torch.linalg.matrix_rank(square, rtol=1e-5) == 2


def test_bytes_are_those_counted_by_hand(ranks):
    shapes = [(32, 6), (32,), (32, 32), (32,), (3, 32), (3,)]
    sizes = [math.prod(shape) for shape in shapes]
    whole = 4 * sum(sizes)
    each = {
        "plain": whole,
        "bf16": whole // 2,
        "fp16": whole // 2,
        # The last matrix would not become half as large.
        "power_sgd": 4 * (2 * (32 + 6) + 2 * (32 + 32) + 32 + 32 + 3 * 32 + 3),
        "top_k": 8 * sum(math.ceil(0.1 * size) for size in sizes),
    }
    for way, sent in each.items():
        found = ranks["curve"][0][way]
        last = found["steps"][-1]
        assert (last["sent_bytes"], last["saved_bytes"]) == (sent, whole - sent)
        warmup = 3 if way in LOSSY else 0
        total = warmup * whole + (120 - warmup) * sent
        assert (found["traffic"].sent_bytes, found["traffic"].saved_bytes) == (total, 120 * whole - total)
        assert [step["saved_bytes"] for step in found["steps"][:warmup]] == warmup * [0]


@pytest.mark.parametrize("way", ["bf16", *LOSSY])
def test_resume_is_bit_for_bit(ranks, way):
    for found in ranks["resumed"]:
        straight, broken = found[way]
        assert largest_difference(straight, broken) == 0


def test_another_number_of_processes_begins_with_nothing_unsent_and_says_so(ranks, folder, caplog):
    with caplog.at_level(logging.WARNING, "headrace.train"):
        trainer(wide(seed=8), steps=11, compression=WAYS["top_k"], run_dir=folder / "begun").fit()
    assert "what 2 ranks had not sent of their gradients is no use to 1" in caplog.text


def test_a_checkpoint_without_compression_goes_on_with_it(tmp_path):
    trainer(steps=2, run_dir=tmp_path).fit()
    result = trainer(steps=4, run_dir=tmp_path, compression=hr.power_sgd()).fit()
    assert (result.resumed_from.name, result.traffic) == ("step-00000002", None)


@pytest.mark.parametrize("way", LOSSY)
def test_gradients_that_are_not_finite_do_not_come_back(ranks, way):
    for gradients in ranks["spoilt"]:
        assert all(gradient.isfinite().all() for gradient in gradients[way])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "int8"}, r"compression must be None, 'bf16', 'fp16', headrace.power_sgd\(\).*got 'int8'"),
        ({"compression": "bf16", "mesh": "fsdp=2"}, "between replicas only: got a mesh with fsdp; say mesh='dp'"),
        ({"compression": hr.top_k(), "mesh": "dp=2,fsdp"}, "between replicas only: got a mesh with fsdp"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_begun(options, message):
    with pytest.raises(OptionError, match=message):
        trainer(**options)
    options["mesh"] = options.get("mesh", "dp")
    with pytest.raises(OptionError, match=message):
        hr.parallelize(wide(), device="cpu", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hr.power_sgd(0), "rank of at least 1: got 0"),
        (lambda: hr.power_sgd(warmup_steps=-1), "power_sgd takes warmup_steps of at least 0: got -1"),
        (lambda: hr.top_k(0.0), "ratio above 0 and at most 1: got 0.0"),
        (lambda: hr.top_k(1.5), "ratio above 0 and at most 1: got 1.5"),
        (lambda: hr.top_k(warmup_steps=-2), "top_k takes warmup_steps of at least 0: got -2"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
