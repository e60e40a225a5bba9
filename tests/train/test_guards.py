"""Faults are put into runs of two processes: what is found, when, what is done, and the loss that the run comes to."""

from __future__ import annotations

import guarded
import problems as p
import pytest
import torch
from processes import HERE, run_ranks

import headrace as hr
from headrace.errors import OptionError
from headrace.report import rank_times, read_run, verdict
from headrace.telemetry import read_events

SIZE = 2


@pytest.fixture(scope="module", params=["dp", "fsdp"])
def runs(request, tmp_path_factory):
    """A function that gives what a scenario left: its values by rank, and its findings."""
    return started(request.param, SIZE, guarded.ANYWHERE, tmp_path_factory)


@pytest.fixture(scope="module", params=[("dp", 2), ("dp=2,fsdp=2", 4)], ids=lambda param: param[0])
def replicas(request, tmp_path_factory):
    return started(*request.param, guarded.REPLICATED, tmp_path_factory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return started("dp", SIZE, guarded.WHOLE, tmp_path_factory)


def started(mesh, size, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    run_ranks(size, [HERE / "guarded.py", *names, "--out", folder], TEST_MESH=mesh)
    return lambda name: Ran(folder, name, size)


class Ran:
    """A scenario that has run on every rank."""

    def __init__(self, folder, name, size):
        self.ranks = [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)]
        self.loss, self.message = self.ranks[0]["loss"], self.ranks[0]["message"]
        self.folder = folder / name
        self.events = list(read_events(self.folder / "events.jsonl"))

    def found(self, guard):
        return [event for event in self.events if event["event"] == "guard" and event["guard"] == guard]


def same_on_all_ranks(ran):
    first, *others = ran.ranks
    names = {"weights", "average"} & first.keys()
    return all(p.largest_difference(first[name], other[name]) == 0 for other in others for name in names)


def test_guards_change_nothing_of_a_run_in_which_nothing_is_wrong(runs):
    with_guards, without = runs("nothing_wrong"), runs("nothing_guarded")
    assert p.largest_difference(with_guards.ranks[0]["weights"], without.ranks[0]["weights"]) == 0
    assert not [event for event in with_guards.events if event["event"] == "guard" and event["guard"] != "straggler"]


def test_a_batch_with_a_nan_is_skipped_on_every_rank_and_its_sample_named(runs):
    ran = runs("poisoned")
    [event] = ran.found("finite")
    assert (event["step"], event["ranks"], event["factor"]) == (20, [SIZE - 1], 0.5)
    assert len(event["keys"]) == len(event["keys"][0]) == 1  # one rank, and of its six samples the one
    assert ran.message is None
    assert all(value.isfinite().all() for value in ran.ranks[0]["weights"].values())
    assert same_on_all_ranks(ran)


def test_after_a_skipped_step_the_loss_is_nearly_that_of_a_run_without_it(runs):
    assert runs("poisoned").loss == pytest.approx(runs("unpoisoned").loss, rel=0.15)


def test_the_learning_rate_backs_off_and_recovers(runs):
    steps = [event for event in runs("poisoned").events if event["event"] == "step"]
    rates = {event["step"]: event["lr"] for event in steps}
    assert rates[20] == pytest.approx(0.1)
    assert rates[21] == pytest.approx(0.05)
    assert rates[21] < rates[40] < rates[60] < 0.1


def test_too_many_bad_steps_in_a_row_end_the_run_with_steps_rank_and_sample(runs):
    ran = runs("always_poisoned")
    assert {rank["steps"] for rank in ran.ranks} == {24}
    for rank in ran.ranks:
        assert "fewer than 5 steps in a row may be bad: steps 20 to 24 were" in rank["message"]
        assert f"the loss of rank {SIZE - 1} (samples " in rank["message"]
    assert [event["step"] for event in ran.found("finite")] == [20, 21, 22, 23, 24]
    assert not [event for event in ran.events if event["event"] == "checkpoint"]


def test_a_spike_that_stays_takes_the_run_back_and_the_loss_falls_as_if_it_had_not_been(runs):
    ran = runs("blown_up")
    assert [event["step"] for event in ran.found("spike")] == [70, 71, 72]
    [event] = ran.found("rollback")
    assert (event["step"], event["to_step"]) == (72, 60)
    assert same_on_all_ranks(ran)
    assert runs("blown_up_unguarded").loss > 10
    assert ran.loss < 2 * runs("not_blown_up").loss


def test_a_checkpoint_follows_a_rollback_so_that_the_newest_is_good(runs):
    steps = [event["step"] for event in runs("blown_up").events if event["event"] == "checkpoint"]
    assert steps == [50, 72, 100, 120]


def test_spikes_that_come_again_after_the_last_rollback_end_the_run(runs):
    ran = runs("blown_up_again")
    assert [event["to_step"] for event in ran.found("rollback")] == [60, 60]
    for rank in ran.ranks:
        assert "a run may go back 2 times at most: it did, and in step 78 the loss" in rank["message"]


def test_odd_batches_that_leave_no_trace_are_noted_and_no_more(runs):
    ran = runs("hard_batches")
    assert {event["step"] for event in ran.found("spike")} == {70, 71}
    assert not ran.found("rollback")
    assert ran.message is None


def test_a_checkpoint_that_is_due_amid_spikes_waits_until_they_end(runs):
    steps = [event["step"] for event in runs("hard_batches").events if event["event"] == "checkpoint"]
    assert steps == [35, 72, 105, 120]


def test_a_run_goes_on_bit_for_bit_with_the_state_of_its_guards(runs):
    for found in runs("halved").ranks:
        assert p.largest_difference(found["straight"], found["weights"]) == 0


def test_a_replica_that_differs_ends_the_run_on_every_rank_after_the_next_comparison(replicas):
    ran = replicas("flipped")
    odd = len(ran.ranks) - 1
    pair = [odd - len(ran.ranks) // 2, odd]  # of two nobody knows which one is right
    [event] = ran.found("replica")
    assert (event["step"], event["ranks"]) == (40, pair)
    for rank in ran.ranks:
        assert f"after step 40 the parameters of ranks {pair[0]} and {pair[1]} differ" in rank["message"]
        assert rank["steps"] == 41


def test_replicas_are_repaired_and_the_loss_is_nearly_that_of_a_run_without_the_fault(replicas):
    ran = replicas("repaired")
    assert [event["step"] for event in ran.found("replica")] == [40]
    assert ran.message is None
    assert same_on_all_ranks(ran)
    assert ran.loss == pytest.approx(replicas("not_flipped").loss, rel=0.05)


def test_no_checkpoint_is_written_of_replicas_that_differ(replicas):
    ran = replicas("found_before_it_is_saved")
    assert [event["step"] for event in ran.events if event["event"] == "checkpoint"] == [20]
    assert [event["step"] for event in ran.found("replica")] == [40]


def test_arithmetic_that_does_not_repeat_ends_the_run_with_the_rank(whole):
    ran = whole("unsound")
    [event] = ran.found("replay")
    assert (event["step"], event["ranks"]) == (30, [SIZE - 1])
    assert all(f"the second time on rank {SIZE - 1};" in rank["message"] for rank in ran.ranks)


def test_arithmetic_that_does_not_repeat_may_be_noted_only(whole):
    ran = whole("unsound_and_noted")
    assert [event["step"] for event in ran.found("replay")] == [30, 40, 50, 60]
    assert ran.message is None


def test_a_slow_rank_is_named_with_how_slow_it_is(whole):
    ran = whole("slowed")
    found = [event for event in ran.found("straggler") if event["ranks"] == [SIZE - 1]]
    assert [event["step"] for event in found] == [20, 40, 60]
    assert all(event["ratio"] > 1.5 and 0.02 < event["p50_sec"] <= event["p90_sec"] for event in found)


def test_a_slow_rank_is_the_verdict_on_its_run(whole):
    judged = verdict(whole("slowed").folder)
    assert (judged.bound, judged.rank) == ("straggler", SIZE - 1)
    assert f"the others wait for rank {SIZE - 1}" in judged.sentence
    assert "most of it compute" in judged.sentence


def test_every_rank_tells_of_its_own_time(runs):
    ran = runs("nothing_wrong")
    first, second = rank_times(read_run(ran.folder))
    assert (first.rank, second.rank) == (0, 1)
    assert first.steps == second.steps == max(event["step"] for event in ran.events if event["event"] == "step") - 1
    assert min(first.parts["compute"], second.parts["compute"]) > 0
    assert first.sec == pytest.approx(second.sec, rel=0.2)  # they take their steps together


def test_what_steps_wait_for_is_known_of_copies_and_of_parts(runs):
    steps = [event for event in runs("nothing_wrong").events if event["event"] == "step"]
    assert all(event["communication_sec"] > 0 for event in steps)


def test_how_long_each_rank_takes_is_in_the_record(whole):
    paces = [event for event in whole("slowed").events if event["event"] == "ranks"]
    assert [event["step"] for event in paces] == [20, 40, 60]
    for event in paces:
        assert len(event["p50_sec"]) == len(event["p90_sec"]) == SIZE
        assert max(event["p50_sec"]) == event["p50_sec"][-1] > 0.02


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"max_bad_steps": 0}, "max_bad_steps must be a whole number of at least 1: got 0"),
        ({"spike_window": 8}, "spike_window must be a whole number of at least 16: got 8"),
        ({"max_rollbacks": 1.5}, "max_rollbacks must be a whole number of at least 0: got 1.5"),
        ({"back_off": 0}, "back_off must be above 0 and at most 1: got 0"),
        ({"check_every": 0}, "check_every must be a whole number of at least 1: got 0"),
        ({"replay_every": 0}, "replay_every must be a whole number of at least 1: got 0"),
        ({"on_corruption": "mend"}, "on_corruption must be one of raise, repair: got 'mend'"),
        ({"straggler_ratio": 0.5}, "straggler_ratio must be at least 1, or None: got 0.5"),
        ({"spike_score": float("inf")}, "spike_score must be above 0, or None: got inf"),
    ],
)
def test_values_that_cannot_work_are_refused(options, rule):
    with pytest.raises(OptionError, match=rule):
        hr.Guards(**options)


def test_guards_are_given_as_guards():
    with pytest.raises(OptionError, match=r"guards must be headrace\.Guards"):
        p.trainer(guards=True)
