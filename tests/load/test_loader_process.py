"""The loader process: started from any kind of script, and gone when its trainer is (law 9)."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from waiting import DEADLINE_SEC, alive, family, running, wait_for, wait_gone

SCRIPT = """
import sys
import headrace as hr
factor = 3
stream = hr.Stream(hr.open(sys.argv[1]), epochs=None).map(lambda s: {"x": len(s["bin"]) * factor})
loader = hr.Loader(stream, batch_size=4, processes=int(sys.argv[2]))
for batch in loader:
    break
print(loader._client.pid, int(batch["x"].sum()), flush=True)
END
"""
ENDS = {
    "normal": "",
    "closed": "loader.close()",
    "exception": "raise RuntimeError('the user had one')",
    "sys.exit": "sys.exit(3)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("process") / "packed"
    hr.pack(({"bin": bytes(i)} for i in range(40)), target)
    return target


def wait_shared_memory_as(before):
    """Wait until all that was put into /dev/shm since is gone. What another program uses for a while is no leak."""
    wait_for(lambda: set(os.listdir("/dev/shm")) <= before, "an empty /dev/shm")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_however_the_trainer_ends(folder, tmp_path, end, processes):
    """Law 9: no process, shared memory or temporary file stays."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("END", "input()\n" + ENDS[end]))
    before, temporary = set(os.listdir("/dev/shm")), tmp_path / "temporary"
    temporary.mkdir()
    with running(
        [sys.executable, script, folder, str(processes)],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        loader_pid = int(run.stdout.readline().split()[0])
        num_started = 1 if processes == 1 else 3  # of two workers one may come after the first batch
        wait_for(lambda: len(family(run.pid)) == 1 + num_started, "every process")
        pids = family(run.pid)
        assert loader_pid in pids
        _, err = run.communicate("\n", timeout=DEADLINE_SEC)
    wait_gone(pids)
    wait_shared_memory_as(before)
    assert list(temporary.iterdir()) == []
    assert ("the user had one" in err) == (end == "exception"), err
    assert err == "" or end == "exception"


@settings(max_examples=6)
@given(
    batches=st.integers(0, 30),
    processes=st.sampled_from([1, 3]),
    end=st.sampled_from([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]),
    delay_sec=st.floats(0, 0.4),
)
def test_nothing_is_left_whenever_the_trainer_is_killed(folder, tmp_path, batches, processes, end, delay_sec):
    """Law 9, over moments: while the loader starts, while it works, while batches are held."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, headrace as hr\n"
        "loader = hr.Loader(hr.Stream(hr.open(sys.argv[1]), epochs=None), batch_size=4, processes=int(sys.argv[2]))\n"
        "print('ready', flush=True)\n"
        f"held = [batch for _, batch in zip(range({batches}), loader)]\n"
        "for batch in loader:\n    pass\n"
    )
    before, temporary = set(os.listdir("/dev/shm")), tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    command, environment = [sys.executable, script, folder, str(processes)], os.environ | {"TMPDIR": str(temporary)}
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as run:
        assert run.stdout.readline() == b"ready\n"
        time.sleep(delay_sec)  # to hit different moments; every moment must do
        pids = family(run.pid)
        run.send_signal(end)
        run.communicate(timeout=DEADLINE_SEC)
    wait_gone(pids)
    wait_shared_memory_as(before)
    assert list(temporary.iterdir()) == []


@settings(max_examples=6)
@given(processes=st.sampled_from([1, 3]), delay_sec=st.floats(0, 1.5))
def test_nothing_is_left_whenever_a_loader_is_closed(folder, monkeypatch, processes, delay_sec):
    """Law 9, while the loader process starts, and while it starts its own: they are told by what they inherit."""
    monkeypatch.setenv("TEST_FAMILY", mark := uuid.uuid4().hex)

    def left():
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and mark in environment_of(pid)]

    loader = hr.Loader(hr.Stream(hr.open(folder), epochs=None), batch_size=4, processes=processes)
    loader._client = loader._start_client()
    loader._client.start(0, 0)
    wait_for(left, "the loader process")
    time.sleep(delay_sec)  # to hit different moments; every moment must do
    loader.close()
    wait_for(lambda: not left(), "the end of every process")


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("how", ["script without a main guard", "standard input", "-c"])
def test_any_kind_of_script_works(folder, tmp_path, how):
    code = SCRIPT.replace("END", "")
    (tmp_path / "train.py").write_text(code)
    arguments = {"script without a main guard": ["train.py"], "standard input": ["-"], "-c": ["-c", code]}[how]
    done = subprocess.run(
        [sys.executable, *arguments, folder, "1"],
        input=code if how == "standard input" else "",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=DEADLINE_SEC,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_functions_of_modules_beside_the_script_are_found(folder, tmp_path):
    (tmp_path / "helpers.py").write_text("def size(sample):\n    return {'x': len(sample['bin'])}\n")
    (tmp_path / "train.py").write_text(
        "import sys, helpers\nimport headrace as hr\n"
        "loader = hr.Loader(hr.Stream(hr.open(sys.argv[1])).map(helpers.size), batch_size=40)\n"
        "print(sorted(next(iter(loader))['x'].tolist()) == list(range(40)))\n"
    )
    command = [sys.executable, tmp_path / "train.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=DEADLINE_SEC)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_file_in_the_working_directory_takes_no_place_of_python_s(folder, tmp_path):
    """Law 8: what lies where one happens to be is not run."""
    (tmp_path / "here").mkdir()
    for name in ("json", "selectors", "numpy"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('this was run')\n")
    (tmp_path / "train.py").write_text(SCRIPT.replace("END", ""))
    command = [sys.executable, tmp_path / "train.py", folder, "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path / "here", stdin=subprocess.DEVNULL, timeout=DEADLINE_SEC
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_the_trainer_forked_does_not_keep_the_loader_alive(folder, tmp_path):
    """It inherits the pipes; the loader notices that its parent is gone all the same."""
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.replace(
            "END",
            "import os, signal, time\n"
            "forked = os.fork()\n"
            "if forked == 0:\n    time.sleep(600)\n    os._exit(0)\n"
            "print(forked, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    with open(tmp_path / "out", "w+") as out:
        subprocess.run([sys.executable, script, folder, "1"], stdout=out, stdin=subprocess.DEVNULL, check=False)
    first, second = (tmp_path / "out").read_text().splitlines()
    loader, forked = int(first.split()[0]), int(second)
    try:
        wait_gone([loader])
        assert alive([forked])
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_terminal_interrupt_reaches_the_trainer_only(folder, tmp_path):
    """Ctrl-C goes to the terminal's process group, which the loader process is not in."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("END", "input()"))
    with running(
        [sys.executable, script, folder, "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        pid = int(run.stdout.readline().split()[0])
        assert os.getpgid(pid) != os.getpgid(run.pid)
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=DEADLINE_SEC)
    assert "KeyboardInterrupt" in err
    assert "headrace" not in err
    wait_gone([pid])
