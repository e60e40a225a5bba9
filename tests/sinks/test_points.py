"""From events to named numbers: nothing is lost, and names say what they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.sinks.points import Points, point_of


def step(number, time, **fields):
    return {"event": "step", "step": number, "time": time, **fields}


def points(events, every_sec=0.0):
    maker = Points(every_sec)
    made = [point for event in events for point in maker.take(event)]
    return made + maker.rest()


def test_every_number_of_a_step_has_a_name_and_its_unit():
    (point,) = points(
        [
            step(
                7,
                20.5,
                epoch=1,
                loss=0.5,
                lr=0.1,
                samples=64,
                metrics={"accuracy": 0.75, "unknown": None},
                grad_norm=None,
                overflowed=True,
                host={"cpu": {"percent": 30}},
                mesh="dp",
                sec=0.25,
                wait_sec=0.05,
            )
        ]
    )
    assert (point.step, point.time) == (7, 20.5)
    assert point.values == {
        "train/epoch": 1,
        "train/loss": 0.5,
        "train/lr": 0.1,
        "train/samples": 64,
        "train/accuracy": 0.75,
        "train/overflowed": 1,
        "train/host/cpu/percent": 30,
        "train/samples_per_sec": 256,
        "time/step_sec": 0.25,
        "time/wait_sec": 0.05,
    }


def test_other_events_with_a_step_are_points_of_their_own():
    stages = {"read": {"items": 8, "bytes": 800, "busy_sec": 0.5}}
    found = points(
        [
            {"event": "start", "step": 0, "time": 1.0, "world_size": 2},
            {"event": "evaluate", "step": 5, "time": 2.0, "epoch": 0, "loss": 0.2, "metrics": {"f1": 0.9}, "sec": 3.0},
            {"event": "feed", "step": 5, "time": 3.0, "stages": stages, "threads": 2},
            {"event": "checkpoint", "step": 5, "time": 4.0, "path": "x", "sec": 0.1, "bytes": 12},
            {"event": "guard", "step": 5, "time": 4.0, "guard": "spike", "factor": 0.5},
            {"event": "host", "time": 4.5, "cpu": 0.5, "disk_read_bytes_per_sec": None, "gpu_power_watts": [90, 80]},
            {"event": "end", "step": 5, "time": 5.0, "loss": 0.2},
        ]
    )
    assert [dict(point.values) for point in found] == [
        {"evaluate/epoch": 0, "evaluate/loss": 0.2, "evaluate/f1": 0.9, "evaluate/sec": 3},
        {"feed/read/items": 8, "feed/read/bytes": 800, "feed/read/busy_sec": 0.5, "feed/threads": 2},
        {"checkpoint/sec": 0.1, "checkpoint/bytes": 12},
        {"host/cpu": 0.5, "host/gpu_power_watts/0": 90, "host/gpu_power_watts/1": 80},
    ]
    assert found[-1].step == 5


@pytest.mark.parametrize("event", [{"event": "step"}, {"event": "step", "step": 1}, {"event": "new", "step": "x"}])
def test_events_without_a_step_or_a_time_are_no_points(event):
    assert point_of(event) is None


# Times between steps, and for each whether an evaluation follows it.
runs = st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60)


@given(runs, st.floats(0.01, 5))
def test_steps_become_means_and_none_is_lost(gaps, every_sec):
    events, time = [], 100.0
    for number, (gap, evaluates) in enumerate(gaps, 1):
        time += gap
        events.append(step(number, time, loss=float(number), epoch=number // 7))
        if evaluates:
            events.append({"event": "evaluate", "step": number, "time": time, "loss": 0.0})
    found = [point for point in points(events, every_sec) if "train/loss" in point.values]
    first = 1
    for point in found:
        numbers = range(first, point.step + 1)
        assert math.isclose(point.values["train/loss"], sum(numbers) / len(numbers))
        assert point.values["train/epoch"] == point.step // 7
        ends = [event["time"] for event in events if event["event"] == "step" and event["step"] in numbers]
        assert point.time == ends[-1]
        assert ends[-1] < ends[0] + every_sec
        first = point.step + 1
    assert first == len(gaps) + 1


@given(runs)
def test_nothing_is_held_where_every_step_is_a_point(gaps):
    maker = Points(0.0)
    for number, (gap, _) in enumerate(gaps, 1):
        assert len(maker.take(step(number, 100.0 + gap, loss=1.0))) == 1
        assert not maker.held


def test_a_restart_ends_a_mean_and_an_evaluation_does_not():
    evaluation = {"event": "evaluate", "step": 2, "time": 1.2, "loss": 0.5}
    restart = {"event": "start", "step": 1, "time": 1.3}
    events = [step(1, 1.0, loss=1.0), step(2, 1.1, loss=3.0), evaluation, restart, step(2, 1.4, loss=4.0)]
    found = [(point.step, dict(point.values)) for point in points(events, 60.0)]
    assert found == [(2, {"evaluate/loss": 0.5}), (2, {"train/loss": 2}), (2, {"train/loss": 4})]
