"""What the machine was busy with while the run went on: processors, memory, disks, network, GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.report import formatting as fmt
from headrace.report.runlog import Event


def _per_sec(value: float) -> str:
    return f"{fmt.num_bytes(value)}/s"


_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cpu", "processors busy, share of all", fmt.percent),
    ("memory_used_bytes", "memory in use", fmt.num_bytes),
    ("process_bytes", "memory of rank 0's own process", fmt.num_bytes),
    ("disk_read_bytes_per_sec", "read from disks", _per_sec),
    ("disk_written_bytes_per_sec", "written to disks", _per_sec),
    ("network_received_bytes_per_sec", "received from the network", _per_sec),
    ("network_sent_bytes_per_sec", "sent to the network", _per_sec),
    ("gpu_running", "GPUs: time in which some kernel ran (no efficiency)", fmt.percent),
    ("gpu_power_watts", "GPUs: power, each", lambda value: f"{fmt.number(value, 3)} W"),
    ("gpu_memory_used_bytes", "GPUs: memory in use, each", fmt.num_bytes),
)


def host_table(hosts: Sequence[Event]) -> dict[str, dict[str, float]]:
    """Mean and largest of each quantity over the readings, by its name in `host` events; of GPUs over all of them."""
    found = {}
    for name, _, _ in _SHOWN:
        values = _values(hosts, name)
        if values.size:
            found[name] = {"mean": float(values.mean()), "largest": float(values.max())}
    return found


def body(hosts: Sequence[Event]) -> str:
    """The quantities as rows."""
    found = host_table(hosts)
    rows = "".join(
        f"<tr><th>{escape(title)}</th><td>{show(found[name]['mean'])}</td><td>{show(found[name]['largest'])}</td></tr>"
        for name, title, show in _SHOWN
        if name in found
    )
    return (
        '<div class="card"><div class="scroll"><table><thead><tr><th>quantity</th><th>mean</th><th>largest</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        f'<p class="note">Of rank 0\'s machine, with all that others do on it: {fmt.count(len(hosts))} looks.</p></div>'
    )


def _values(hosts: Sequence[Event], name: str) -> NDArray[np.float64]:
    found: list[float] = []
    for event in hosts:
        value: Any = event.get(name)
        found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)]
    return np.array(found, np.float64)
