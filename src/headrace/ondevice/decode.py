"""JPEGs decoded on the device, by nvJPEG: for machines whose processor cannot keep up with their GPU.

torchvision reaches nvJPEG; it is imported when a step is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import interpolate

from headrace.errors import OptionError, TransformError
from headrace.ondevice.fields import find_field
from headrace.ondevice.steps import Batch
from headrace.transform import RandomHorizontalFlip, RandomResizedCrop

_CHANNELS = 3


@dataclass(frozen=True)
class DecodeJpeg:
    """Stored JPEGs, decoded on the CUDA device, a random part of each resized to `size` and mirrored at random.

    Takes a list of stored bytes (leave `.decode()` out, or give it other fields only) and gives uint8 of (batch,
    height, width, 3), RGB, as `.decode()`, RandomResizedCrop and RandomHorizontalFlip make it in the loader process.
    `size`, `scale` and `ratio` mean what they mean there; `flip` is the probability of mirroring, 0 to 1. Resizing is
    bilinear and averages where it shrinks. `field=None` finds the batch's one list of bytes.

    What nvJPEG cannot read raises TransformError and names the sample; on_error="skip" does not reach so far. Raises
    OptionError where torchvision or a CUDA device is missing.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    field: str | None = None

    needs_cuda: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self._crop  # its rules, and those of flipping, hold
        RandomHorizontalFlip(self.flip)
        if importlib.util.find_spec("torchvision") is None:
            raise OptionError("DecodeJpeg decodes by torchvision, which is missing: pip install torchvision")
        if not torch.cuda.is_available():
            raise OptionError("DecodeJpeg needs a CUDA device and found none: use .decode() in the stream")

    @cached_property
    def _crop(self) -> RandomResizedCrop:
        return RandomResizedCrop(self.size, self.scale, self.ratio)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        field = find_field(batch, self.field, _is_stored, "a list of stored bytes")
        images = _decoded(batch[field], batch["__key__"])
        height, width = _pair(self._crop)
        made = torch.empty((len(images), height, width, _CHANNELS), dtype=torch.uint8, device=_device())
        for image, place in zip(images, made, strict=True):
            place.copy_(self._part(image, height, width, rng))
        return {**batch, field: made}

    def _part(self, image: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
        top, left, h, w = self._crop.part(image.shape[1], image.shape[2], rng)
        part = image[:, top : top + h, left : left + w]
        if (h, w) != (height, width):
            part = interpolate(part[None].float(), (height, width), mode="bilinear", antialias=True)[0].round_()
            part = part.clamp_(0, 255)
        if rng.random() < self.flip:
            part = part.flip(2)
        return part.permute(1, 2, 0)


def _pair(crop: RandomResizedCrop) -> tuple[int, int]:
    return (crop.size, crop.size) if isinstance(crop.size, int) else crop.size


def _is_stored(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, bytes | bytearray | memoryview) for one in value)


def _decoded(stored: Sequence[Any], keys: Sequence[str]) -> list[torch.Tensor]:
    """The images, uint8 of (3, height, width) on the current CUDA device."""
    encoded = [torch.from_numpy(np.frombuffer(_writable(data), np.uint8)) for data in stored]
    try:
        return _decode(encoded)
    except RuntimeError:
        for one, key in zip(encoded, keys, strict=True):  # which was it?
            try:
                _decode([one])
            except RuntimeError as err:
                reason = " ".join(str(err).split())
                raise TransformError(f"sample {key!r} cannot be decoded by nvJPEG: {reason}") from err
        raise


def _decode(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=_device()) if encoded else []


def _writable(data: Any) -> Any:
    # PyTorch has no tensors that may not be written, and warns of them; those of a slot may.
    view = memoryview(data)
    return bytearray(view) if view.readonly else view


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
