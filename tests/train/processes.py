"""Starts the ranks of a run as a launcher would, and always ends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start_ranks(world_size, arguments, **environment):
    """Processes of `python ARGUMENTS`, one a rank, that find each other on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def end_ranks(processes, timeout=120):
    """Wait for all; (exit code, stdout, stderr) of each."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_ranks(world_size, arguments, **environment):
    """Start ranks and wait for them; all must succeed."""
    ended = end_ranks(start_ranks(world_size, arguments, **environment))
    assert [code for code, _, _ in ended] == [0] * world_size, "\n".join(err for _, _, err in ended)
    return ended
