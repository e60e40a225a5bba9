"""`headrace pack` as a person types it: results, JSON, exit codes, and one line for an error."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import headrace as hr
from waiting import DEADLINE_SEC, running, wait_for


@pytest.fixture
def images(tmp_path):
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(path)
    return tmp_path / "images"


def headrace(*args, cwd=None):
    command = [sys.executable, "-m", "headrace.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def last_json(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_a_folder_is_packed_and_said(images, tmp_path):
    result = headrace("pack", images, tmp_path / "out")
    assert result.returncode == 0
    assert "30 samples in 1 shards" in result.stdout
    assert result.stderr == ""
    assert len(hr.open(tmp_path / "out")) == 30


def test_json_has_the_promised_keys(images, tmp_path):
    result = headrace("pack", images, tmp_path / "out", "--json", "--shard-size", "20kB", "--seed", 3)
    value = last_json(result)
    assert {"target", "format", "shards", "samples", "bytes", "skipped", "seconds", "samples_per_sec"} <= set(value)
    assert (value["samples"], value["skipped"], value["format"]) == (30, 0, "tar")
    assert value["shards"] == len(hr.open(tmp_path / "out").manifest.shards) > 1


def test_a_split_reports_totals_and_parts(images, tmp_path):
    value = last_json(headrace("pack", images, tmp_path / "out", "--split", "train=0.7,test=0.3", "--json"))
    assert value["samples"] == 30 == sum(part["samples"] for part in value["splits"].values())
    assert list(value["splits"]) == ["train", "test"]
    for part in value["splits"].values():
        assert set(part) == {"target", "samples", "shards", "bytes"}
        assert len(hr.open(part["target"])) == part["samples"]


def test_packing_again_is_quick_and_fine(images, tmp_path):
    for _ in range(2):
        assert headrace("pack", images, tmp_path / "out").returncode == 0
    refused = headrace("pack", images, tmp_path / "out", "--no-shuffle")
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert headrace("pack", images, tmp_path / "out", "--no-shuffle", "--overwrite").returncode == 0


def test_a_broken_file_is_one_line_and_may_be_skipped(images, tmp_path):
    (images / "a" / "bad.png").write_bytes(b"x")
    result = headrace("pack", images, tmp_path / "out", "--json")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "bad.png" in result.stderr
    error = last_json(result)["error"]
    assert error["type"] == "SourceError"
    assert "--on-error skip" in error["message"]
    skipped = headrace("pack", images, tmp_path / "out", "--json", "--on-error", "skip")
    assert (skipped.returncode, last_json(skipped)["skipped"]) == (0, 1)


def test_a_transform_from_a_file_that_imports_its_neighbour(images, tmp_path):
    (tmp_path / "neighbour.py").write_text("NOTE = 'hello'\n")
    (tmp_path / "mine.py").write_text(
        "from neighbour import NOTE\ndef add(sample):\n    return {**sample, 'txt': NOTE}\n"
    )
    (tmp_path / "broken.py").write_text("def add(:\n")
    result = headrace("pack", images, tmp_path / "out", "--transform", tmp_path / "mine.py:add")
    assert result.returncode == 0, result.stderr
    assert bytes(hr.open(tmp_path / "out")[0]["txt"]) == b"hello"
    for name, message in {
        "mine.py:nothing": "has no function 'nothing'; it has add",
        "broken.py:add": "has a syntax error at line 1",
        "gone.py:add": "there is no file",
        "mine": "FILE.py:function",
        "no.such.module:add": "cannot be imported",
    }.items():
        refused = headrace("pack", images, tmp_path / "out2", "--transform", name, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--format", "zip"), "format must be one of tar, parquet, tfrecord, mds, tokens: got 'zip'"),
        (("--shard-size", "big"), "shard_size must be"),
        (("--split", "train"), "--split must be"),
        (("--split", "a=0.5,a=0.5"), "--split must be"),
        (("--split", "a=0.5,b=0.1"), "must add up to 1"),
        (("--on-error", "ignore"), "--on-error must be raise or skip"),
        (("--workers", "0"), "workers must be at least 1"),
        (("--workers", "many"), "--workers"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(images, tmp_path, args, message):
    result = headrace("pack", images, tmp_path / "out", *args, "--json")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert message in last_json(result)["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fill", "a=1", "--fill", "a=2"], "--fill gives the field 'a' two values"),
        (["--dedup", "--dedup-by", "a"], "give one of them"),
        (["--dedup-by", ""], "dedup must name fields of the samples: got ['']"),
        (["--require", "a,"], "require must name fields of the samples"),
    ],
)
def test_options_that_contradict_or_say_nothing_are_bad_usage(images, tmp_path, options, said):
    done = headrace("pack", images, tmp_path / "out", *options)
    assert (done.returncode, said in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_missing_arguments_are_bad_usage():
    assert headrace("pack").returncode == 2
    assert headrace("no-such-verb").returncode == 2


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_traceback_is_shown_only_with_debug(tmp_path, place):
    plain = headrace("pack", tmp_path / "nowhere", tmp_path / "out")
    assert (plain.returncode, len(plain.stderr.splitlines())) == (1, 1)
    verb = ["pack", tmp_path / "nowhere", tmp_path / "out"]
    debug = headrace(*(["--debug", *verb] if place == "before" else [*verb, "--debug"]))
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_help_and_version_need_no_torch_and_no_data_libraries():
    heavy = ("torch", "pyarrow", "numpy", "cv2")
    code = (
        "import sys; from headrace.cli.main import app; from headrace.cli.output import run; "
        f"code = run(app, sys.argv[1:]); print([name for name in {heavy} if name in sys.modules]); sys.exit(code)"
    )
    for args in (["--help"], ["--version"], ["pack", "--help"], []):
        result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]"
    assert headrace("--version").stdout == f"headrace {hr.__version__}\n"


HELD = """
import os, time
def slow(sample):
    open("begun", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return sample
"""


def test_an_interrupt_is_one_line_and_leaves_nothing(images, tmp_path):
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, "-m", "headrace.cli.main", "pack", images, tmp_path / "out", "--workers", "1"]
    command += ["--transform", tmp_path / "held.py:slow"]
    with running(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:

        def has_begun():
            assert process.poll() is None, process.communicate()
            return (tmp_path / "begun").exists()

        wait_for(has_begun, "the first sample")
        assert (tmp_path / "out" / "headrace.partial").exists()
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()
        _, said = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 1
    assert said == "headrace: interrupted; run the same again to go on\n"
    assert not (tmp_path / "out").exists()
