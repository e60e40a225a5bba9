"""What a sink is given while a run goes on: everything once, whatever fails, and the run does not notice."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import TargetError
from headrace.sinks import Sinks
from headrace.sinks.feeding import Feed
from headrace.sinks.history import History
from headrace.telemetry import EventWriter, read_events
from waiting import wait_for


@dataclass
class Shelf:
    """A sink that keeps what it is given in a list, fails while `broken` is set, and hangs while `stuck` is."""

    name: ClassVar[str] = "shelf"
    keeps: ClassVar[bool] = True

    given: list = field(default_factory=list)
    opened: list = field(default_factory=list)
    closed: list = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event | None = None
    hold_back: int = 0

    def check(self):
        pass

    def target(self, run_dir):
        return f"shelf of {run_dir}"

    def open(self, run_dir, memory):
        self.opened.append(dict(memory))
        memory.setdefault("number", len(self.opened))
        return OnShelf(self, memory)


class Drawer(Shelf):
    """A sink that draws points, each of the steps of a hundredth of a second."""

    def open(self, run_dir, memory):
        return InDrawer(self, memory)


class InDrawer(History):
    def __init__(self, drawer, memory):
        super().__init__("the drawer", 0.01, memory)
        self._drawer = drawer

    def started(self, event):
        pass

    def deliver(self, points):
        self._drawer.given += [point.step for point in points]

    def end(self, outcome):
        pass

    def free(self):
        pass


class OnShelf:
    where = "the shelf"

    def __init__(self, shelf, memory):
        self.shelf, self.memory, self.ready = shelf, memory, []

    @property
    def held(self):
        return len(self.ready) if len(self.ready) < self.shelf.hold_back else 0

    def take(self, event):
        if event["event"] != "sink":
            self.ready.append(event.get("step", event["event"]))

    def flush(self):
        if self.shelf.let_go is not None:
            self.shelf.let_go.wait()
        if self.shelf.broken.is_set():
            raise ConnectionError("nobody is at\nhttp://me:hunter2@there/x")
        if not self.held:
            self.put()

    def put(self):
        ready, self.ready = self.ready, []
        self.shelf.given += ready

    def close(self, outcome):
        self.put()
        self.shelf.closed.append(outcome)

    def abandon(self):
        self.shelf.closed.append("abandoned")


@pytest.fixture
def writer(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    yield writer
    writer.close()


def states(writer):
    writer.flush()
    return [event["state"] for event in read_events(writer.path) if event["event"] == "sink"]


def test_events_arrive_while_the_run_goes_on_and_the_last_ones_with_its_end(tmp_path, writer):
    shelf = Shelf()
    with Sinks([shelf], tmp_path, writer.write):
        writer.write("start")
        for step in range(1, 4):
            writer.write_often("step", step=step)
            wait_for(lambda step=step: step in shelf.given, "the step arrives")
        writer.write("end")
    assert shelf.given == ["start", 1, 2, 3, "end"]
    assert shelf.closed == ["complete"]
    (told,) = [event for event in read_events(writer.path) if event["event"] == "sink"]
    assert (told["sink"], told["state"], told["where"]) == ("shelf", "on", "the shelf")


@pytest.mark.parametrize(("last", "outcome"), [("stop", "stopped"), ("step", None)])
def test_the_outcome_is_what_the_events_say(tmp_path, writer, last, outcome):
    shelf = Shelf()
    with Sinks([shelf], tmp_path, writer.write):
        writer.write(last)
    assert shelf.closed == [outcome]


def test_a_run_that_fails_has_failed_there_too(tmp_path, writer):
    shelf = Shelf()
    with pytest.raises(MemoryError), Sinks([shelf], tmp_path, writer.write):
        raise MemoryError
    assert shelf.closed == ["failed"]


def test_the_next_start_goes_on_where_the_sink_was_and_as_it_remembers(tmp_path, writer):
    writer.write("before")  # a run that had no sinks then
    for step in (1, 2):
        shelf = Shelf()
        with Sinks([shelf], tmp_path, writer.write):
            writer.write("step", step=step)
        assert shelf.given == (["before", 1] if step == 1 else [2])
        assert shelf.opened == [{} if step == 1 else {"number": 1}]


@given(st.lists(st.sampled_from(["write", "deliver", "fail", "crash"]), max_size=25), st.integers(0, 4))
def test_every_event_is_given_once_and_in_order_whatever_fails_and_dies(tmp_path_factory, happened, hold_back):
    folder = tmp_path_factory.mktemp("run")
    writer, shelf, written = EventWriter(folder / "events.jsonl"), Shelf(hold_back=hold_back), 0
    feed = Feed(shelf, folder)
    for what in happened:
        if what == "write":
            written += 1
            writer.write("step", step=written)
        elif what == "deliver":
            feed.deliver()
        elif what == "fail":
            shelf.broken.set()
            with pytest.raises(ConnectionError):
                feed.deliver()
            shelf.broken.clear()
        else:
            feed._let_go()  # as if the process had ended here
            feed = Feed(shelf, folder)
    feed.finish(None)
    writer.close()
    assert shelf.given == list(range(1, written + 1))


def test_what_is_held_at_a_crash_is_given_again(tmp_path, writer):
    shelf = Shelf(hold_back=3)
    feed = Feed(shelf, tmp_path)
    for step in (1, 2):
        writer.write("step", step=step)
        feed.deliver()
    assert shelf.given == []
    feed._let_go()  # as if the process had ended here
    writer.write("step", step=3)
    Feed(shelf, tmp_path).finish(None)
    assert shelf.given == [1, 2, 3]


def test_a_crash_while_steps_run_brings_no_window_but_the_last_again(tmp_path, writer):
    """The step that closes a window opens the next one, so there is never a moment at which nothing is held."""
    sink = Drawer()
    feed = Feed(sink, tmp_path)
    for step in range(1, 6):
        writer.write("step", step=step, loss=float(step))
        feed.deliver()
        time.sleep(0.02)
    assert sink.given == [1, 2, 3, 4]
    feed._let_go()  # as if the process had ended here
    Feed(sink, tmp_path).finish(None)
    assert sink.given == [1, 2, 3, 4, 5]


def test_a_sink_of_two_targets_in_turn_has_a_place_in_each(tmp_path, writer):
    shelves = [Shelf(), Shelf()]
    shelves[1].target = lambda run_dir: "another shelf"
    for step in (1, 2):
        writer.write("step", step=step)
        for shelf in shelves:
            Feed(shelf, tmp_path).finish(None)
    assert [shelf.given for shelf in shelves] == [[1, 2], [1, 2]]


def test_a_sink_that_fails_is_told_once_and_misses_nothing_when_it_is_back(tmp_path, writer, caplog):
    shelf = Shelf()
    shelf.broken.set()
    with Sinks([shelf], tmp_path, writer.write):
        writer.write("step", step=1)
        wait_for(lambda: len(shelf.opened) > 1, "it is tried again")
        assert shelf.closed[0] == "abandoned"
        writer.write("step", step=2)
        shelf.broken.clear()
        wait_for(lambda: shelf.given == [1, 2], "what it missed comes")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == (
        "the sink shelf (the shelf) failed, and the run goes on without it: "
        "ConnectionError: nobody is at http://***@there/x"
    )
    assert "hunter2" not in writer.path.read_text()
    assert states(writer) == ["failed", "on"]


def test_a_sink_that_stays_broken_is_left_with_a_way_to_complete_it(tmp_path, writer, caplog):
    shelf = Shelf()
    shelf.broken.set()
    with Sinks([shelf], tmp_path, writer.write):
        writer.write("step", step=1)
    assert states(writer) == ["failed"]
    assert caplog.messages[-1] == (
        "the sink shelf (the shelf) lacks the last events of the run: headrace send RUN --sink shelf sends them"
    )
    shelf.broken.clear()
    Feed(shelf, tmp_path).finish(None)
    assert shelf.given == [1]


def test_a_sink_that_hangs_holds_nobody_up_for_long(tmp_path, writer, caplog):
    stuck, shelf = Shelf(let_go=threading.Event()), Shelf()
    shelf.name = "other"
    with Sinks([stuck, shelf], tmp_path, writer.write, end_sec=0.1):
        writer.write("step", step=1)
        wait_for(lambda: shelf.given == [1], "the other sink is fed")
    assert "the sink shelf (the shelf) failed, and the run goes on without it: it does not answer" in caplog.messages
    stuck.let_go.set()


def test_one_process_feeds_a_sink(tmp_path, writer):
    first, second = Feed(Shelf(), tmp_path), Feed(Shelf(), tmp_path)
    first.deliver()
    with pytest.raises(TargetError, match=r"the sink shelf of .* is fed by another process: wait for its end"):
        second.deliver()
    first.finish(None)
    second.finish(None)


def test_a_sink_that_keeps_nothing_is_told_of_this_start_only(tmp_path, writer):
    writer.write("step", step=1)
    shelf = Shelf()
    shelf.keeps = False
    with Sinks([shelf], tmp_path, writer.write):
        writer.write("step", step=2)
    assert shelf.given == [2]
    assert not (tmp_path / "sinks").exists()


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[1]\n", b'{"target": "another", "at": 5}\n', b'{"at": 99999}\n'])
def test_without_a_readable_note_of_what_it_has_a_sink_is_given_all(tmp_path, writer, spoilt):
    writer.write("step", step=1)
    shelf = Shelf()
    Feed(shelf, tmp_path).finish(None)
    (note,) = (tmp_path / "sinks").iterdir()
    note.write_bytes(spoilt)
    shelf.given.clear()
    Feed(shelf, tmp_path).finish(None)
    assert shelf.given == [1]


def test_events_that_were_deleted_and_begun_anew_are_given_from_their_beginning(tmp_path, writer):
    writer.write("step", step=1, note="x" * 100)
    Feed(Shelf(), tmp_path).finish(None)
    (tmp_path / "events.jsonl").write_text('{"event": "step", "time": 1.0, "step": 9}\n')
    shelf = Shelf()
    Feed(shelf, tmp_path).finish(None)
    assert shelf.given == [9]
