"""Rules over events: what rings, what does not, and that nothing rings twice for one cause."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.alarms import Alarms, judged
from headrace.alarms.judge import Judge, rules_of
from headrace.alarms.machine import theil_sen
from headrace.alarms.rule import Bell, Reading
from headrace.errors import OptionError

NONE = {"au_below": None, "throughput_below": None, "no_step_sec": None, "spike_score": None}
NONE |= {"straggler_ratio": None, "disk_free_bytes": None, "memory_hours": None}
PARTS = ("forward_sec", "backward_sec", "optimizer_sec")


def only(**rule):
    return Alarms(**{**NONE, **rule})


def rung(events, alarms):
    judge = Judge(alarms)
    return [alarm for event in events for alarm in judge.take(event)]


def steps(values, sec=1.0, first=1, began=1000.0, **more):
    """A step of `sec` seconds for each (name, value) dict of `values`, one after the other."""
    for number, value in enumerate(values):
        event = {"event": "step", "time": began + (number + 1) * sec, "step": first + number, "sec": sec}
        yield {**event, "wait_sec": 0.0, "samples": 32, **more, **value}


def computing(*shares, sec=1.0, **more):
    return steps([{"wait_sec": (1 - share) * sec, "compute_sec": share * sec} for share in shares], sec, **more)


@given(st.lists(st.tuples(st.sampled_from([None, 0, 1]), st.sampled_from(["wrong", "between", "well"])), max_size=60))
def test_a_bell_rings_at_the_first_wrong_reading_after_a_good_one(readings):
    bell, ringing = Bell(), set()
    for subject, state in readings:
        rings = bell.hear(Reading(0.0, 0.0, state == "wrong", state == "well", subject))
        assert rings == (state == "wrong" and subject not in ringing)
        if state == "wrong":
            ringing.add(subject)
        elif state == "well":
            ringing.discard(subject)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(1, 5))
def test_utilization_rings_once_where_it_is_too_low_for_as_long_as_was_said(au, below, minutes):
    found = rung(computing(*[au] * 400), only(au_below=below, au_minutes=minutes))
    if abs(au - below) > 1e-6:
        assert len(found) == (au < below)
    for alarm in found:
        assert 60 * minutes < alarm.step <= 60 * minutes * 13 / 12 + 2
        assert (alarm.rule, alarm.limit) == ("au", below)
        assert alarm.value == pytest.approx(au)


def test_utilization_that_sways_about_its_limit_is_one_alarm_until_it_was_well():
    swaying = 20 * ([0.48] * 30 + [0.52] * 30)
    alarms = only(au_below=0.5, au_minutes=0.2)
    assert len(rung(computing(*swaying), alarms)) == 1
    assert len(rung(computing(*swaying, *[0.9] * 60, *swaying), alarms)) == 2


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_utilization_is_the_same_whatever_the_parts_of_computing_are_called(share):
    whole = rung(computing(*[share] * 100), only(au_below=0.5, au_minutes=1))
    apart = [{"wait_sec": 1 - share, **dict.fromkeys(PARTS, share / 3)}] * 100
    found = rung(steps(apart), only(au_below=0.5, au_minutes=1))
    assert [alarm.step for alarm in found] == [alarm.step for alarm in whole]
    assert len(found) == (share < 0.5)


def test_the_first_step_of_an_attempt_and_steps_without_times_do_not_count():
    slow_start = [*computing(0.001, sec=400), *computing(*[0.9] * 200, began=1400.0, first=2)]
    assert rung(slow_start, only(au_below=0.5, au_minutes=1)) == []
    assert rung(steps([{"sec": None, "wait_sec": None}] * 200), only(au_below=0.5, au_minutes=1)) == []
    assert (
        rung(
            ({"event": "step", "time": t, "step": t, "sec": 1.0} for t in range(200)), only(au_below=0.5, au_minutes=1)
        )
        == []
    )


@given(st.floats(0.1, 2.0), st.floats(0.1, 0.9))
def test_throughput_rings_where_it_falls_below_its_share_of_what_was_usual(share, below):
    """A step's own time tells: what lies between steps, such as an evaluation, is no loss of throughput."""
    before = list(steps([{}] * 300, sec=0.5, samples=1000))
    after = list(steps([{}] * 300, sec=0.5, samples=1000 * share, began=1900.0, first=301))
    found = rung(before + after, only(throughput_below=below, throughput_minutes=0.5))
    if abs(share - below) > 0.01:
        assert len(found) == (share < below)
    for alarm in found:
        assert alarm.step > 300
        assert alarm.limit == pytest.approx(below * 2000)


def test_a_drop_that_lasts_does_not_become_usual():
    events = steps([{"samples": 1000}] * 200 + [{"samples": 100}] * 3000 + [{"samples": 1000}] * 200)
    found = rung(events, only(throughput_below=0.5, throughput_minutes=1))
    assert [alarm.rule for alarm in found] == ["throughput"]
    assert "beside 1000 before: below 50 % of it" in found[0].message


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_spike_of_the_loss_rings_once_however_long_it_lasts(at, long, seed):
    losses = np.random.default_rng(seed).normal(2.0, 0.05, 400)
    losses[at : at + long] = 9.0
    found = rung(steps([{"loss": float(loss)} for loss in losses]), only(spike_score=10))
    assert [alarm.step for alarm in found] == ([max(at, 128) + 1] if at + long > 128 else [])


def test_a_second_spike_rings_once_the_first_is_over():
    def alarms(apart):
        losses = [2.0 + 0.01 * (n % 7) for n in range(300)]
        losses[200] = losses[200 + apart] = 9.0
        return rung(steps([{"loss": loss} for loss in losses]), only(spike_score=10))

    assert [alarm.step for alarm in alarms(10)] == [201]
    assert [alarm.step for alarm in alarms(20)] == [201, 221]
    assert alarms(20)[0].message.startswith("the loss 9 is ")


def test_each_slow_rank_rings_once_until_it_was_not_found_for_long():
    def guard(time, rank, ratio=2.0):
        return {"event": "guard", "guard": "straggler", "time": time, "step": 5, "ranks": [rank], "ratio": ratio}

    events = [guard(0, 1), guard(60, 1), guard(90, 3), guard(120, 1), guard(150, 2, ratio=1.2)]
    events += [{"event": "feed", "time": 800.0}, guard(900, 1)]
    found = rung(events, only(straggler_ratio=1.5))
    assert [alarm.time for alarm in found] == [0, 90, 900]
    assert found[1].message == "rank 3 takes 2 times as long for its part of a step as the others"


def ranks_of(own_sec, reports, waiting=0.0):
    """Reports of all ranks in turn, each of ten steps of `own_sec[rank]` seconds and so many of waiting for others."""
    yield {"event": "start", "time": 0.0, "world_size": len(own_sec)}
    for report in range(reports):
        time = 10.0 * (report + 1)
        for step in range(11 if report == 0 else 10):
            sec = {"sec": own_sec[0] + waiting, "communication_sec": waiting}
            yield {"event": "step", "time": time, "step": 10 * report + step + 1, **sec}
        yield {"event": "feed", "time": time}
        for rank, sec in enumerate(own_sec):
            if rank:
                sums = {"sec": 10 * (sec + waiting), "communication_sec": 10 * waiting}
                yield {"event": "rank", "time": time, "rank": rank, "steps": 10, **sums}


@given(st.integers(2, 6), st.data(), st.floats(1, 4), st.floats(1.1, 3))
def test_a_rank_that_takes_longer_for_its_own_part_rings_once_whichever_it_is(world_size, data, factor, ratio):
    """How long all wait for it is the same on every rank, and tells nothing."""
    slow = data.draw(st.integers(0, world_size - 1))
    own = [0.1] * world_size
    own[slow] *= factor
    found = rung(ranks_of(own, 8, waiting=0.3), only(straggler_ratio=ratio))
    if abs(factor - ratio) > 1e-6:
        assert [alarm.message.split()[1] for alarm in found] == ([str(slow)] if factor > ratio else [])
    assert rung(ranks_of(own, 2), only(straggler_ratio=ratio)) == []  # a hiccup


def test_slow_ranks_of_microseconds_unknown_ranks_and_those_of_an_earlier_attempt_are_none():
    alarms = only(straggler_ratio=1.5)
    assert rung(ranks_of([0.0001, 0.0009], 8), alarms) == []
    start, *reports = ranks_of([0.1, 0.9], 8)
    assert rung([start | {"world_size": 3}, *reports], alarms) == []
    assert rung([start | {"time": 1000.0}, *reports], alarms) == []
    assert len(rung([start, *reports], alarms)) == 1


def test_a_rank_that_recovers_may_ring_again():
    slow = list(ranks_of([0.1, 0.3], 5))
    well = list(ranks_of([0.1, 0.1], 5))[1:]
    assert len(rung([*slow, *slow[1:]], only(straggler_ratio=1.5))) == 1
    assert len(rung([*slow, *well, *slow[1:]], only(straggler_ratio=1.5))) == 2


@given(st.lists(st.integers(1, 100), min_size=1, max_size=12), st.integers(5, 60))
def test_silence_rings_where_it_is_longer_than_said_and_than_is_usual(gaps, limit):
    events = [{"event": "start", "time": 0.0}, *({"event": "tick", "time": float(t)} for t in range(2))]
    now, longest, expected = 1, 0, []
    for number, gap in enumerate([1, *gaps], start=1):
        events += [{"event": "tick", "time": float(now + second)} for second in range(1, gap + 1)]
        now += gap
        events.append({"event": "step", "step": number, "time": float(now)})
        if number > 1 and gap > max(limit, 3 * longest):
            expected.append(number - 1)
        longest = max(longest, gap if number > 1 else 0)
    assert [alarm.step for alarm in rung(events, only(no_step_sec=limit))] == expected


def test_silence_after_the_end_during_a_suspension_or_at_a_long_first_step_is_none():
    def ticks(*times):
        return [{"event": "tick", "time": float(time)} for time in times]

    start, step = {"event": "start", "time": 0.0}, {"event": "step", "step": 1, "time": 1.0}
    alarms = only(no_step_sec=60)
    assert rung([start, step, {"event": "end", "time": 2.0}, *ticks(*range(2, 500))], alarms) == []
    assert rung([start, *ticks(1, 2), step, *ticks(3, 100_000)], alarms) == []  # a laptop's lid
    assert rung([start, *ticks(*range(170))], alarms) == []
    assert len(rung([start, *ticks(*range(190))], alarms)) == 1


def test_the_disk_rings_below_what_is_wanted_and_what_the_next_checkpoint_takes():
    def probe(time, free):
        return {"event": "probe", "time": time, "disk_free_bytes": free}

    saved = {"event": "checkpoint", "time": 1.0, "step": 9, "path": "runs/a/checkpoints/step-9", "bytes": 4_000_000_000}
    alarms = only(disk_free_bytes=10**9)
    for place in ("s3://bucket/a", "/another/disk"):
        start = {"event": "start", "time": 0.0, "config": {"checkpoints": place}}
        assert rung([start, probe(0.0, 1.1e9), saved, probe(2.0, 1.1e9)], alarms) == []
    start = {"event": "start", "time": 0.0, "config": {"checkpoints": None}}
    found = rung([start, probe(0.0, 5e9), saved, probe(2.0, 5e9), probe(3.0, 6.1e9), probe(4.0, 5e9)], alarms)
    assert [alarm.time for alarm in found] == [2.0]  # 6.1 GB is not well yet
    assert found[0].message == "the disk of the run's folder has 5 GB left: below 6 GB"
    assert len(rung([probe(0.0, 5e8), probe(1.0, 2e9), probe(2.0, 5e8), probe(3.0, None)], alarms)) == 2


def remembered(used, left=10e9):
    return [
        {"event": "probe", "time": 30.0 * n, "memory_bytes": float(value), "memory_left_bytes": left}
        for n, value in enumerate(used)
    ]


GB_AN_HOUR = 1e9 / 120  # of points each half minute


@given(st.floats(0.3, 20.0), st.integers(0, 2**32 - 1))
def test_memory_that_grows_steadily_rings_by_when_it_will_be_used_up(pace, seed):
    """Noise of 2 MB, and a jump of 1 GB now and then that goes away again."""
    rng = np.random.default_rng(seed)
    used = 2e9 + GB_AN_HOUR * pace * np.arange(80) + rng.normal(0, 2e6, 80)
    used[rng.integers(0, 80, 6)] += 1e9
    found = rung(remembered(used), only(memory_hours=10))
    if abs(pace - 1) > 0.2:
        assert len(found) == (pace > 1)
    for alarm in found:
        assert alarm.value == pytest.approx(10 / pace, rel=0.25)


@pytest.mark.parametrize(
    "used",
    [
        2e9 + 0 * np.arange(200),
        2e9 + 4e9 * (1 - np.exp(-np.arange(200) / 10)),  # caches that fill up
        2e9 + 3e9 * (np.arange(200) >= 30) + 3e9 * (np.arange(200) >= 90),  # jumps
        9e9 - 1e7 * np.arange(200),
        2e9 + 1e9 * (np.arange(200) % 40) / 40,  # a saw, as of a collector of garbage
    ],
    ids=["constant", "filling", "jumps", "shrinking", "saw"],
)
def test_memory_that_does_not_creep_does_not_ring(used):
    assert rung(remembered(used), only(memory_hours=5)) == []


@given(st.floats(-1e3, 1e3), st.integers(10, 60), st.integers(0, 2**32 - 1))
def test_a_quarter_of_wild_points_leaves_the_slope_where_it_is(slope, num, seed):
    rng = np.random.default_rng(seed)
    points = np.stack([np.arange(num), slope * np.arange(num)], 1).astype(float)
    assert theil_sen(points) == pytest.approx(slope)
    wild = rng.choice(num, num // 8, replace=False)
    points[wild, 1] += 1e6 * rng.choice([-1, 1], len(wild))
    assert theil_sen(points) == pytest.approx(slope, rel=1e-6, abs=1e-6)


KINDS = ["start", "step", "evaluate", "checkpoint", "guard", "rank", "feed", "tick", "probe", "end", "something"]
FIELDS = ["step", "sec", "wait_sec", "compute_sec", "samples", "loss", "bytes", "path", "guard", "ratio", "ranks"]
FIELDS += ["rank", "steps", "world_size", "communication_sec"]
FIELDS += ["disk_free_bytes", "memory_bytes", "memory_left_bytes"]
VALUES = st.one_of(st.none(), st.integers(-(10**12), 10**12), st.floats(-1e12, 1e12), st.text(max_size=3))


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.floats(0, 1e6), st.dictionaries(st.sampled_from(FIELDS), VALUES)),
        max_size=80,
    )
)
def test_events_of_any_content_are_judged_without_failing(found):
    events = [fields | {"event": kind, "time": time} for kind, time, fields in found]
    for alarm in rung(events, Alarms(au_minutes=0.01, throughput_minutes=0.01, no_step_sec=1)):
        assert alarm.message
        assert np.isfinite([alarm.value, alarm.limit]).all()


def test_an_attempt_is_judged_by_itself():
    attempt = [{"event": "start", "time": 1000.0}, *computing(*[0.2] * 100)]
    found = list(judged([*attempt, *attempt], only(au_below=0.5, au_minutes=1)))
    assert len(found) == 2
    assert list(judged([*attempt[:50], *attempt[:50]], only(au_below=0.5, au_minutes=1))) == []


def test_each_rule_can_be_turned_off():
    assert rules_of(Alarms(**NONE)) == []
    assert len({rule.name for rule in rules_of(Alarms())}) == len(NONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"au_below": 0}, "au_below must be above 0 and at most 1, or None: got 0"),
        ({"throughput_below": 1.5}, "throughput_below must be above 0 and at most 1, or None: got 1.5"),
        ({"au_minutes": float("nan")}, "au_minutes must be above 0: got nan"),
        ({"no_step_sec": True}, "no_step_sec must be above 0, or None: got True"),
        ({"memory_hours": "1"}, "memory_hours must be above 0, or None: got '1'"),
        ({"spike_score": -1}, "spike_score must be above 0, or None: got -1"),
        ({"straggler_ratio": 0.5}, "straggler_ratio must be at least 1, or None: got 0.5"),
        ({"disk_free_bytes": 1e9}, "disk_free_bytes must be a whole number of at least 1, or None: got 1000000000.0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(OptionError) as caught:
        Alarms(**options)
    assert str(caught.value) == message
