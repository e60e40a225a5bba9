"""The clock of a GPU's steps, on a model of one: a host that hands work over, a stream that does it in its order."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.train.clock import Split
from headrace.train.device_clock import DeviceClock

WORK = (0.01, 0.02, 0.005)
PARTS = ("wait", "copy", "forward", "backward", "passes", "optimizer", "communication", "guard", "checkpoint", "rest")


class Device:
    """Work is done one after the other, and not before it is handed over."""

    def __init__(self):
        self.host = self.free_at = 0.0
        self.waited = 0

    def work(self, sec):
        self.free_at = max(self.free_at, self.host) + sec

    def event(self):
        return Moment(self)

    def now(self):
        return self.host


class Moment:
    def __init__(self, device):
        self.device = device
        self.at = math.nan

    def record(self):
        self.device.work(0.0)
        self.at = self.device.free_at

    def query(self):
        return self.at <= self.device.host

    def synchronize(self):
        if not self.query():
            self.device.waited += 1
            self.device.host = self.at

    def elapsed_time(self, end):
        assert self.query(), "an event that is not past was read"
        assert end.query(), "an event that is not past was read"
        return (end.at - self.at) * 1e3


def step(device, clock, *, wait=0.0, fetched=0.0, copy=0.0, copied=0.0, replay=None, launch=0.001, work=WORK, after=()):
    """What the loop does in a step, in seconds; `after` has (kind, sec) and perhaps what the device does for it.

    Of the device: `fetched` in the wait and `copied` in the copy. `replay`: a guard's, of the host and the device.
    """
    clock.ask()
    device.host += wait
    device.work(fetched)
    clock.lap("wait")
    device.host += copy
    device.work(copied)
    clock.lap("copy")
    if replay is not None:
        device.host += replay[0]
        device.work(replay[1])
        clock.lap("guard")
    clock.begin()
    for kind, sec in zip(("forward", "backward", "optimizer"), work, strict=True):
        device.host += launch
        device.work(sec)
        clock.lap(kind)
    for kind, sec, *done in after:
        device.host += sec
        device.work(sum(done))
        clock.lap(kind)
    return clock.next_step()


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def clock(device):
    made = DeviceClock(device.event, device.now)
    made.skip()
    return made


def total(split):
    return sum(getattr(split, part) for part in PARTS)


def test_a_device_that_is_always_busy_waits_for_nothing(device, clock):
    splits = [step(device, clock, wait=0.01) for _ in range(6)]
    clock.settle()
    for split in splits[1:]:
        assert (split.forward, split.backward, split.optimizer) == pytest.approx((0.01, 0.02, 0.005))
        assert total(split) == pytest.approx(0.035)
    assert splits[0].wait == pytest.approx(0.01)  # there is nothing to do yet meanwhile


def test_a_wait_is_as_long_as_the_device_had_nothing_to_do(device, clock):
    splits = [step(device, clock, wait=0.05, copy=0.004) for _ in range(6)]
    clock.settle()
    for split in splits[1:]:
        assert split.copy == pytest.approx(0.004)
        # It waits 1 ms for the first launch, works 35 ms, and all is launched after 3 ms.
        assert split.wait == pytest.approx(0.05 - (0.001 + 0.035 - 0.003))
        assert split.launch == pytest.approx(0.003)


def test_what_the_host_did_last_is_what_the_device_waited_for(device, clock):
    first = step(device, clock, work=(0.001, 0.001, 0.001), after=(("guard", 0.5), ("checkpoint", 0.2)))
    step(device, clock, wait=0.1)
    clock.settle()
    assert (first.checkpoint, first.guard) == pytest.approx((0.2, 0.499))
    slow = step(device, clock, work=(1.0, 0.0, 0.0), after=(("guard", 0.5), ("checkpoint", 0.7)))
    step(device, clock)
    clock.settle()
    assert slow.checkpoint == pytest.approx(0.202)
    assert slow.guard == 0.0


@pytest.mark.parametrize("in_the_wait", [True, False])
@pytest.mark.parametrize("wait", [0.0, 0.02])
def test_a_copy_that_the_device_makes_or_waits_for_is_no_overhead(device, clock, in_the_wait, wait):
    copy = {"fetched" if in_the_wait else "copied": 0.07}
    splits = [step(device, clock, wait=wait, **copy) for _ in range(6)]
    clock.settle()
    for split in splits[1:]:  # the device works for 35 ms, in which the host has waited
        assert split.copy == pytest.approx(0.07)
        assert (split.wait, split.rest) == pytest.approx((0.0, 0.0))


def test_a_wait_and_a_copy_of_the_device_behind_it_are_told_apart(device, clock):
    splits = [step(device, clock, wait=0.1, copied=0.03, launch=0.0, work=(0.001, 0.0, 0.0)) for _ in range(6)]
    clock.settle()
    for split in splits[1:]:
        assert split.copy == pytest.approx(0.03)
        assert split.wait == pytest.approx(0.1 - 0.03 - 0.001)


def test_what_the_device_does_for_guards_is_theirs(device, clock):
    splits = [step(device, clock, replay=(0.002, 0.05), after=[("guard", 0.001, 0.04)]) for _ in range(6)]
    clock.settle()
    for split in splits[1:]:
        assert split.guard == pytest.approx(0.09)
        assert (split.rest, split.copy, split.wait) == pytest.approx((0.0, 0.0, 0.0))


def test_where_the_host_waits_for_the_device_in_a_step_it_hands_nothing_over(device, clock):
    clock.begin()
    for kind in ("forward", "backward", "synchronize", "optimizer"):
        device.host += 0.001
        if kind == "synchronize":
            device.host = max(device.host, device.free_at)
        else:
            device.work(0.01)
        clock.lap(kind)
    split = clock.next_step()
    clock.settle()
    assert split.launch == pytest.approx(0.003)
    assert (split.forward, split.backward) == pytest.approx((0.011, 0.01))  # 1 ms is for the launch
    assert total(split) == pytest.approx(device.free_at)


def test_an_evaluation_is_of_no_step(device, clock):
    before = step(device, clock)
    clock.pause()
    device.work(3.0)
    device.host += 3.5
    clock.skip()
    after = step(device, clock, wait=0.1)
    clock.settle()
    assert total(before) == pytest.approx(0.035 + 0.001)
    assert total(after) == pytest.approx(0.1 + 0.035 + 0.001)


def test_nobody_waits_for_the_device_until_it_is_asked_to(device, clock):
    splits = [step(device, clock) for _ in range(5)]
    assert not any(clock.knows(split) for split in splits[1:])
    assert device.waited == 0
    device.host = device.free_at
    assert all(clock.knows(split) for split in splits[:-1])
    assert device.waited == 0
    clock.settle()
    assert clock.knows(splits[-1])


SECONDS = st.floats(0, 0.1)
STEPS = st.lists(
    st.tuples(
        st.tuples(SECONDS, SECONDS),
        st.tuples(SECONDS, SECONDS),
        st.none() | st.tuples(SECONDS, SECONDS),
        st.floats(0, 0.01),
        st.tuples(SECONDS, SECONDS, SECONDS),
        st.lists(st.tuples(st.sampled_from(["guard", "checkpoint", "rest"]), SECONDS, SECONDS), max_size=3),
        st.sampled_from(["", "evaluate", "settle", "ask"]),
    ),
    min_size=1,
    max_size=12,
)


@given(STEPS)
def test_the_parts_of_all_steps_are_the_devices_time(plan):
    device = Device()
    clock = DeviceClock(device.event, device.now)
    clock.skip()
    began, evaluated, splits = device.free_at, 0.0, []
    for (wait, fetched), (copy, copied), replay, launch, work, after, then in plan:
        made = {"wait": wait, "fetched": fetched, "copy": copy, "copied": copied, "replay": replay}
        splits.append(step(device, clock, **made, launch=launch, work=work, after=after))
        if then == "evaluate":
            clock.pause()
            paused = device.free_at
            device.work(0.3)
            device.host = device.free_at + 0.1
            clock.skip()
            evaluated += device.free_at - paused
        elif then == "settle":
            clock.settle()
        elif then == "ask":
            clock.knows(splits[0])
    clock.settle()
    assert sum(map(total, splits)) == pytest.approx(device.free_at - began - evaluated, abs=1e-9)
    assert all(getattr(split, part) >= 0 for split in splits for part in PARTS)
    copied = sum(one[1][1] for one in plan)  # what it waits for in `fetched` may be a part of the host's wait
    assert sum(split.copy for split in splits) >= copied - 1e-9
    assert sum(split.forward for split in splits) >= sum(one[4][0] for one in plan) - 1e-9


def test_moved_seconds_are_no_more_than_there_are():
    split = Split(backward=1.0)
    split.move(3.0, "backward", "communication")
    assert (split.backward, split.communication) == (0.0, 1.0)
    split.move(-1.0, "communication", "backward")
    assert (split.backward, split.communication) == (0.0, 1.0)
