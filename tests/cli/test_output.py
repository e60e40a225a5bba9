"""How every verb ends: on odd outputs and names, and on signals, with one line and JSON that is JSON."""

import json
import os
import signal
import subprocess
import sys

import pytest

import headrace as hr
from waiting import DEADLINE_SEC, running, wait_for

COMMAND = [sys.executable, "-m", "headrace.cli.main"]


def headrace(*args, **options):
    return subprocess.run([*COMMAND, *args], capture_output=True, check=False, **options)


@pytest.fixture
def texts(tmp_path):
    hr.pack([{"__key__": "ä/ö", "txt": "ü"}], tmp_path / "texts")
    return tmp_path / "texts"


def test_names_that_are_not_utf8_are_escaped(texts, tmp_path):
    odd = os.fsencode(tmp_path) + b"/odd\xff"
    os.rename(texts, odd)
    for verb in (["inspect", odd], ["pack", odd, odd + b"2"], ["inspect", odd + b"gone"]):
        result = headrace(*verb, "--json")
        value = json.loads(result.stdout)
        assert r"odd\udcff" in value["error"]["message"] if "error" in value else value["target"]
        assert result.returncode == ("error" in value)


def test_json_is_json_and_text_is_printed_whatever_the_encoding(texts):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = json.loads(headrace("inspect", texts, "--show", "1", "--json", env=ascii_only).stdout)["shown"]
    assert shown == [{"__key__": "ä/ö", "txt": "ü"}]
    result = headrace("inspect", texts, "--show", "1", env=ascii_only)
    assert (result.returncode, result.stderr) == (0, b"")
    assert rb"__key__=\xe4/\xf6  txt=\xfc" in result.stdout


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_result_that_cannot_be_printed_is_one_line(texts, more):
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, "inspect", texts, *more], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr.decode() == (
        "headrace: the work is done, but its result cannot be printed to stdout: No space left on device\n"
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_not_matter(texts, tmp_path, closed):
    for verb in (f"pack {texts} {tmp_path}/out", f"inspect {tmp_path}/out --verify"):
        assert subprocess.run(f"{' '.join(COMMAND)} {verb} {closed}", shell=True, check=False).returncode == 0
    assert subprocess.run(f"{' '.join(COMMAND)} inspect nowhere {closed}", shell=True, check=False).returncode == 1


def test_a_reader_that_has_seen_enough_gets_no_complaint(texts):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([*COMMAND, "inspect", texts], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


def test_a_line_keeps_the_spaces_of_names_and_loses_escapes(tmp_path):
    assert b"no dataset at two  spaces: " in headrace("inspect", "two  spaces").stderr
    assert rb"'\x1b[31mred'" in headrace("inspect", "\x1b[31mred").stderr


HELD = """
import os, time
def slow(sample):
    while int(sample["__key__"]) == 100 and not os.path.exists("go"):
        time.sleep(0.01)
    return sample
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_pack_that_is_interrupted_says_so_and_goes_on(tmp_path, number):
    """It is in the middle of a sample then, and may end that one first."""
    (tmp_path / "in").mkdir()
    for i in range(200):
        (tmp_path / "in" / f"{i:03d}.txt").write_text("text")
    (tmp_path / "held.py").write_text(HELD)
    command = [*COMMAND, "pack", "in", "out", "--shard-size", "10kB", "--workers", "1", "--transform", "held.py:slow"]
    command += ["--no-shuffle"]
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running([*command, "--json"], **options) as process:

        def has_shards():
            assert process.poll() is None, process.communicate()
            return len(list(tmp_path.glob("out/shard-*.tar"))) >= 2  # the first is then on record

        wait_for(has_shards, "two shards")
        process.send_signal(number)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 1
    assert err == "headrace: interrupted; run the same again to go on\n"
    assert json.loads(out)["error"]["type"] == "KeyboardInterrupt"
    assert (tmp_path / "out" / "headrace.partial").exists()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert len(hr.open(tmp_path / "out")) == 200


def test_a_transform_file_that_exits_is_bad_usage(texts, tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    result = headrace("pack", texts, tmp_path / "out", "--transform", f"{tmp_path}/script.py:f")
    assert result.returncode == 2
    assert b"script.py cannot be imported: SystemExit: 0" in result.stderr


def test_the_parts_of_a_split_are_named_as_the_target_was(tmp_path):
    hr.pack(({"txt": str(i)} for i in range(40)), tmp_path / "texts")
    for target in (f"file://{tmp_path}/a", f"{tmp_path}/b/"):
        value = json.loads(headrace("pack", tmp_path / "texts", target, "--split", "x=0.5,y=0.5", "--json").stdout)
        assert value["target"] == target
        assert value["splits"]["x"]["target"] == f"{target.rstrip('/')}/x"
        assert len(hr.open(value["splits"]["x"]["target"])) == value["splits"]["x"]["samples"]


def test_names_in_a_dataset_cannot_garble_the_screen(texts):
    path = texts / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'"fields":{"txt"', b'"fields":{"t\\u001b[2Jxt"'))
    assert rb"field 't\x1b[2Jxt': bytes" in headrace("inspect", texts).stdout
