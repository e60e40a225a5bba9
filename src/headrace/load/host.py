"""What this machine, or the container that this process runs in, has to give."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CACHED = ("active_file", "inactive_file")


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory that can be taken without pushing others out: what the kernel says, within the container's limit."""
    available = _numbers(meminfo, unit_bytes=1024)["MemAvailable:"]
    limit = _number(cgroup / "memory.max")
    if limit is None:
        return available
    # A container is charged for the page cache of what it reads, too, which gives way as soon as memory is wanted.
    stat = _numbers(cgroup / "memory.stat")
    used = (_number(cgroup / "memory.current") or 0) - sum(stat.get(name, 0) for name in _CACHED)
    return min(available, max(0, limit - max(0, used)))


def _numbers(path: Path, unit_bytes: int = 1) -> dict[str, int]:
    """Of a file with a name and a number a line."""
    words = [line.split() for line in path.read_text().splitlines()]
    return {name: int(number) * unit_bytes for name, number, *_ in words}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no such control group here
        return None
    return int(text) if text.isdigit() else None
