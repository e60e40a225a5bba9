"""Other libraries' augmentations as steps: torchvision's and Albumentations', each as exact as our own.

Neither library draws from a generator that is handed to it, so each is keyed in its own way: torchvision draws from
the process's generators, which are seeded for one sample, one thread at a time; an Albumentations transform has
generators of its own, and is copied for each thread. Neither is imported here: who has a transform has its library.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, ClassVar

import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.image_field import image_field, image_field_of
from headrace.transform.pixels import Pixels
from headrace.transform.spec import Fields, Sample

_GENERATORS = threading.Lock()
"""Held while the process's generators are one sample's."""


@dataclass(frozen=True)
class Torchvision:
    """The image after a transform of torchvision (v2 or v1), or any function of one image that draws as they do.

    The transform gets a uint8 tensor of (channels, height, width), or with `pil=True` a Pillow image. A uint8 tensor or
    a Pillow image that it returns is an array of (height, width, channels) again; any other tensor keeps its axes.
    Raises TransformError for what is no tensor, array or Pillow image.

    The global generators of torch (on the CPU) and of `random` are seeded from the sample's own and put back after, so
    threads of one process take turns: `processes=n` transforms n images at a time. Numpy's global generator is not.
    """

    transform: Callable[[Any], Any]
    field: str | None = None
    pil: bool = False

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.transform):
            raise OptionError(f"transform is called with one image: got {self.transform!r}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        name = image_field(sample, self.field)
        image = _to_pillow(sample[name]) if self.pil else _to_tensor(sample[name])
        with _keyed_generators(rng):
            made = self.transform(image)
        return {**sample, name: _to_array(made)}

    def output_fields(self, fields: Fields) -> Fields:
        """Of the image nothing is known; the other fields stay."""
        return _without(fields, image_field_of(fields, self.field))


@dataclass(frozen=True)
class Albumentations:
    """The image after a transform of Albumentations: a `Compose`, or a single one.

    `targets` names the fields that change with the image by the argument that the transform takes them as, such as
    `{"mask": "seg.png", "bboxes": "boxes", "labels": "classes"}`. The image is what the transform makes of it. Raises
    OptionError for transforms of releases without `set_random_state`, TransformError for fields that are missing.

    Its generators are set from the sample's own, on a copy of it that each thread makes for itself.
    """

    transform: Any
    field: str | None = None
    targets: Mapping[str, str] = dataclass_field(default_factory=dict, hash=False)
    _copies: threading.local = dataclass_field(init=False, repr=False, compare=False, default_factory=threading.local)

    takes_rng: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(getattr(self.transform, "set_random_state", None)):
            raise OptionError(
                "transform is one of Albumentations, release 2 or newer, with set_random_state: "
                f"got {type(self.transform).__name__}; other functions go to .map as they are"
            )
        if "image" in self.targets:
            raise OptionError("targets names what changes with the image, not the image: say that with field=")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.transform, self.field, dict(self.targets))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        name = image_field(sample, self.field)
        if missing := sorted(set(self.targets.values()) - sample.keys()):
            raise TransformError(f"there is no field {missing[0]!r}: the sample has {', '.join(sorted(sample))}")
        arguments = {argument: _writable(sample[target]) for argument, target in self.targets.items()}
        transform = self._of_this_thread()
        # Not set_random_seed: it gives every step inside the same numbers, so that two flips always flip together.
        transform.set_random_state(rng, random.Random(_word(rng)))  # noqa: S311 - nothing secret
        made = transform(image=_writable(sample[name]), **arguments)
        return {**sample, name: made["image"], **{target: made[argument] for argument, target in self.targets.items()}}

    def output_fields(self, fields: Fields) -> Fields:
        """Of the image and the targets nothing is known; the other fields stay."""
        return _without(fields, image_field_of(fields, self.field), *self.targets.values())

    def _of_this_thread(self) -> Any:
        if not hasattr(self._copies, "transform"):
            self._copies.transform = copy.deepcopy(self.transform)
        return self._copies.transform


@contextmanager
def _keyed_generators(rng: np.random.Generator) -> Iterator[None]:
    import torch

    generator = torch.default_generator  # not torch.manual_seed: that would seed every CUDA device too
    with _GENERATORS:
        before, before_random = generator.get_state(), random.getstate()
        generator.manual_seed(_word(rng))
        random.seed(_word(rng))
        try:
            yield
        finally:
            generator.set_state(before)
            random.setstate(before_random)


def _word(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


def _to_tensor(image: Pixels) -> Any:
    import torch

    return torch.from_numpy(_writable(image)).permute(2, 0, 1)


def _to_pillow(image: Pixels) -> Any:
    from PIL import Image

    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _to_array(made: Any) -> Any:
    if hasattr(made, "detach"):  # a tensor
        array = made.detach().cpu().numpy()
        return np.ascontiguousarray(array.transpose(1, 2, 0)) if array.dtype == np.uint8 and array.ndim == 3 else array
    if hasattr(made, "getbands"):  # a Pillow image
        array = np.array(made)
        return array if array.ndim == 3 else array[:, :, np.newaxis]
    if isinstance(made, np.ndarray):
        return made
    raise TransformError(
        f"the transform must return one image, as a tensor, array or Pillow image: got {type(made).__name__}"
    )


def _writable(value: Any) -> Any:
    """The value, copied where it is an array that a foreign function must not, or could not, write to."""
    return np.require(value, requirements=("C", "W")) if isinstance(value, np.ndarray) else value


def _without(fields: Fields, *names: str | None) -> Fields:
    return {name: spec for name, spec in fields.items() if name not in names}
