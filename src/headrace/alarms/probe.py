"""What a process and its machine are at, for the rules about them: a look at files of the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.load.host import available_memory_bytes

_PROC = Path("/proc")


def probe(folder: Path) -> dict[str, int | None]:
    """Fields of a probe: free bytes of the folder's disk (None where it cannot be asked), of memory those in use by
    this process and all that it started, and those that the machine has left.
    """
    try:
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
    except OSError:  # the folder was removed, say
        free = None
    pids = family(os.getpid())
    memory = sum(map(anonymous_bytes, pids))
    return {"disk_free_bytes": free, "memory_bytes": memory, "memory_left_bytes": available_memory_bytes()}


def family(pid: int) -> list[int]:
    """A process and all that it started, and these started, as far as they are still there."""
    found = [pid]
    for one in found:
        for children in (_PROC / str(one) / "task").glob("*/children"):
            found += map(int, (_text(children) or "").split())
    return found


def anonymous_bytes(pid: int) -> int:
    """What a process has of memory that no file is behind, in bytes: pages of files that it maps come and go."""
    for line in (_text(_PROC / str(pid) / "status") or "").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # it has just ended, or is another user's
        return None
