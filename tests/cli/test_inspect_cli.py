"""`headrace inspect` and `headrace index`: what they say of good and damaged datasets."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import headrace as hr


def headrace(*args):
    command = [sys.executable, "-m", "headrace.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_json(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def texts(tmp_path):
    samples = ({"__key__": f"k{i}", "txt": f"text {i}", "bin": bytes([255, i])} for i in range(20))
    hr.pack(samples, tmp_path / "texts", shard_size=10_000)
    return tmp_path / "texts"


def test_inspect_says_what_is_there(texts):
    result = headrace("inspect", texts, "--show", 2)
    assert result.returncode == 0
    assert "tar, 20 samples in" in result.stdout
    assert "field txt: bytes" in result.stdout
    assert "bin=2 bytes  txt=text" in result.stdout
    value = last_json(headrace("inspect", texts, "--json"))
    assert {"format", "shards", "samples", "bytes", "fields", "verified", "errors"} <= set(value)
    assert (value["samples"], value["verified"], value["errors"]) == (20, None, [])
    assert value["fields"] == {"bin": {"type": "bytes"}, "txt": {"type": "bytes"}}


def test_inspect_shows_the_fields_that_are_asked_for(texts):
    value = last_json(headrace("inspect", texts, "--show", 1, "--fields", "txt", "--json"))
    assert (value["fields"], set(value["shown"][0])) == ({"txt": {"type": "bytes"}}, {"__key__", "txt"})
    result = headrace("inspect", texts, "--fields", "txt, tx")
    assert (result.returncode, result.stdout) == (2, "")
    assert "has no 'tx', the nearest that it has: 'txt'" in result.stderr


def test_inspect_proves_that_all_is_well(texts):
    result = headrace("inspect", texts, "--verify")
    assert result.returncode == 0
    assert "verified: every byte and checksum is right" in result.stdout
    assert last_json(headrace("inspect", texts, "--verify", "--json"))["verified"] is True


def test_damage_is_listed_in_the_usual_object_and_the_exit_code_is_1(texts):
    shards = sorted(texts.glob("*.tar"))
    data = bytearray(shards[0].read_bytes())
    data[700] ^= 1
    shards[0].write_bytes(data)
    shards[1].unlink()
    result = headrace("inspect", texts, "--verify", "--show", 1, "--json")
    value = last_json(result)
    assert result.returncode == 1
    assert value["verified"] is False
    assert value["samples"] == 20
    assert len(value["errors"]) == 3
    assert any("sample k" in error for error in value["errors"])
    plain = headrace("inspect", texts, "--verify")
    assert plain.returncode == 1
    assert "DAMAGED" in plain.stdout
    assert "is missing" in plain.stdout


def test_what_is_no_dataset_is_one_line(tmp_path):
    result = headrace("inspect", tmp_path, "--json")
    assert result.returncode == 1
    assert last_json(result)["error"]["type"] == "DatasetError"
    assert len(result.stderr.splitlines()) == 1
    assert headrace("inspect", "nosuch://bucket/x").returncode == 2
    assert headrace("inspect", tmp_path, "--show", "-1").returncode == 2


def test_index_adopts_an_ordinary_folder(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    value = last_json(headrace("index", tmp_path, "--json"))
    assert {"target", "format", "shards", "samples", "bytes"} <= set(value)
    assert (value["format"], value["samples"]) == ("tar", 2)
    assert last_json(headrace("inspect", tmp_path, "--verify", "--json"))["verified"] is True


def test_index_takes_a_dtype_and_inspect_shows_tokens(tmp_path):
    np.arange(50, dtype="<u2").tofile(tmp_path / "tokens.bin")
    assert headrace("index", tmp_path, "--dtype", "int7").returncode == 2
    assert headrace("index", tmp_path, "--dtype", "uint16").returncode == 0
    shown = headrace("inspect", tmp_path, "--show", 1).stdout
    assert "field tokens: array of uint16" in shown
    assert "tokens=uint16 (50,) [0, 1, 2, 3, 4, 5, 6, 7] ..." in shown
