"""A stream inside PyTorch's own DataLoader: see dataloader_cases.py, whose tests run in a process of their own.

A DataLoader forks its workers. What other tests' libraries have running in this process (threads of servers' clients,
of progress bars) may hold a lock at that moment, which nobody in the worker would ever let go of.
"""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("dataloader_cases.py")


def test_a_stream_in_a_dataloader():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CASES.parents[2])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
