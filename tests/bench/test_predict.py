"""What is advised, from rates that are given."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace.bench.predict import model_of, predictions, stages_of
from headrace.bench.rates import Count, Rate
from headrace.bench.subject import Subject
from headrace.bench.variants import Variant

CORES = 4


def rate(samples_per_sec, cpu_sec=0.0, starved=0.0, threads=1):
    """`cpu_sec` is a sample's; `starved` the share of its time that a thread had no processor."""
    samples = round(samples_per_sec)
    return Rate((Count(samples, 1000 * samples, 1.0, cpu_sec * samples, starved * threads, threads),))


def subject(threads=CORES):
    stream = SimpleNamespace(dataset=SimpleNamespace(is_remote=False))
    return Subject(stream, 8, threads, CORES, False, None, (), (), Path())


def feed(**steps):
    """Rates of a feed whose other stages are quick; each step's rates are those of 1 and 4 threads."""
    found = {("storage", 2): rate(10_000), ("verify", 2): rate(10_000), ("hand-off", 1): rate(10_000)}
    for name, (alone, together) in steps.items():
        found |= {(name, 1): alone, (name, CORES): together}
    return found


def advised(rates, *variants):
    about = subject()
    reached = rate(80)
    remedies = predictions(model_of(rates, about), reached, about, dict(variants))
    assert [remedy.gain for remedy in remedies] == sorted((r.gain for r in remedies), reverse=True)
    assert all(r.predicted == pytest.approx(80 * r.gain) for r in remedies)
    return {remedy.name: remedy.gain for remedy in remedies}


def variant(name, stage, bytes_ratio):
    return Variant(name, "", stage, lambda sec: None, bytes_ratio, lambda n: None)


def test_steps_that_hold_the_lock_are_advised_processes():
    gains = advised(feed(augment=(rate(100, 0.01), rate(100, 0.01, threads=CORES))))
    assert gains["processes=4"] == pytest.approx(4.0, rel=0.05)
    assert gains["threads=8"] == pytest.approx(1.0, rel=0.05)


def test_steps_without_a_processor_are_not_taken_for_holding_the_lock():
    """Four threads do no more than one, since others on the machine have the processors three quarters of the time."""
    gains = advised(feed(augment=(rate(100, 0.01), rate(100, 0.01, starved=0.75, threads=CORES))))
    assert gains == {"threads=8": pytest.approx(1.0, rel=0.05)}


def test_steps_that_wait_are_advised_more_threads_than_processors():
    gains = advised(feed(augment=(rate(10, 1e-4), rate(40, 1e-4, threads=CORES))))
    assert gains == {"threads=16": pytest.approx(4.0, rel=0.05)}


def test_steps_that_work_are_not():
    gains = advised(feed(decode=(rate(100, 0.01), rate(400, 0.01, threads=CORES))))
    assert gains["threads=8"] == pytest.approx(1.0, rel=0.05)


def test_a_quicker_stage_helps_where_it_bounds_and_nowhere_else():
    rates = feed(decode=(rate(100, 0.0), rate(400, 0.0, threads=CORES)))
    smaller = variant("resize", "transform", 0.5)
    assert advised(rates, (smaller, rate(800)))["resize"] == pytest.approx(2.0)
    assert advised(rates, (variant("cache", "storage", 1.0), rate(1e6)))["cache"] == pytest.approx(1.0)
    rates["storage", 2] = rate(50)
    assert advised(rates, (variant("cache", "storage", 1.0), rate(1e6)))["cache"] == pytest.approx(8.0, rel=0.05)
    assert advised(rates, (smaller, rate(800)))["resize"] == pytest.approx(2.0, rel=0.05)  # half the bytes


def test_unpacking_that_bounds_is_cured_by_another_format():
    rates = feed(decode=(rate(1000, 0.0), rate(4000, 0.0, threads=CORES))) | {("verify", 2): rate(100)}
    plain = variant("format", "verify", 2.0)
    assert advised(rates, (plain, rate(1e6)))["format"] == pytest.approx(40.0, rel=0.1)


def test_stages_come_in_the_order_of_the_flow():
    rates = feed(augment=(rate(10), rate(40)), decode=(rate(10), rate(40)))
    stages = stages_of(rates, subject())
    assert [stage.name for stage in stages] == ["storage", "verify", "decode", "augment", "hand-off"]
    assert [stage.threads for stage in stages] == [2, 2, 4, 4, 1]
    assert [stage.alone is not None for stage in stages] == [False, False, True, True, False]
