"""The arithmetic of deadlines and pauses, and calls that can be left behind."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DamagedError, StorageError
from headrace.storage import Entry, ReadOptions, calls, locate, operations, retrying
from headrace.storage.calls import begin, interruptible, limited
from headrace.storage.retrying import persist
from headrace.storage.store import Denied, Missing, Refused, Short, Trouble
from waiting import wait_for

PLACE = locate("s3://bucket/a")


class Clock:
    """A clock that only pauses and attempts move."""

    def __init__(self, monkeypatch):
        self.now, self.limits = 1000.0, []
        monkeypatch.setattr(retrying.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retrying.time, "sleep", self.pass_by)

    def pass_by(self, seconds):
        self.now += seconds

    def attempt(self, share):
        """An attempt that fails after this share of its limit."""

        def once(limit):
            self.limits.append(limit)
            self.pass_by(limit * share)
            raise Trouble("no")

        return once


@given(timeout=st.floats(0.01, 1e5), share=st.floats(0, 1))
def test_no_attempt_can_outlive_the_deadline(timeout, share):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        with pytest.raises(StorageError, match="gave up after"):
            persist("read", PLACE, ReadOptions(timeout), clock.attempt(share))
    assert clock.now - 1000 <= timeout * (1 + 1e-9)
    assert clock.limits[0] == timeout
    assert {timeout / limit for limit in clock.limits} <= {1, 2, 4, 8, 16}


def test_as_long_as_there_is_time_it_is_tried(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(StorageError, match="gave up after"):
        persist("read", PLACE, ReadOptions(60), clock.attempt(0))
    assert clock.now - 1000 > 50
    assert len(clock.limits) > 10


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (Refused("why"), StorageError, "cannot read s3://bucket/a: why"),
        (Denied("why"), StorageError, "cannot read s3://bucket/a: why"),
        (Missing(""), DamagedError, "s3://bucket/a is missing: restore it, or make the dataset again"),
        (Missing("why"), DamagedError, "s3://bucket/a is missing: restore it, or make the dataset again (why)"),
        (Short("why"), DamagedError, "s3://bucket/a is cut short: why"),
    ],
)
def test_what_is_final_is_raised_at_once(failure, error, words):
    calls = []

    def once(limit):
        calls.append(limit)
        raise failure

    with pytest.raises(error) as caught:
        persist("read", PLACE, None, once)
    assert str(caught.value) == words
    assert len(calls) == 1


def test_a_listing_that_breaks_goes_on_after_what_was_given_out(monkeypatch):
    names, asked = [f"f{number}" for number in range(6)], []

    class Breaking:
        def walk(self, place, after, limit):
            asked.append(after)
            left = [Entry(name, 0, False) for name in names if name > after]
            yield left[:2]
            if len(asked) < 3:
                raise Trouble("broken")
            yield left[2:]

    monkeypatch.setattr(operations, "store_for", lambda place: Breaking())
    assert [entry.name for entry in operations.walk(PLACE, options=ReadOptions(120))] == names
    assert asked == ["", "f1", "f3"]


def test_a_call_that_takes_too_long_is_left_behind():
    end, done = threading.Event(), []
    with pytest.raises(TimeoutError):
        limited(0.01, lambda: (end.wait(120), done.append(1)))
    assert done == []
    end.set()
    wait_for(lambda: done, "the call's end")


def test_calls_return_and_raise_what_they_do():
    assert limited(120, divmod, 7, 2) == interruptible(divmod, 7, 2) == begin(divmod, 7, 2).result() == (3, 1)
    for call in (lambda: limited(120, divmod, 1, 0), lambda: interruptible(divmod, 1, 0)):
        with pytest.raises(ZeroDivisionError):
            call()


def test_threads_for_calls_are_used_again():
    def name():
        return threading.current_thread().ident

    names = set()
    for _ in range(50):
        names.add(limited(120, name))
        wait_for(lambda: calls._IDLE, "the thread's return")
    assert len(names) < 10
    futures = [begin(threading.Event().wait, 0.01) for _ in range(100)]
    assert [future.result() for future in futures] == [False] * 100
    wait_for(
        lambda: sum(thread.name == "headrace-storage" for thread in threading.enumerate()) <= 40, "idle threads' end"
    )
