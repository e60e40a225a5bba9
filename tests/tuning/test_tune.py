"""`hr.tune` with real Optuna and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import headrace as hr
from headrace.errors import OptionError, TargetError, TrainingError
from headrace.report import read_run
from headrace.train.rundir import RunLock
from waiting import DEADLINE_SEC, alive, family, running, wait_for, wait_gone

pytest.importorskip("optuna", reason="needs the extra: pip install 'headrace[tune]'")

pytestmark = pytest.mark.usefixtures("workplace")


def command(*arguments):
    return [sys.executable, "-m", "headrace.cli.main", "tune", "small.py", *arguments]


def test_the_best_settings_are_found_and_its_command_trains_with_them():
    found = hr.tune("small.py", search={"lr": "0.1,0.25,0.9"}, settings={"epochs": 1}, trials=2, run_dir="study")
    assert [trial.number for trial in found.trials] == [0, 1]
    assert found.count("complete") == 2
    best = min(found.trials, key=lambda trial: trial.value)
    assert (found.best.value, found.best.settings) == (best.value, best.settings)
    assert found.best.value == pytest.approx(abs(float(best.settings["lr"]) - 0.3))
    assert found.command == f"headrace train small.py --nproc 1 --set epochs=1 --set lr={best.settings['lr']}"
    start = read_run(found.best.run_dir).attempts[0].start
    assert start["config"]["settings"] == {"epochs": 1, "lr": float(best.settings["lr"])}


def test_a_study_goes_on_to_the_number_of_trials_and_only_as_it_began():
    options = {"search": {"lr": "0..1"}, "settings": {"epochs": 1}, "run_dir": "study"}
    first = hr.tune("small.py", trials=1, **options)
    second = hr.tune("small.py", trials=2, **options)
    assert second.trials[0] == first.trials[0]
    assert second.trials[1].settings != first.trials[0].settings
    assert hr.tune("small.py", trials=2, **options).trials == second.trials
    with pytest.raises(OptionError, match=r"has search \{'lr': '0..1'\} and not \{'lr': '0..2'\}; choose another"):
        hr.tune("small.py", trials=3, **options | {"search": {"lr": "0..2"}})


@pytest.mark.slow
def test_a_poor_trial_ends_early_with_a_checkpoint():
    """The sixth, after the five that the median asks for, would never end by itself."""
    options = {"search": {"lr": "0.1..0.2"}, "run_dir": "study", "metric": "score", "direction": "maximize"}
    good = hr.tune("small.py", trials=5, **options)
    assert good.count("complete") == 5
    Path("poor").touch()
    found = hr.tune("small.py", trials=6, **options)
    assert found.trials[:5] == good.trials
    assert found.best == good.best
    pruned = found.trials[5]
    assert (pruned.state, pruned.value) == ("pruned", pytest.approx(-8.7))
    run = read_run(pruned.run_dir)
    assert run.stops[-1]["reason"] == "sigterm"
    assert run.checkpoints[-1]["step"] == run.num_steps


def test_a_killed_trial_has_failed_and_the_study_goes_on():
    kill_held("hold", "study")
    found = hr.tune(
        "small.py", search={"lr": "0.1,0.2"}, settings={"epochs": 1, "hold": "hold"}, trials=2, run_dir="study"
    )
    assert [trial.state for trial in found.trials] == ["failed", "complete"]
    assert found.trials[0].reason == "it was killed by SIGKILL"


def kill_held(name, study):
    """Once a trial waits, kill its processes' launcher, and let later trials go."""

    def kill():
        pid = int(wait_for(lambda: Path(name).exists() and Path(name).read_text(), "a trial that waits"))
        Path("go").touch()
        launcher = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(launcher, signal.SIGKILL)
        Path(name).unlink()

    threading.Thread(target=kill, daemon=True).start()


@pytest.mark.slow
def test_errors_of_settings_fail_their_trials_only_and_of_all_end_the_search():
    options = {"settings": {"epochs": 1}, "trials": 5, "run_dir": "study"}
    found = hr.tune("small.py", search={"kind": "plain,broken"}, **options)
    reasons = {trial.reason for trial in found.trials if trial.settings["kind"] == "broken"}
    assert reasons == {"rank 0: ValueError: no such kind"}
    assert found.best.settings == {"kind": "plain"}
    with pytest.raises(TrainingError, match="all 3 trials failed, the last one because rank 0: ValueError: no such"):
        hr.tune("small.py", search={"lr": "0..1"}, settings={"kind": "broken"}, trials=9, run_dir="broken")


@pytest.mark.slow
def test_a_metric_that_is_not_finite_is_a_failed_trial():
    found = hr.tune("small.py", search={"kind": "plain,nan"}, settings={"epochs": 1}, trials=4, run_dir="study", seed=2)
    states = {(trial.settings["kind"], trial.state, trial.reason) for trial in found.trials}
    assert {state[:2] for state in states} == {("plain", "complete"), ("nan", "failed")}, states


@pytest.mark.parametrize(
    ("recipe", "changed", "message"),
    [
        ("small.py", {"metric": "recall"}, "got 'recall', it has loss, score, correct"),
        ("small.py:unevaluated", {"settings": {}}, "unevaluated evaluates nothing; set evaluate="),
        ("small.py", {"direction": "up"}, "direction must be one of minimize, maximize: got 'up'"),
        ("small.py", {"pruner": "axe"}, "pruner must be one of median, hyperband, none: got 'axe'"),
        ("small.py", {"trials": 0}, "trials must be at least 1: got 0"),
        ("small.py", {"settings": {"lr": 0.1}}, "searched or set, not both: got both of lr"),
        ("small.py", {"settings": {"lrr": 0.1}}, "no setting 'lrr'"),
        ("small.py", {"search": {}}, "needs settings to vary"),
    ],
)
def test_what_cannot_work_is_one_line(recipe, changed, message):
    options = {"search": {"lr": "0..1"}, "settings": {"epochs": 1}, "run_dir": "study", "trials": 2}
    with pytest.raises(OptionError, match=message):
        hr.tune(recipe, **options | changed)


def test_a_wrong_metric_leaves_nothing_that_stands_in_the_way_of_the_right_one():
    options = {"search": {"lr": "0..1"}, "settings": {"epochs": 1}, "run_dir": "study", "trials": 1}
    with pytest.raises(OptionError, match="recall"):
        hr.tune("small.py", metric="recall", direction="maximize", **options)
    assert hr.tune("small.py", **options).count("complete") == 1


def test_one_search_at_a_time_holds_a_folder(tmp_path):
    lock = RunLock(tmp_path / "study")
    with pytest.raises(TargetError, match="in use"):
        hr.tune("small.py", search={"lr": "0..1"}, run_dir="study")
    lock.close()


@pytest.mark.slow
def test_the_command_runs_two_at_a_time_and_a_killed_search_goes_on_with_the_same_settings(workplace):
    """Killed with both trials under way: they end, and are tried again; the reports of all can be made."""
    options = ["--search", "lr=0..1", "--set", "epochs=1", "--set", "hold=hold", "--trials", "3", "--jobs", "2"]
    options += ["--run", "study", "--metric", "score", "--direction", "maximize", "--json"]
    with running(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def both_run():
            assert process.poll() is None, process.stderr.read()
            return Path("hold").exists() and len(list(Path("study").glob("trial-*"))) == 2

        wait_for(both_run, "two trials under way")
        processes = family(process.pid)
        process.kill()
        process.wait()
    # What they hold for is gone, so that they can answer the signal of their parent's end.
    Path("go").touch()
    wait_for(lambda: _let_go(processes), "the end of the trials")
    wait_gone(processes)
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=DEADLINE_SEC)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["trials"], found["complete"], found["failed"]) == (3, 3, 0)
    rates = [_rate(path) for path in sorted(Path("study").glob("trial-*"))]
    cut_off = {rate for rate in rates[:2] if rate is not None}  # one of the two may not have begun its run
    assert cut_off
    assert cut_off <= set(rates[2:])
    report = [sys.executable, "-m", "headrace.cli.main", "report", found["best"]["run_dir"]]
    assert subprocess.run(report, capture_output=True, timeout=DEADLINE_SEC).returncode == 0


def _let_go(processes):
    with suppress(FileNotFoundError):
        Path("hold").unlink()
    return not alive(processes)


def _rate(run_dir):
    if not (run_dir / "events.jsonl").exists():
        return None
    return read_run(run_dir).attempts[0].start["config"]["settings"]["lr"]
