"""verdict: what bounds a run follows from where its steps' time went."""

import json
from dataclasses import replace

import pytest
from run_files import RunFile, write_run

from headrace.report import feed_stages, read_run, verdict

QUIET = {"wait": 0.001, "copy": 0.001, "compute": 0.1, "communication": 0.004, "checkpoint": 0.0, "rest": 0.001}


def run_of(folder, num_steps=40, **parts):
    file = RunFile(folder)
    file.start()
    for step in range(1, num_steps + 1):
        file.step(step, loss=1.0, **{**QUIET, **parts})
    return file


@pytest.mark.parametrize(
    ("parts", "bound"),
    [
        ({}, "compute"),
        ({"wait": 0.02}, "input"),
        ({"wait": 0.5}, "input"),
        ({"wait": 0.008}, "compute"),
        ({"copy": 0.05}, "copy"),
        ({"communication": 0.06}, "communication"),
        ({"communication": 0.015}, "compute"),
        ({"checkpoint": 0.2}, "checkpoint"),
        ({"rest": 0.09}, "overhead"),
        ({"wait": 0.1, "communication": 0.3}, "communication"),
        ({"wait": 0.3, "communication": 0.1}, "input"),
        ({"compute": 0.0, "wait": 0.5}, "input"),
    ],
)
def test_the_largest_part_that_is_large_enough_bounds(tmp_path, parts, bound):
    judged = verdict(run_of(tmp_path, **parts).path)
    assert judged.bound == bound
    assert judged.sentence.lower().startswith(f"{bound}-bound: ")
    assert sum(judged.shares.values()) == pytest.approx(1)
    assert judged.evidence


def test_au_is_compute_over_wall_without_the_first_step_of_each_start(tmp_path):
    file = RunFile(tmp_path)
    for attempt in range(2):
        first = 10 * attempt + 1
        file.start(step=first - 1, attempt=attempt)
        file.step(first, loss=1.0, compute=1.0, wait=50.0)
        for step in range(first + 1, first + 10):
            file.step(step, loss=1.0, compute=0.3, wait=0.1)
    judged = verdict(tmp_path)
    assert judged.num_steps == 18
    assert judged.au == pytest.approx(0.75)
    assert judged.shares["wait"] == pytest.approx(0.25)


def test_gain_is_what_vanishing_gives(tmp_path):
    judged = verdict(run_of(tmp_path, compute=0.3, wait=0.1, copy=0, communication=0, rest=0).path)
    assert judged.predicted_gain == pytest.approx(1 / 3)
    assert "1.33 times" in judged.sentence


def test_compute_bound_promises_nothing(tmp_path):
    assert verdict(run_of(tmp_path).path).predicted_gain is None


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_short_runs_are_too_short_to_tell(tmp_path, num_steps):
    judged = verdict(run_of(tmp_path, num_steps=num_steps).path)
    assert judged.bound == "too short to tell"
    assert judged.au is None
    assert judged.shares == {}


def test_steps_without_their_time_are_unknown(tmp_path):
    file = RunFile(tmp_path)
    for step in range(1, 20):
        file.write("step", step=step, loss=1.0, sec=0.1)
    assert verdict(tmp_path).bound == "unknown"


def test_a_stage_without_time_left_is_the_bottleneck(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.feed(10, {"read": 0.1, "transform": 1.0}, 10_000)
    file.feed(40, {"read": 4.0, "transform": 13.0}, 40_000)
    judged = verdict(tmp_path)
    assert judged.stage == "transform"
    assert "slowest stage is transform" in judged.sentence
    assert any("threads=" in line for line in judged.evidence)
    transform = feed_stages(read_run(tmp_path))[1]
    assert transform.elapsed_sec == pytest.approx(30 * 0.206)
    assert transform.busy_share == pytest.approx(12 / (2 * 30 * 0.206))
    assert transform.items_per_thread_sec == pytest.approx(30_000 / 12)


def test_where_every_stage_has_time_left_none_is_named(tmp_path):
    """The feed is then held up between its stages, and naming one would be a guess."""
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 0.4, "verify": 0.1, "transform": 0.5, "collate": 0.1}, 40_000)
    judged = verdict(tmp_path)
    assert judged.stage is None
    assert any("no stage is busy most of the time" in line for line in judged.evidence)


def test_reading_and_verifying_share_their_threads(tmp_path):
    """Together they leave no time, though neither takes three quarters of it."""
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 3.8, "verify": 4.2, "transform": 2.0}, 40_000)
    assert verdict(tmp_path).stage == "verify"


def test_collate_has_one_thread_to_lose(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 3.0, "transform": 8.0, "collate": 7.9}, 40_000)
    assert verdict(tmp_path).stage == "collate"


def test_stage_is_not_named_where_the_feed_is_not_the_matter(tmp_path):
    file = run_of(tmp_path)
    file.feed(40, {"read": 0.4}, 40_000)
    assert verdict(tmp_path).stage is None


def test_meters_that_know_little_are_no_obstacle(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.write("feed", step=None, stages={"read": {"items": 3}, "odd": None}, threads=None)
    judged = verdict(tmp_path)
    assert judged.bound == "input"
    assert judged.stage is None


def test_verdict_of_a_real_run_is_json(tmp_path):
    judged = verdict(write_run(tmp_path))
    assert judged.bound == "input"
    assert json.loads(json.dumps(judged.to_json()))["bound"] == "input"
    assert replace(judged, bound="copy") != judged
