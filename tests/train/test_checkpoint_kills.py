"""SIGKILL of all ranks while they save: the newest checkpoint is whole, and the run goes on from it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import HERE

from waiting import running


@pytest.mark.parametrize("way", ["sync", "async"])
def test_whenever_it_is_killed_a_run_goes_on_from_the_newest_checkpoint(tmp_path, way):
    """A resume reads every byte of it and compares its checksum. At most the save that was cut off is lost."""
    command = [sys.executable, HERE / "killed_runs.py", tmp_path, way, "5", "1"]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with running(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    trials = [[int(word) for word in line.split()] for line in out.splitlines()]
    assert len(trials) == 5
    for saving, newest, resumed in trials:
        assert resumed == newest
        assert newest >= saving - 1
