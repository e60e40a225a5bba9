"""`headrace report`: the page's path comes last, errors are one line."""

import json
import os
import subprocess
import sys

import pytest
from run_files import write_run


def headrace(*args):
    code = "from headrace.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "digits", num_steps=60, crash_at=None)


def test_prints_the_verdict_and_then_the_path(run_folder):
    done = headrace("report", run_folder)
    assert done.returncode == 0, done.stderr
    sentence, path = done.stdout.splitlines()
    assert sentence.startswith("Input-bound: ")
    assert path == str(run_folder / "report.html")
    assert done.stderr == ""


def test_json_has_path_and_verdict(run_folder, tmp_path):
    done = headrace("report", run_folder / "events.jsonl", "-o", tmp_path / "page.html", "--json")
    result = json.loads(done.stdout.splitlines()[-1], parse_constant=pytest.fail)
    assert result["path"] == str(tmp_path / "page.html")
    assert result["verdict"].startswith("Input-bound: ")
    assert result["bound"] == "input"
    assert 0 < result["au"] < 1
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_no_run_is_one_line_and_exit_code_1(tmp_path):
    done = headrace("report", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    place = tmp_path / "events.jsonl"
    way_out = "give the folder of a run, which holds events.jsonl"
    assert done.stderr == f"headrace: no events of a run at {place}: {way_out}\n"


def test_several_runs_are_compared(run_folder, tmp_path):
    fast = write_run(tmp_path / "fast", num_steps=60, crash_at=None, wait=0.001, compute=0.031)
    done = headrace("report", run_folder, fast)
    assert done.returncode == 0, done.stderr
    sentence, *_, path = done.stdout.splitlines()
    assert sentence.startswith("fast makes ")
    assert path == str(fast / "comparison.html")
    done = headrace("report", run_folder, fast, "-o", tmp_path / "both.html", "--json")
    result = json.loads(done.stdout.splitlines()[-1], parse_constant=pytest.fail)
    assert (result["path"], result["verdict"]) == (str(tmp_path / "both.html"), sentence)
    assert result["runs"] == ["digits", "fast"]
    assert result["table"]["samples_per_sec"][0] < result["table"]["samples_per_sec"][1]


def test_the_same_run_twice_is_bad_usage(run_folder):
    done = headrace("report", run_folder, run_folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"headrace: the runs to compare must differ: {run_folder} is given twice\n"
