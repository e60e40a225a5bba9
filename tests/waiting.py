"""How tests wait: for a condition, never for a span of time, so that a busy machine makes them slower and no other.

A deadline costs time only where a test fails, so it is far beyond what any machine needs.
"""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

DEADLINE_SEC = 120


def wait_for(condition, what, deadline_sec=DEADLINE_SEC):
    """The first true answer of `condition()`; AssertionError, which says `what` did not come, after the deadline."""
    deadline = time.monotonic() + deadline_sec
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {deadline_sec} s for {what}"
        time.sleep(0.02)
    return answer


@contextmanager
def running(command, **options):
    """A process that is gone after the block, however the block ends; its pipes are closed then."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def family(pid):
    """A process and all its descendants."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(stat)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def alive(pids):
    """Those of some processes that have not ended."""
    return [pid for pid in pids if (_fields(Path(f"/proc/{pid}/stat")) or "Z")[0] != "Z"]


def wait_gone(pids):
    """Wait for the end of processes that are not ours to reap."""
    wait_for(lambda: not alive(pids), f"the end of the processes {pids}")


def wait_own_gone(before):
    """Wait for the end of this process's descendants but for those in `before`, such as servers of other tests."""
    wait_for(lambda: set(family(os.getpid())) <= set(before), "the end of every process that was started")


def _fields(stat):
    """State, parent and so on of a process; None once it is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
