"""What ranks tell each other is judged rightly, and finding it out leaves no trace in the training."""

from __future__ import annotations

import problems as p
import pytest
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr
from headrace.errors import OptionError
from headrace.train.guards.replicas import Replicas, bit_sum, same_bits
from headrace.train.guards.stragglers import Pace, stragglers


class Whole:
    """Of some groups of ranks that hold the same, without the ranks."""

    def __init__(self, *groups):
        self.groups = groups

    differences = Replicas.differences


@pytest.mark.parametrize(
    ("groups", "fingerprints", "expected"),
    [
        ([(0, 1, 2)], [7, 7, 7], []),
        ([(0, 1, 2)], [7, 8, 7], ["the parameters of rank 1 differ from those of ranks 0 and 2"]),
        ([(0, 1)], [7, 8], ["the parameters of ranks 0 and 1 differ"]),
        ([(0, 1, 2, 3)], [7, 7, 8, 8], ["the parameters of ranks 0, 1, 2, 3 differ"]),
        ([(0, 2), (1, 3)], [7, 8, 7, 9], ["the parameters of ranks 1 and 3 differ"]),
        ([(0, 1, 2, 3)], [9, 7, 8, 7], ["the parameters of ranks 0, 1, 2, 3 differ"]),
        ([(0, 1, 2, 3, 4)], [9, 7, 8, 7, 7], ["the parameters of ranks 0 and 2 differ from those of ranks 1, 3, 4"]),
    ],
)
def test_the_majority_says_who_is_odd(groups, fingerprints, expected):
    assert list(map(str, Whole(*groups).differences(fingerprints))) == expected


def test_what_is_taken_by_all_is_the_majoritys_or_the_lowest_ranks():
    [of_majority] = Whole((0, 1, 2)).differences([8, 7, 7])
    [of_none] = Whole((1, 3)).differences([0, 8, 0, 7])
    assert (of_majority.source, of_none.source) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.complex64])
def test_one_flipped_bit_changes_the_sum_and_the_order_of_tensors_does_not(dtype):
    tensors = [torch.arange(1, 7).to(dtype).reshape(2, 3), torch.ones((), dtype=dtype)]
    before = bit_sum(tensors)
    assert torch.equal(before, bit_sum(reversed(tensors)))
    tensors[0].view(torch.uint8).view(-1)[0] ^= 1
    assert not torch.equal(before, bit_sum(tensors))


def test_bits_are_compared_not_values():
    assert same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))


def test_a_rank_is_slow_by_ratio_and_by_a_millisecond():
    [found] = stragglers(100, [(10_000, 11_000), (16_000, 20_000), (9_000, 9_000)], ratio=1.5)
    assert (found.fields["ranks"], found.fields["ratio"]) == ([1], 1.6)
    assert found.detail.startswith(
        "rank 1 takes 1.6 times as long for its part of a step as the others (16 ms beside 10"
    )
    assert not stragglers(100, [(100, 100), (900, 900)], ratio=1.5)
    assert not stragglers(100, [(10_000, 11_000), (16_000, 20_000)], ratio=1.7)


def test_too_few_steps_say_nothing_of_the_pace_and_are_counted_with_the_next():
    pace = Pace()
    for _ in range(9):
        pace.add(1.0)
    assert pace.quantiles() == (0, 0)
    pace.add(1.0)
    assert pace.quantiles() == (1_000_000, 1_000_000)
    assert pace.quantiles() == (0, 0)
    assert not stragglers(100, [(0, 0), (90_000, 90_000)], ratio=1.5)


def test_a_replay_leaves_no_trace_in_the_training():
    found = []
    for replay_every in (None, 3):
        model = nn.Sequential(p.network(dropout=0.3), nn.BatchNorm1d(3))
        torch.manual_seed(5)
        guards = hr.Guards(replay_every=replay_every)
        p.trainer(model, MemoryLoader(p.fields(), 12, epochs=2), steps=12, guards=guards, micro_batch_size=4).fit()
        found.append(p.weights(model))
    assert p.largest_difference(*found) == 0


def test_a_replay_with_a_sharded_model_is_refused(monkeypatch):
    from headrace.train.parallel import Mesh

    monkeypatch.setattr(Mesh, "of", lambda text, size: Mesh(fsdp=2))
    with pytest.raises(OptionError, match=r"a replay needs the whole model on every rank: got mesh='dp'; say mesh="):
        p.trainer(steps=1, guards=hr.Guards(replay_every=3)).fit()
