"""Threads that transform: more or fewer where that pays, on clocks that the test turns; and in a real loader."""

import itertools
import logging
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import pack_numbers

import headrace as hr
from headrace.load.thread_tuner import REST_SEC, ThreadLimits, ThreadTuner

STEP_SEC = 0.05
WITHIN_SEC = 30


class World:
    """Threads whose rate together is `rate(threads)`, in tasks of one row, each busy so much of the time."""

    def __init__(self, rate, at_first=2, most=8, cpus=2.0, busy=1.0, cpu=0.5, idle=0.0):
        self.now = self.cpu_now = 0.0
        self.rate, self.busy, self.cpu, self.idle, self.cpus = rate, busy, cpu, idle, cpus
        limits = ThreadLimits(at_first, most, cpus)
        self.tuner = ThreadTuner(limits, lambda: self.now, lambda: self.cpu_now)

    def run(self, sec):
        """How many threads worked, step by step."""
        seen = []
        for _ in range(round(sec / STEP_SEC)):
            active = self.tuner.active
            num_tasks = max(1, round(self.rate(active) * STEP_SEC))
            self.now += STEP_SEC
            self.cpu_now += STEP_SEC * self.cpus * self.cpu
            self.tuner.idle(self.idle * STEP_SEC)
            for _ in range(num_tasks):
                self.tuner.made(1, self.busy * active * STEP_SEC / num_tasks)
            seen.append(active)
        return seen


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 4), st.floats(1, 40))
def test_within_30_seconds_it_is_at_nearly_the_best_of_what_it_could_double_or_halve_to(at_first, times, best):
    """`best` threads give most; with more or fewer the rate falls, as where they wait or take a lock."""
    most = at_first * times

    def rate(threads):
        return 4_000 * min(threads / best, (best / threads) ** 0.5)

    world = World(rate, at_first, most)
    seen = world.run(WITHIN_SEC)
    reachable = {min(most, at_first << n) for n in range(3)} | {max(1, at_first >> n) for n in range(4)}
    assert rate(world.tuner.kept) >= 0.95 * max(map(rate, reachable))
    assert set(seen) <= set(range(1, most + 1))


@pytest.mark.parametrize(
    "options",
    [
        {"idle": 0.2},  # the trainer sets the pace
        {"busy": 0.5, "at_first": 1},  # threads have time left
        {"cpu": 1.0, "at_first": 1},  # the processors are used up
    ],
)
def test_nothing_is_tried_where_it_could_prove_or_give_nothing(options):
    world = World(lambda threads: 400 * threads, **options)
    assert set(world.run(60)) == {options.get("at_first", 2)}


def test_what_does_not_pay_is_taken_back_and_tried_again_after_a_longer_rest_each_time():
    world = World(lambda threads: 1000, at_first=1, most=2)
    seen = world.run(60 * REST_SEC)
    tried = [k * STEP_SEC for k, (a, b) in enumerate(itertools.pairwise(seen)) if a < b]
    rests = [after - before for before, after in itertools.pairwise(tried)]
    assert world.tuner.kept == 1
    assert world.tuner.decisions == []
    assert rests[0] >= REST_SEC
    assert all(b > 1.5 * a for a, b in itertools.pairwise(rests[:4]))


def test_a_trial_that_is_much_worse_ends_at_once():
    world = World(lambda threads: 1000 * threads, at_first=2, most=2)
    seen = world.run(REST_SEC)
    assert 0 < seen.count(1) * STEP_SEC < 1
    assert world.tuner.kept == 2


@pytest.mark.parametrize("per_sec", [-0.03, 0.03])
def test_a_machine_that_becomes_slower_or_faster_meanwhile_proves_nothing(per_sec):
    world = World(lambda threads: 1000 * (1 + per_sec * world.now), at_first=1, most=2)
    world.run(20)
    assert world.tuner.kept == 1


def test_it_follows_when_what_pays_changes():
    world = World(lambda threads: 1000 / threads)
    world.run(20)
    assert world.tuner.kept == 1
    world.rate = lambda threads: 100 * threads
    world.run(3 * REST_SEC)
    assert world.tuner.kept == 8


def test_a_trainer_that_pauses_after_a_trial_does_not_make_it_look_good():
    world = World(lambda threads: 1000 * threads, at_first=2, most=2)
    while world.tuner.active == 2:
        world.run(STEP_SEC)
    while world.tuner.active == 1:
        world.run(STEP_SEC)
    world.rate, world.idle = (lambda threads: 20), 0.9
    world.run(10)
    assert world.tuner.kept == 2


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return pack_numbers(tmp_path_factory.mktemp("tuned") / "packed", 600)


def waits(sample):
    time.sleep(0.01)
    return sample


def test_more_threads_than_processors_wait_side_by_side_and_the_batches_are_the_same(numbers, caplog):
    """The loader tells of it in its meters and its log, and a new process begins with what was found."""
    caplog.set_level(logging.INFO, "headrace.load")
    stream = hr.Stream(numbers, epochs=None).map(waits)
    cpus = len(os.sched_getaffinity(0))
    got = []
    with hr.Loader(stream, batch_size=8) as loader:
        for batch in loader:
            got.append(batch["__key__"])
            if loader.meters()["threads"] > cpus:
                break
        meters = loader.meters()
        assert meters["stages"]["transform"]["threads"] == meters["threads"]
        loader.close()
        got.append(next(iter(loader))["__key__"])
        assert loader.meters()["threads"] > cpus
    assert any("threads: " in record.message for record in caplog.records)
    with hr.Loader(hr.Stream(numbers, epochs=None), batch_size=8, threads=1) as loader:
        assert got == [batch["__key__"] for _, batch in zip(got, loader, strict=False)]


def test_a_number_that_was_given_is_never_changed(numbers):
    """It is no limit between which anything is tuned, nor are processes."""
    for options in ({"threads": 3}, {"processes": 2}, {"processes": 2, "threads": 3}):
        loader = hr.Loader(hr.Stream(numbers), batch_size=8, rank=0, world_size=1, **options)
        assert loader._job(1).tuned is None
