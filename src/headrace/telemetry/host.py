"""What a machine is busy with: processors, memory, disks, network, and GPUs where NVML is there.

A thread looks every few seconds, at counters that the kernel keeps anyway, and writes a `host` event; no step does
anything for it. Rates are over the time between two looks.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import StorageError

_PROC = Path("/proc")
_SECTOR_BYTES = 512
"""Of /proc/diskstats, whatever the disk's own is."""
_PARTITION_KINDS = ("loop", "ram", "zram", "dm-", "md")

Counters = dict[str, float]


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
    """Sums since the machine started: processor seconds (of all, and busy), and bytes of disks and network."""
    found: Counters = {}
    words = _lines(proc / "stat")[0].split()
    ticks = [int(word) for word in words[1:9]]
    found["cpu"] = sum(ticks)
    found["cpu_busy"] = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for disks
    found |= _disks(proc)
    found |= _network(proc)
    return found


def rates(before: Counters, after: Counters, sec: float) -> dict[str, float | None]:
    """What became of the sums in `sec` seconds: `cpu` is the share of all processors that was busy, 0 to 1.

    None: the kernel does not say.
    """
    passed = {name: after[name] - before.get(name, 0.0) for name in after}
    found: dict[str, float | None] = {"cpu": passed["cpu_busy"] / passed["cpu"] if passed["cpu"] > 0 else None}
    for name in ("disk_read", "disk_written", "network_received", "network_sent"):
        found[f"{name}_bytes_per_sec"] = passed[name] / sec if sec > 0 and name in passed else None
    return found


def memory(proc: Path = _PROC) -> dict[str, int]:
    """Bytes of the machine in use, that is not to be had without swapping, and of this process itself."""
    lines = dict(line.split(":", 1) for line in _lines(proc / "meminfo"))
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    resident = int(_lines(proc / "self" / "statm")[0].split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"memory_used_bytes": total - available, "process_bytes": resident}


def _disks(proc: Path) -> Counters:
    """Of whole disks: a partition's bytes are in its disk's, and what lies on others in theirs."""
    if not (proc / "diskstats").exists():
        return {}
    found = {"disk_read": 0.0, "disk_written": 0.0}
    names: list[str] = []
    for line in _lines(proc / "diskstats"):
        words = line.split()
        name = words[2]
        if name.startswith(_PARTITION_KINDS) or any(name.startswith(disk) for disk in names):
            continue
        names.append(name)
        found["disk_read"] += int(words[5]) * _SECTOR_BYTES
        found["disk_written"] += int(words[9]) * _SECTOR_BYTES
    return found


def _network(proc: Path) -> Counters:
    """Of all interfaces but loopback."""
    if not (proc / "net" / "dev").exists():
        return {}
    found = {"network_received": 0.0, "network_sent": 0.0}
    for line in _lines(proc / "net" / "dev")[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            words = numbers.split()
            found["network_received"] += int(words[0])
            found["network_sent"] += int(words[8])
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
