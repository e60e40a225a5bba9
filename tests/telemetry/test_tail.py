"""Following a run's file: every whole line once, however it is written and wherever reading stopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import StorageError
from headrace.telemetry import EventWriter, Tail, parts


def steps(tail):
    return [event["step"] for event in tail.new_events()]


def test_what_is_new_comes_once(tmp_path):
    tail = Tail(tmp_path / "events.jsonl")
    assert steps(tail) == []  # the run has not begun
    writer = EventWriter(tail.path)
    for step in range(3):
        writer.write("step", step=step)
        assert steps(tail) == [step]
    assert steps(tail) == []
    writer.close()


# The sizes of lines, where the file is cut while it is written, and how much is read at a time.
@given(st.lists(st.integers(0, 60), max_size=20), st.lists(st.integers(1, 150), max_size=20), st.integers(1, 80))
def test_lines_are_whole_however_they_are_written_and_read(tmp_path_factory, sizes, cuts, chunk):
    folder = tmp_path_factory.mktemp("tail")
    lines = [b'{"event": "step", "step": %d, "x": "%s"}\n' % (n, b"x" * size) for n, size in enumerate(sizes)]
    text, found, at = b"".join(lines), [], 0
    tail = Tail(folder / "events.jsonl")
    with pytest.MonkeyPatch.context() as patch, open(tail.path, "wb", buffering=0) as file:
        patch.setattr(parts, "_CHUNK_BYTES", chunk)
        for cut in [*cuts, len(text)]:
            file.write(text[:cut])
            text = text[cut:]
            found += steps(tail)
    assert found == list(range(len(sizes)))
    assert tail.at == sum(map(len, lines))
    for number, line in enumerate(lines):
        assert steps(Tail(tail.path, at)) == found[number:]
        at += len(line)


def test_who_stops_in_the_middle_goes_on_there(tmp_path):
    tail = Tail(tmp_path / "events.jsonl")
    tail.path.write_bytes(b'{"event": "a"}\n{"event": "b"}\n{"event": "c"}\n')
    assert next(tail.new_events())["event"] == "a"
    assert [event["event"] for event in Tail(tail.path, tail.at).new_events()] == ["b", "c"]
    assert [event["event"] for event in tail.new_events()] == ["b", "c"]


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    tail = Tail(tmp_path / "events.jsonl")
    tail.path.write_bytes(b'[1]\n\xff\n\n{"event": "end"}\n{"event": "to')
    assert [event["event"] for event in tail.new_events()] == ["end"]


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read the run's events from .*: Is a directory"):
        list(Tail(tmp_path).new_events())
