"""What gloo's threads do after a collective is over.

They let go of its tensors, for which they may need the interpreter's lock. A thread that waits for the lock when the
interpreter ends is ended by it, and takes the process along (`terminate called without an active exception`); and
destroying a group may hold the lock and wait for the threads. Neither can happen once they are asleep.
"""

from __future__ import annotations

import time
from pathlib import Path

_LOOK_SEC = 0.005
_LOOKS_ASLEEP = 3
_LONGEST_SEC = 2.0
_TASKS = Path("/proc/self/task")


def settle() -> None:
    """Wait until gloo's threads are asleep: that is, have let go of what they worked on. At most 2 seconds.

    Each look comes after a pause without the interpreter's lock, in which a thread that waits for it becomes runnable.
    Where the system does not show its threads, a fixed moment has to do.
    """
    if not _TASKS.exists():
        time.sleep(_LOOK_SEC * 10)
        return
    deadline, asleep = time.monotonic() + _LONGEST_SEC, 0
    while asleep < _LOOKS_ASLEEP and time.monotonic() < deadline:
        time.sleep(_LOOK_SEC)
        asleep = asleep + 1 if _all_asleep() else 0


def _all_asleep() -> bool:
    return all(state.startswith(" S") for name, state in map(_thread, _TASKS.iterdir()) if name == "pt_gloo_runloop")


def _thread(task: Path) -> tuple[str, str]:
    """Its name and what follows it: the state, in one letter."""
    try:
        line = (task / "stat").read_text()
    except OSError:  # it has just ended
        return "", ""
    name, _, rest = line.partition("(")[2].rpartition(")")
    return name, rest
