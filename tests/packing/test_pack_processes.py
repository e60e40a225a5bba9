"""Transforms in worker processes: any function works, a dead one is named, and nothing outlives the pack."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import headrace as hr
from headrace.errors import OptionError, TransformError
from waiting import DEADLINE_SEC, alive, family, running, wait_for, wait_gone, wait_own_gone

SAMPLES = [{"__key__": f"k{i:03d}", "txt": f"text {i}"} for i in range(200)]


def texts(url):
    return {sample["__key__"]: bytes(sample["txt"]).decode() for sample in hr.open(url)}


def test_as_many_processes_as_workers_do_the_work(tmp_path):
    """Each sample waits until both workers have begun one, so one alone would wait for ever."""

    def transform(sample):
        (tmp_path / f"here-{os.getpid()}").touch()
        wait_for(lambda: len(list(tmp_path.glob("here-*"))) >= 2, "the second worker")
        return {"txt": str(os.getpid())}

    hr.pack(SAMPLES, tmp_path / "out", transform=transform, workers=2)
    pids = set(texts(tmp_path / "out").values())
    assert len(pids) == 2
    assert str(os.getpid()) not in pids
    wait_gone([int(pid) for pid in pids])


SCRIPT = """
import sys
import headrace as hr

class Word:
    def __init__(self, text):
        self.text = text

suffix = "!"
hr.pack([{"__key__": f"k{i}", "word": Word(f"w{i}")} for i in range(50)], sys.argv[1],
        transform=lambda sample: {"txt": sample["word"].text + suffix})
"""


def test_a_script_without_a_main_guard_works(tmp_path):
    """Its classes and closures travel along, and it is not run a second time."""
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, tmp_path / "script.py", tmp_path / "out"], check=True, timeout=DEADLINE_SEC)
    assert texts(tmp_path / "out") == {f"k{i}": f"w{i}!" for i in range(50)}


def test_a_function_of_a_file_finds_its_neighbours(tmp_path):
    """As `headrace pack --transform FILE.py:function` gives it."""
    (tmp_path / "neighbour.py").write_text("def shout(text): return text.upper()\n")
    (tmp_path / "mine.py").write_text(
        "import neighbour\n\ndef own(text): return text + '?'\n\n"
        "def transform(sample): return {'txt': own(neighbour.shout(sample['txt'].decode()))}\n"
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("hello")
    command = ["-m", "headrace.cli.main", "pack", "in", "out", "--transform", "mine.py:transform"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SEC
    )
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "out") == {"a": "HELLO?"}


def test_a_worker_that_dies_once_is_replaced(tmp_path, content):
    def transform(sample):
        if sample["__key__"] == "k100" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sample

    hr.pack(SAMPLES, tmp_path / "out", transform=transform)
    assert (tmp_path / "died").exists()
    hr.pack(SAMPLES, tmp_path / "plain")
    shards = {name: data for name, data in content(tmp_path / "out").items() if "shard" in name}
    assert shards == {name: data for name, data in content(tmp_path / "plain").items() if "shard" in name}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_the_sample_that_workers_die_of_is_named(tmp_path, on_error):
    def transform(sample):
        if sample["__key__"] == "k100":
            os._exit(3)
        return sample

    before = family(os.getpid())
    with pytest.raises(
        TransformError, match=r"worker processes ended \(exit code 3, then exit code 3\) over sample k100"
    ):
        hr.pack(SAMPLES, tmp_path / "out", transform=transform, on_error=on_error)
    wait_own_gone(before)


def test_an_error_leaves_no_process_and_shows_where_it_came_from(tmp_path):
    def transform(sample):
        if sample["__key__"] == "k100":
            raise ValueError("no good")
        return sample

    before = family(os.getpid())
    with pytest.raises(TransformError, match="the transform failed on sample k100: ValueError: no good") as caught:
        hr.pack(SAMPLES, tmp_path / "out", transform=transform)
    assert any('raise ValueError("no good")' in note or "in transform" in note for note in caught.value.__notes__)
    wait_own_gone(before)


def test_what_cannot_be_sent_is_refused_before_any_work(tmp_path):
    file = (tmp_path / "file").open("w")
    with file, pytest.raises(OptionError, match="the transform cannot be sent to worker processes"):
        hr.pack(SAMPLES, tmp_path / "out", transform=lambda sample: {"txt": file.name})
    assert not (tmp_path / "out").exists()


def test_a_module_that_fails_in_a_worker_is_said(tmp_path, monkeypatch):
    """It can be imported here, but not there."""
    (tmp_path / "fickle.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}: raise RuntimeError('not here')\n"
        "def transform(sample): return sample\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fickle

    with pytest.raises(TransformError, match="a worker process cannot load the transform: RuntimeError: not here"):
        hr.pack(SAMPLES, tmp_path / "out", transform=fickle.transform)


SLOW = """
import sys, time
import headrace as hr

def transform(sample):
    time.sleep(600)

hr.pack([{"txt": str(i)} for i in range(100)], sys.argv[1], transform=transform, workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_pack_however_it_ends(tmp_path, how):
    with running([sys.executable, "-c", SLOW, tmp_path / "out"], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: len(family(process.pid)) == 3, "two workers")
        everyone = family(process.pid)
        process.send_signal(how)
        process.wait(DEADLINE_SEC)
        wait_gone(everyone)
    assert not alive(everyone)
    if how == signal.SIGINT:
        assert not (tmp_path / "out").exists()


def test_a_transform_that_prints_or_warns_does_no_harm(tmp_path):
    code = textwrap.dedent(
        """
        import sys, warnings
        import headrace as hr

        def transform(sample):
            print("hello")
            warnings.warn("look")
            return sample

        hr.pack([{"txt": str(i)} for i in range(10)], sys.argv[1], transform=transform, workers=1)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert done.stdout.count("hello") == 10
    assert len(hr.open(tmp_path / "out")) == 10
