"""What a person says of the cache: where it is, and how much it may hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import OptionError
from headrace.storage.cache.block import BLOCK_BYTES, stored_bytes
from headrace.storage.place import local_path
from headrace.storage.refusal import storage_refusals
from headrace.storage.size import parse_size

RAM = "ram"
DISK_SHARE, RAM_SHARE = 2, 4
"""Where no size is given: half of the disk, a quarter of the memory."""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """A cache as described; holds nothing open. Equal options are one cache. Can be pickled."""

    folder: str
    """"ram", or the absolute path of a local folder."""
    max_bytes: int
    """What it may hold, in bytes, headers and rounding included."""

    def __post_init__(self) -> None:
        least = stored_bytes(BLOCK_BYTES)
        if self.max_bytes < least:
            raise OptionError(f"cache_size must be at least one block, {least:,} bytes: got {self.max_bytes:,}")
        if self.folder != RAM and not Path(self.folder).is_absolute():
            raise OptionError(f'a cache must be "ram" or an absolute path: got {self.folder!r}')


def cache_options(cache: str | os.PathLike[str] | None, cache_size: int | str | None = None) -> CacheOptions | None:
    """The cache that `cache=` and `cache_size=` describe; None for none.

    `cache` is a local folder or `"ram"`; a folder of that name is `./ram`. `cache_size` is bytes, or text such as
    `200GiB`; by default half of the disk that the folder is on, or a quarter of the machine's memory.

    Raises OptionError for a place that is not local, a size below one block (about 2 MiB) or beyond the memory, and a
    size without a cache.
    """
    if cache is None:
        if cache_size is not None:
            raise OptionError('cache_size goes with cache: say where too, cache="FOLDER" or cache="ram"')
        return None
    if cache == RAM:
        return CacheOptions(RAM, ram_quota(cache_size, "cache_size"))
    path, num_bytes = folder_quota(cache, cache_size, "cache_size")
    return CacheOptions(str(path), num_bytes)


def ram_quota(size: int | str | None, option: str) -> int:
    """Bytes that a cache in memory may hold, by what `option` says: a quarter of the memory, if nothing.

    Raises OptionError for more than the memory.
    """
    memory = memory_bytes()
    if size is None:
        return memory // RAM_SHARE
    num_bytes = parse_size(size, option)
    if num_bytes > memory:
        raise OptionError(f"{option} of a cache in RAM must fit the memory of {memory:,} bytes: got {num_bytes:,}")
    return num_bytes


def folder_quota(folder: str | os.PathLike[str], size: int | str | None, option: str) -> tuple[Path, int]:
    """The absolute path of a cache's folder and the bytes that it may hold: half of its disk, if `option` says nothing.

    Raises OptionError for a place that is not local.
    """
    path = local_path(folder)
    with storage_refusals("use the cache", path):
        path = path.absolute()
        return path, _disk_bytes(path) // DISK_SHARE if size is None else parse_size(size, option)


def memory_bytes() -> int:
    """The memory of the machine, or of the container if that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:  # no such control group here
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory


def _disk_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    disk = os.statvfs(path)
    return disk.f_blocks * disk.f_frsize
