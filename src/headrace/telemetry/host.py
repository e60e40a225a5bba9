"""What a machine is busy with: processors, memory, disks, network, and GPUs where NVML is there.

A thread looks every few seconds, at counters that the kernel keeps anyway, and writes a `host` event; no step does
anything for it. Rates are over the time between two looks.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import StorageError

_PROC = Path("/proc")
_SECTOR_BYTES = 512
"""Of /proc/diskstats, whatever the disk's own is."""
_NO_DISKS = ("loop", "ram", "zram", "dm-", "md")
"""What lies on others, whose bytes these are, or in memory."""
_NO_DEVICES = ("veth", "docker", "br-", "virbr", "bond", "team", "cni", "flannel", "cali", "tun", "tap", "wg", "dummy")
"""Interfaces whose bytes go over another one, or stay in the machine."""

Bytes = dict[str, tuple[int, int]]
"""By device: those that came in (or were read), and those that went out."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the machine started. None: the kernel does not say."""

    cpu: int
    """Ticks of all processors."""
    cpu_busy: int
    disks: Bytes | None
    network: Bytes | None


class HostMeter:
    """While the block runs, writes what this machine is busy with."""

    def __init__(self, write: Callable[..., None], every_sec: float = 5.0, proc: Path = _PROC) -> None:
        """`write(event, **fields)` appends an event; it is called by this meter's own thread."""
        self._write, self._every_sec, self._proc = write, every_sec, proc
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-host", daemon=True)

    def __enter__(self) -> HostMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        gpus = _Gpus()
        before, at = counters(self._proc), time.monotonic()
        while not self._over.wait(self._every_sec):
            now, then = time.monotonic(), before
            before = counters(self._proc)
            try:
                self._write("host", **rates(then, before, now - at), **memory(self._proc), **gpus.fields())
            except StorageError:  # a step's own line meets the same, and ends the run with its reason
                return
            at = now


def counters(proc: Path = _PROC) -> Counters:
    """What was counted up to now."""
    words = _lines(proc / "stat")[0].split()
    ticks = [int(word) for word in words[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for disks
    return Counters(sum(ticks), busy, _disks(proc), _network(proc))


def rates(before: Counters, after: Counters, sec: float) -> dict[str, float | None]:
    """What became of the sums in `sec` seconds: `cpu` is the share of all processors that was busy, 0 to 1.

    None: the kernel does not say.
    """
    cpu = after.cpu - before.cpu
    disk_read, disk_written = _passed(before.disks, after.disks, sec)
    received, sent = _passed(before.network, after.network, sec)
    return {
        "cpu": (after.cpu_busy - before.cpu_busy) / cpu if cpu > 0 else None,
        "disk_read_bytes_per_sec": disk_read,
        "disk_written_bytes_per_sec": disk_written,
        "network_received_bytes_per_sec": received,
        "network_sent_bytes_per_sec": sent,
    }


def _passed(before: Bytes | None, after: Bytes | None, sec: float) -> tuple[float | None, float | None]:
    """Bytes/s of all devices that were there both times; what a device counted before it was reset is not known."""
    if before is None or after is None or sec <= 0:
        return None, None
    stayed = [(before[name], after[name]) for name in before.keys() & after.keys()]
    incoming, outgoing = (sum(max(0, now[way] - then[way]) for then, now in stayed) / sec for way in (0, 1))
    return incoming, outgoing


def memory(proc: Path = _PROC) -> dict[str, int]:
    """Bytes of the machine in use, that is not to be had without swapping, and of this process itself."""
    lines = dict(line.split(":", 1) for line in _lines(proc / "meminfo"))
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    resident = int(_lines(proc / "self" / "statm")[0].split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"memory_used_bytes": total - available, "process_bytes": resident}


def _disks(proc: Path) -> Bytes | None:
    """Of whole disks: a partition's bytes are in its disk's, and what lies on others in theirs."""
    if not (proc / "diskstats").exists():
        return None
    found: Bytes = {}
    for words in map(str.split, _lines(proc / "diskstats")):
        if not words[2].startswith(_NO_DISKS):
            found[words[2]] = int(words[5]) * _SECTOR_BYTES, int(words[9]) * _SECTOR_BYTES
    return {name: counted for name, counted in found.items() if _disk_of(name) not in found}


def _disk_of(name: str) -> str | None:
    """The disk that a partition of this name is of: sda of sda1, nvme0n1 of nvme0n1p1; None: it is a disk's name."""
    part = re.fullmatch(r"(.*\d)p\d+|(.*\D)\d+", name)
    return part and (part[1] or part[2])


def _network(proc: Path) -> Bytes | None:
    """Of what connects the machine with others."""
    if not (proc / "net" / "dev").exists():
        return None
    found: Bytes = {}
    for line in _lines(proc / "net" / "dev")[2:]:
        name, _, numbers = line.partition(":")
        name, words = name.strip(), numbers.split()
        is_within_another = name.startswith(_NO_DEVICES) or "." in name  # eth0.7 is a VLAN on eth0
        if name != "lo" and not is_within_another:
            found[name] = int(words[0]), int(words[8])
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


class _Gpus:
    """What NVML says of the machine's GPUs, where its Python module (nvidia-ml-py), a driver and a GPU are."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError:  # no driver, or no GPU
            return
        self._nvml = nvml

    def fields(self) -> dict[str, list[float | None]]:
        """A number a GPU: the share of time in which some kernel ran (no efficiency), watts, bytes in use."""
        if not self._devices:
            return {}
        nvml = self._nvml
        asked: dict[str, Callable[[Any], float]] = {
            "gpu_running": lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
            "gpu_power_watts": lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1e3,
            "gpu_memory_used_bytes": lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used,
        }
        return {name: [self._ask(what, device) for device in self._devices] for name, what in asked.items()}

    def _ask(self, what: Callable[[Any], float], device: Any) -> float | None:
        try:
            return what(device)
        except self._nvml.NVMLError:  # this kind of GPU does not say
            return None
