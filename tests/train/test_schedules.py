from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import OptionError

SCHEDULES = st.one_of(
    st.builds(hr.constant, warmup_steps=st.integers(0, 50)),
    st.builds(hr.cosine, warmup_steps=st.integers(0, 50), final=st.floats(0, 1)),
    st.builds(hr.linear, warmup_steps=st.integers(0, 50), final=st.floats(0, 1)),
    st.builds(hr.wsd, warmup_steps=st.integers(0, 50), decay=st.floats(0.01, 1), final=st.floats(0, 1)),
)
FALLING = st.sampled_from([hr.cosine, hr.linear, hr.wsd])
RUNS = st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total - 1), st.just(total)))


@given(SCHEDULES, RUNS)
def test_factors_lie_between_0_and_1_and_the_first_step_learns(schedule, run):
    step, total = run
    assert 0 <= schedule.multiplier(step, total) <= 1
    assert schedule.multiplier(0, total) > 0 or schedule.warmup_steps >= total


@given(SCHEDULES, RUNS)
def test_warm_up_rises_in_equal_parts_to_1(schedule, run):
    step, total = run
    if step < schedule.warmup_steps:
        assert schedule.multiplier(step, total) == pytest.approx((step + 1) / schedule.warmup_steps)


@given(FALLING, st.integers(0, 20), st.floats(0, 1), st.integers(30, 300))
def test_what_falls_does_so_without_a_rise_to_its_final_factor(make, warmup, final, total):
    schedule = make(warmup_steps=warmup, final=final)
    factors = [schedule.multiplier(step, total) for step in range(warmup, total + 1)]
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(final)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(factors))


def test_a_constant_stays_1_after_its_warm_up():
    assert {hr.constant(warmup_steps=3).multiplier(step, 10) for step in range(2, 10)} == {1.0}


@given(st.integers(10, 500), st.floats(0.05, 0.9))
def test_wsd_stays_until_its_last_part(total, decay):
    schedule = hr.wsd(decay=decay)
    first = round((1 - decay) * total)
    assert {schedule.multiplier(step, total) for step in range(first)} <= {1.0}
    assert schedule.multiplier(total - 1, total) < 1 or first >= total - 1


@given(st.integers(2, 300), st.floats(0.1, 0.9))
def test_one_cycle_is_torchs(total, rise):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total + 1, pct_start=(rise * total + 1) / (total + 1)
    )
    schedule = hr.one_cycle(rise=rise)
    for step in range(total):
        assert schedule.multiplier(step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hr.cosine(-1),
        lambda: hr.constant(-1),
        lambda: hr.linear(-1),
        lambda: hr.wsd(decay=0),
        lambda: hr.wsd(final=2),
        lambda: hr.one_cycle(rise=1),
        lambda: hr.one_cycle(start=0),
        lambda: hr.one_cycle(final=0.5),
        lambda: hr.cosine(final=1.5),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_schedules_compare_and_print():
    assert hr.cosine(5) == hr.cosine(warmup_steps=5)
    assert repr(hr.cosine(5)) == "Cosine(warmup_steps=5, final=0.0)"
