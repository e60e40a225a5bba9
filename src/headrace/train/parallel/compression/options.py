"""What may be asked for as `compression`."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import OptionError

CASTS = ("bf16", "fp16")


@dataclass(frozen=True, slots=True)
class PowerSgd:
    """Matrices as products of two thin ones."""

    rank: int
    warmup_steps: int


@dataclass(frozen=True, slots=True)
class TopK:
    """The largest elements."""

    ratio: float
    warmup_steps: int


Compression = str | PowerSgd | TopK


def power_sgd(rank: int = 2, *, warmup_steps: int = 100) -> PowerSgd:
    """Send the gradient of a matrix of n x m as two of n x `rank` and m x `rank`; the error is added to the next one.

    Tensors of more dimensions count as matrices of their first one by the rest; what would not become half as large is
    sent whole. The first `warmup_steps` steps of a run are sent whole too. Raises OptionError for a rank below 1.
    """
    if rank < 1:
        raise OptionError(f"power_sgd takes a rank of at least 1: got {rank}")
    _check_warmup("power_sgd", warmup_steps)
    return PowerSgd(rank, warmup_steps)


def top_k(ratio: float = 0.01, *, warmup_steps: int = 100) -> TopK:
    """Send of each gradient the share `ratio` of its elements that are largest; the others are added to the next one.

    `ratio` is above 0 and at most 1; an element costs 8 bytes, so only a ratio well below 0.5 saves any. The first
    `warmup_steps` steps of a run are sent whole. Raises OptionError for values out of range.
    """
    if not 0 < ratio <= 1:
        raise OptionError(f"top_k takes a ratio above 0 and at most 1: got {ratio}")
    _check_warmup("top_k", warmup_steps)
    return TopK(ratio, warmup_steps)


def check_compression(compression: object, mesh: dict[str, int | None], precision: str) -> None:
    """Raise OptionError for what is no compression, or cannot go with the axes of the mesh or the precision."""
    if compression is None:
        return
    feedback = isinstance(compression, PowerSgd | TopK)
    if not feedback and compression not in CASTS:
        raise OptionError(
            f"compression must be None, {', '.join(map(repr, CASTS))}, headrace.power_sgd() or headrace.top_k(): "
            f"got {compression!r}"
        )
    others = [axis for axis, size in mesh.items() if axis != "dp" and size != 1]
    if others:
        raise OptionError(
            f"compression works between replicas only: got a mesh with {', '.join(others)}; say mesh='dp', or leave "
            "compression out (precision='bf16' halves what fsdp gathers)"
        )
    if feedback and precision == "fp16":
        raise OptionError(
            f"{compression!r} keeps what it has not sent, whose scale would change with that of the loss: got "
            "precision='fp16'; say precision='bf16', or compression='fp16'"
        )


def _check_warmup(name: str, steps: int) -> None:
    if steps < 0:
        raise OptionError(f"{name} takes warmup_steps of at least 0: got {steps}")
