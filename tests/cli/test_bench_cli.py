"""`headrace bench`: its tables, its JSON, its picture, and one line for what cannot work."""

import io
import json
import subprocess
import sys

import pytest
from PIL import Image

import headrace as hr

CONTRACT = {
    *("samples_per_sec", "mb_per_sec", "first_batch_sec", "ceiling", "share_of_ceiling", "au", "stages", "verdict"),
}
PAGE = {
    *("target", "format", "samples", "batch_size", "threads", "cores", "cold", "low", "high", "bound", "by_threads"),
    *("remedies", "unknown", "seconds", "plot"),
}
STREAMS = """
import time
import headrace as hr

def waits(sample):
    time.sleep(0.02)
    return sample

def stream(dataset):
    return hr.Stream(dataset, seed=1).decode().map(waits)

def fails(dataset):
    return dataset.nothing

def other(dataset):
    return 3
"""


def headrace(*args):
    command = [sys.executable, "-m", "headrace.cli.main", "bench", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    hr.pack(({"txt": f"text {i}", "cls": i % 3} for i in range(300)), folder / "texts")
    (folder / "streams.py").write_text(STREAMS)
    return folder


def test_the_json_has_what_the_page_promises(texts, tmp_path):
    picture = tmp_path / "threads.png"
    arguments = ("--batch-size", 8, "--seconds", 2, "--threads", 2, "--step-sec", 0.001, "--plot", picture, "--json")
    result = headrace(texts / "texts", "--stream", texts / "streams.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    value = json.loads(result.stdout.splitlines()[-1])
    assert value.keys() == CONTRACT | PAGE
    assert value["bound"] == "augment"
    assert value["verdict"].startswith("Bound by augment")
    assert value["ceiling"] == value["stages"]["augment"]["samples_per_sec"]
    assert value["share_of_ceiling"] == pytest.approx(value["samples_per_sec"] / value["ceiling"])
    assert 0 < value["au"] < 1
    assert list(value["stages"]) == ["storage", "verify", "decode", "augment", "hand-off"]
    for rate in [*value["stages"].values(), *value["by_threads"].values()]:
        assert {"samples_per_sec", "low", "high", "mb_per_sec", "repeats"} <= rate.keys()
        assert len(rate["repeats"]) == 3
    remedy = {"name", "how", "predicted_samples_per_sec", "predicted_gain", "tried", "why_not"}
    assert all(one.keys() == remedy for one in value["remedies"])
    assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"
    assert value["plot"] == str(picture)


def test_the_tables_are_readable(texts):
    result = headrace(texts / "texts", "--batch-size", 8, "--seconds", 1)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{texts / 'texts'}: tar, 300 samples, batches of 8, ")
    assert "read from wherever the data is" in lines[1]
    assert sum("< bounds" in line for line in lines) == 1
    assert lines[-1].startswith("Bound by ")
    assert max(map(len, lines[:-1])) <= 110


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch-size", 0], 2, "batch_size must be at least 1: got 0"),
        (["--batch-size", 301], 2, "got 300 samples for batches of 301"),
        (["--threads", 0], 2, "threads must be at least 1: got 0"),
        (["--seconds", 0], 2, "seconds must be a number of at least 1: got 0"),
        (["--step-sec", -1], 2, "step_sec must be a number of seconds, at least 0"),
        (["--plot", "threads.svg"], 2, "--plot names a .png file: got 'threads.svg'"),
        (["--plot", "nowhere/threads.png"], 2, "--plot writes into a folder that is there: 'nowhere' is none"),
        (["--stream", "streams.py:other"], 1, "must return a headrace.Stream of the dataset that it is given: got int"),
        (["--stream", "streams.py:fails"], 1, "streams.py:fails(dataset) failed: AttributeError: "),
        (["--stream", "streams.py:gone"], 1, "has no function 'gone': it has waits, stream, fails, other"),
    ],
)
def test_what_cannot_work_is_one_line(texts, arguments, code, message):
    words = [str(texts / word) if str(word).startswith("streams.py") else word for word in arguments]
    result = headrace(texts / "texts", *words)
    assert result.returncode == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_what_is_no_dataset_is_one_line(tmp_path):
    result = headrace(tmp_path, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[-1])["error"]["type"] == "DatasetError"
