"""Starts the ranks of a run as a launcher would, and always ends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from waiting import DEADLINE_SEC, running

HERE = Path(__file__).parent


@contextmanager
def started_ranks(world_size, arguments, **environment):
    """Processes of `python ARGUMENTS`, one a rank, that find each other on loopback. They are gone after the block."""
    with socket.socket() as port, ExitStack() as stack:
        # Kept until the end: nobody else is given the port, and with this option rank 0 may listen there all the same.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", 0))
        env = {
            **os.environ,
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port.getsockname()[1]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            **environment,
        }
        yield [
            stack.enter_context(
                running(
                    [sys.executable, *map(str, arguments)],
                    env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(world_size)
        ]


def ended(processes):
    """Wait for all; (exit code, stdout, stderr) of each."""
    outputs = [process.communicate(timeout=2 * DEADLINE_SEC) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_ranks(world_size, arguments, **environment):
    """Start ranks and wait for them; all must succeed."""
    with started_ranks(world_size, arguments, **environment) as processes:
        found = ended(processes)
    assert [code for code, _, _ in found] == [0] * world_size, "\n".join(err for _, _, err in found)
    return found
