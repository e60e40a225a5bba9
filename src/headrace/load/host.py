"""What this machine, or the container that this process runs in, has to give."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Memory that can be taken without pushing others out: what the kernel says, within the container's limit."""
    available = _available_of(_MEMINFO.read_text())
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    return available if limit is None else min(available, max(0, limit - (used or 0)))


def _available_of(meminfo: str) -> int:
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("Linux from 3.14 on says what memory is available")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no such control group here
        return None
    return int(text) if text.isdigit() else None
