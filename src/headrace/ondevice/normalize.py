"""Pixels to what models want, in one pass on the device: a quarter of the bytes of float32 were moved there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from headrace.errors import OptionError, TransformError
from headrace.ondevice.fields import find_field, is_pixels
from headrace.ondevice.steps import Batch
from headrace.transform import Normalize as OfSample

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Normalize:
    """Images as (batch, channels, height, width), channels last in memory: (image / 255 - mean) / std.

    Takes uint8 tensors of (batch, height, width, channels), so no value moves: the new order of axes is a view. `mean`
    and `std` have one value a channel, or one for all, on a scale of 0 to 1, and are applied in float32; `dtype` is
    that of the result: "float32", "bfloat16" or "float16". `field=None` finds the batch's one such tensor.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "float32"
    field: str | None = None

    def __post_init__(self) -> None:
        checked = OfSample(self.mean, self.std)  # one rule for both
        object.__setattr__(self, "mean", checked.mean)
        object.__setattr__(self, "std", checked.std)
        if self.dtype not in _DTYPES:
            raise OptionError(f"dtype is one of {', '.join(_DTYPES)}: got {self.dtype!r}")

    def __call__(self, batch: Batch) -> Batch:
        wanted = "a uint8 tensor of (batch, height, width, channels)"
        field = find_field(batch, self.field, is_pixels, wanted)
        pixels = batch[field].permute(0, 3, 1, 2)
        channels = pixels.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise TransformError(f"the images have {channels} channels, but {name} has {len(values)} values")
        shift, scale = _constants(self.mean, self.std, channels, pixels.device)
        images = torch.empty(
            pixels.shape, dtype=_DTYPES[self.dtype], device=pixels.device, memory_format=torch.channels_last
        )
        return {**batch, field: torch.addcmul(shift, pixels, scale, out=images)}


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What to add and what to multiply by, as float32 of (1, channels, 1, 1)."""
    pairs = [(mean[c % len(mean)], std[c % len(std)]) for c in range(channels)]
    shift = torch.tensor([-m / s for m, s in pairs], dtype=torch.float32, device=device)
    scale = torch.tensor([1 / (255 * s) for _, s in pairs], dtype=torch.float32, device=device)
    return shift.view(1, -1, 1, 1), scale.view(1, -1, 1, 1)
