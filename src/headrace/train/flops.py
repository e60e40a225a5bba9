"""How many floating-point operations a sample takes, counted once by PyTorch, and the rates that devices reach at most.

PyTorch's counter looks at the operations of a first step's passes as they come; the optimizer's are not the model's.
Those that it cannot see as they are written (compiled ones, layers cut by a plan, stages), and those that are done
twice to save memory, are not counted: then nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from headrace.train.options import Options
from headrace.train.parallel import Mesh

PEAK_FLOPS = {
    "A100": {"bf16": 312e12, "fp16": 312e12},  # nvidia.com/en-us/data-center/a100
    "H100 NVL": {"bf16": 835e12, "fp16": 835e12},  # nvidia.com/en-us/data-center/h100: half of what is said with
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12},  # sparsity, as for all below
    "H100": {"bf16": 989e12, "fp16": 989e12},
    "H200 NVL": {"bf16": 835e12, "fp16": 835e12},
    "H200": {"bf16": 989e12, "fp16": 989e12},  # nvidia.com/en-us/data-center/h200
    "B200": {"bf16": 2250e12, "fp16": 2250e12},  # nvidia.com/en-us/data-center/hgx
}
"""Dense operations a second with sums in fp32, by what a device's name contains (the first that fits) and precision.

fp32 is missing: whether TF32 is used changes it by eight, and is the process's setting.
"""


def peak_flops(precision: str, device: torch.device) -> float | None:
    """Of a device, operations a second; None where it is not known, never a guess."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if "MIG" in name:  # a slice of a device
        return None
    rates = next((rates for part, rates in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)), {})
    return rates.get(precision)


def may_count(options: Options, mesh: Mesh) -> bool:
    """Whether what a first step does is what the model asks for, and can be seen."""
    whole = mesh.tp == 1 and mesh.pp == 1
    plain = options.engine is None and not options.compile and options.activation_checkpointing is None
    return whole and plain and options.precision != "float8"


class FlopCount:
    """Counts one step of this rank, and knows of all others from then on."""

    def __init__(self, counts: bool, peak: float | None, devices: int) -> None:
        """`peak`: operations a second of each of the `devices`; None: not known."""
        self._counts, self._peak, self._devices = counts, peak, devices
        self.per_sample: float | None = None
        """Operations, forward and backward; None: not known."""

    def around(self, rows: int) -> AbstractContextManager[None]:
        """A step's passes over `rows` samples on this rank are made inside; the first that have any are counted."""
        return self._counted(rows) if self._counts and rows else nullcontext()

    def fields(self, samples: int, sec: float | None) -> dict[str, float]:
        """What a step's record says: `flops` of all ranks, and `mfu` where the peak rate is known."""
        if self.per_sample is None:
            return {}
        flops = self.per_sample * samples
        if self._peak is None or not sec:
            return {"flops": flops}
        return {"flops": flops, "mfu": flops / sec / (self._peak * self._devices)}

    @contextmanager
    def _counted(self, rows: int) -> Iterator[None]:
        self._counts = False
        with _Again() as again, FlopCounterMode(display=False) as counter:
            yield
        if (total := counter.get_total_flops()) and not again.found:
            self.per_sample = total / rows


class _Again(TorchDispatchMode):
    """Looks for operations of a forward pass within a backward pass: the model makes activations again by itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:  # a backward pass needs no gradients
            self.found = self.found or func._overloadpacket in flop_registry
        return func(*args, **(kwargs or {}))
