"""Communication that compute does not hide: counted once, and in its own step."""

import pytest
import torch

from headrace.train.clock import Split
from headrace.train.loop import _take_out
from headrace.train.parallel.exposed import Exposed
from headrace.train.parallel.sharded import Sharded
from headrace.train.parallel.timed import WaitTimer


def test_what_passes_wait_for_adds_to_what_comes_after_them():
    split = Split(forward=1.0, backward=2.0, communication=0.5)
    _take_out(Exposed(0.7, forward_sec=0.2), split)
    assert (split.forward, split.backward, split.communication) == pytest.approx((0.8, 1.3, 1.4))


def test_of_what_goes_on_after_the_passes_that_part_is_counted_already():
    split = Split(forward=1.0, backward=2.0, communication=0.5)
    _take_out(Exposed(0.7, to_the_end=True), split)
    assert (split.forward, split.backward, split.communication) == pytest.approx((1.0, 1.8, 0.7))


class Waits(torch.autograd.Function):
    """Waits without gradients in both passes, as FSDP does."""

    timer = WaitTimer()

    @staticmethod
    def forward(ctx, x):
        with torch.no_grad(), Waits.timer:
            return x.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad(), Waits.timer:
            return grad.clone()


def test_waiting_is_told_apart_by_the_pass_that_it_is_in():
    output = Waits.apply(torch.ones(2, requires_grad=True))
    found = Waits.timer.take()
    assert found.forward_sec > 0
    assert found.sec() == 0
    output.sum().backward()
    found = Waits.timer.take()
    assert found.forward_sec == 0
    assert found.sec() > 0


def test_what_an_evaluation_waits_for_is_of_no_step():
    sharded = object.__new__(Sharded)
    sharded._cut, sharded._timer = [], WaitTimer()
    with sharded._timer:
        pass
    sharded.settle()
    assert (sharded.exposed().sec(), sharded.exposed().forward_sec) == (0.0, 0.0)
