"""A batch of encoded images made into one tensor: decoded, a random part resized to 224, mirrored at random.

By the function that headrace has (simplejpeg and OpenCV), and by Pillow as torchvision does it, which the guides of
other loaders use.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from headrace.transform import Decode, RandomHorizontalFlip, RandomResizedCrop, apply

SIDE = 224
CROP = RandomResizedCrop(SIDE)
REST = (CROP, RandomHorizontalFlip())
OPS = (Decode(), *REST)
WITH_PILLOW, WITH_CV2 = "Pillow", "simplejpeg + OpenCV"
FIELDS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
"""The name that an image's field ends on, by which headrace decodes it."""


def with_cv2(items: Sequence[bytes], field: str = "jpg") -> torch.Tensor:
    """Batch of (images, 224, 224, 3) by headrace's own function."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng()
    made = [apply(OPS, {"__key__": "", field: item}, lambda: rng) for item in items]
    return torch.from_numpy(np.stack([one[field] for one in made if one is not None]))


def with_pillow(items: Sequence[bytes]) -> torch.Tensor:
    """The same by Pillow, as torchvision does it."""
    rng = np.random.default_rng()
    return torch.from_numpy(np.stack([_by_pillow(item, rng) for item in items]))


def _by_pillow(item: bytes, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(item)).convert("RGB")
    top, left, height, width = CROP.part(image.height, image.width, rng)
    image = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image)


MAKERS: dict[str, Callable[[Sequence[bytes]], torch.Tensor]] = {WITH_PILLOW: with_pillow, WITH_CV2: with_cv2}
