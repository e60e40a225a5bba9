"""The arithmetic from stages to a feed."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.model import Amdahl, Model, useful_threads

seconds = st.floats(1e-6, 10.0)
rates = st.floats(1e-3, 1e9)
transforms = st.builds(Amdahl, st.floats(0.0, 10.0), seconds)
models = st.builds(Model, rates, rates, transforms | st.none(), rates, seconds, st.integers(1, 64))
FREE = Model(math.inf, math.inf, None, math.inf, 0.0, 4)


@given(transforms, st.integers(2, 64))
def test_two_measurements_give_the_law_that_made_them(law, threads):
    found = Amdahl.of(law.samples_per_sec(1), law.samples_per_sec(threads), threads)
    for count in (1, threads, 1000):
        assert found.samples_per_sec(count) == pytest.approx(law.samples_per_sec(count), rel=1e-3)


def test_noise_makes_no_thread_faster_than_alone_nor_slower_with_others():
    assert Amdahl.of(alone=100.0, together=900.0, num_threads=4) == Amdahl(0.0, 0.01)
    assert Amdahl.of(alone=100.0, together=50.0, num_threads=4) == Amdahl(0.01, 0.0)


@given(models, st.integers(1, 256))
def test_no_feed_passes_a_ceiling(model, threads):
    rate = model.samples_per_sec(threads) * (1 - 1e-9)
    assert rate <= min(model.storage, model.verify, model.hand_off, model.processors / model.cpu_sec)
    assert model.transform is None or rate <= threads / model.transform.parallel_sec


@given(models, st.integers(1, 128))
def test_more_threads_never_make_a_feed_slower(model, threads):
    assert model.samples_per_sec(threads + 1) >= model.samples_per_sec(threads) * (1 - 1e-9)


def test_reading_and_checking_take_turns_and_so_do_steps():
    assert replace(FREE, storage=100.0, verify=100.0).samples_per_sec(1) == pytest.approx(50.0)
    assert replace(FREE, transform=Amdahl(0.0, 0.01 + 0.01)).samples_per_sec(2) == pytest.approx(100.0)


def test_steps_that_hold_the_lock_gain_by_processes_and_not_by_threads():
    locked = replace(FREE, transform=Amdahl(0.01, 0.0), cpu_sec=0.01)
    assert locked.samples_per_sec(4) == pytest.approx(100.0)
    assert locked.with_processes(4) == pytest.approx(400.0)


def test_steps_that_wait_gain_by_more_threads_than_processors():
    waits = replace(FREE, transform=Amdahl(0.0, 0.1), cpu_sec=0.001)
    assert waits.samples_per_sec(16) == pytest.approx(160.0)
    works = replace(waits, cpu_sec=0.1)
    assert works.samples_per_sec(16) == works.samples_per_sec(4) == pytest.approx(40.0)


def test_the_fewest_threads_that_do_as_well_are_advised():
    model = replace(FREE, transform=Amdahl(0.0, 0.1), hand_off=41.0)
    assert useful_threads(model, [1, 2, 4, 8, 16]) == 4
