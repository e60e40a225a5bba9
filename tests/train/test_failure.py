from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import OptionError, TrainingError
from headrace.train.failure import Failure, first_failure, record_failure, room_for_failures
from headrace.train.worker import Job, is_lost_peer


def failure(error, rank=0, step=None):
    try:
        raise error
    except Exception as err:
        return Failure.of(err, rank, step)


def test_the_first_by_time_is_shown_whichever_rank_it_was(tmp_path):
    first = failure(ValueError("a digit too many"), rank=3, step=7)
    record_failure(tmp_path, failure(RuntimeError("later"), rank=0, step=7))
    record_failure(tmp_path, first)
    assert first_failure(tmp_path) == first
    with room_for_failures(tmp_path, 4):
        assert first_failure(tmp_path) is None, "the next launch does not see them"


def test_a_record_that_another_machine_has_just_removed_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, _: [folder / "rank0.json"])
    with room_for_failures(tmp_path, 0):
        pass


def test_the_longest_record_fits_into_the_room_that_is_held_for_it(tmp_path):
    long = failure(ValueError("\U0001f600" * 100_000))
    with room_for_failures(tmp_path, 2):
        held = [path.stat().st_size for path in (tmp_path / "errors").iterdir()]
        record_failure(tmp_path, long)
        assert (tmp_path / "errors/rank0.json").stat().st_size <= min(held)
    assert first_failure(tmp_path) == long
    assert [path.name for path in (tmp_path / "errors").iterdir()] == ["rank0.json"]


def test_one_of_our_errors_keeps_its_type_and_others_become_training_errors():
    ours = failure(OptionError("world size 5 does not divide 48"), rank=1).error()
    assert type(ours) is OptionError
    assert str(ours) == "rank 1: world size 5 does not divide 48"
    other = failure(ZeroDivisionError("by zero\nand more"), rank=1, step=3).error()
    assert type(other) is TrainingError
    assert str(other) == "rank 1, step 3: ZeroDivisionError: by zero"
    assert "raise error" in other.__notes__[0]


def test_an_error_without_a_message_is_still_a_line():
    assert str(failure(KeyError()).error()) == "rank 0: KeyError: no message"


def raised_here(error):
    try:
        raise error
    except RuntimeError as err:
        return err


def chained(cause):
    try:
        raise RuntimeError("the backward pass failed") from cause
    except RuntimeError as err:
        return err


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), True),
        (chained(RuntimeError("Connection reset by peer")), True),
        (RuntimeError("shapes do not match"), False),
        (raised_here(RuntimeError("feature store: connection refused")), False),
        (ConnectionResetError("connection reset by peer"), False),
        (ValueError("connection closed by peer"), False),
    ],
)
def test_a_lost_peer_is_told_from_an_error_of_ones_own(error, lost):
    assert is_lost_peer(error) == lost


def test_a_job_reaches_the_worker_as_it_was():
    job = Job("r.py:f", "runs/a b", "auto", ("lr=1", 'name="x"'))
    assert Job.from_json(job.to_json()) == job
