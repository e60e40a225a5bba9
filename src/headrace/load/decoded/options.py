"""What a person says of the cache of decoded samples, and what names the store of a stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.dataset import Dataset, Joined
from headrace.errors import OptionError
from headrace.load.decoded.store import base_bytes
from headrace.storage.cache.options import RAM, folder_quota, ram_quota
from headrace.transform import Op, describe_steps, lasting_steps
from headrace.version import __version__

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class DecodedOptions:
    """A cache of decoded samples as described. Can be pickled."""

    place: str
    """"ram", or the absolute path of a local folder."""
    max_bytes: int
    """What it may hold, its table included."""
    is_auto: bool = False
    """Whether it is used only where that is found to pay, and to fit."""


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What a loader process and its workers need to know of a cache of decoded samples. Can be pickled."""

    options: DecodedOptions
    name: str
    """32 hex digits that stand for the dataset and the steps."""
    num_samples: int
    """Of the dataset."""
    num_steps: int
    """How many of the first steps are done once."""
    begin: int = 0
    """Where it is automatic, nothing is kept before this position, counted over epochs: samples that do not come again
    are kept in vain."""

    def beginning_at(self, position: int) -> StorePlan:
        """The same from another position on."""
        return replace(self, begin=position)


def decoded_options(
    cache_decoded: str | os.PathLike[str] | None, cache_decoded_size: int | str | None
) -> DecodedOptions | None:
    """The cache that `cache_decoded=` and `cache_decoded_size=` describe; None for none. Raises OptionError."""
    option = "cache_decoded_size"
    if cache_decoded is None:
        if cache_decoded_size is not None:
            raise OptionError(f'{option} goes with cache_decoded: say where too, "ram" or a folder')
        return None
    if cache_decoded in (AUTO, RAM):
        return DecodedOptions(RAM, ram_quota(cache_decoded_size, option), cache_decoded == AUTO)
    if not isinstance(cache_decoded, str | os.PathLike):
        raise OptionError(f'cache_decoded is "auto", "ram", a folder or None: got {cache_decoded!r}')
    path, num_bytes = folder_quota(cache_decoded, cache_decoded_size, option)
    return DecodedOptions(str(path), num_bytes)


def store_plan(
    options: DecodedOptions | None, dataset: Dataset | Joined, ops: Sequence[Op], *, in_workers: bool
) -> StorePlan | None:
    """The plan for a stream; None where nothing is to be kept. `in_workers`: worker processes do the steps.

    Raises OptionError where a cache was asked for and cannot be.
    """
    if options is None:
        return None
    steps = lasting_steps(ops)
    if not steps:
        if options.is_auto:
            return None
        raise OptionError(
            "cache_decoded keeps what .decode() makes, and Resize and CenterCrop behind it: this stream does not begin "
            "with .decode(); call it first, or leave cache_decoded out"
        )
    base = base_bytes(len(dataset))
    if base >= options.max_bytes:
        if options.is_auto:
            return None
        raise OptionError(
            f"cache_decoded_size must be more than {base:,} bytes, which a table of {len(dataset):,} samples takes: "
            f"got {options.max_bytes:,}"
        )
    return StorePlan(options, _name(dataset, steps, in_workers), len(dataset), len(steps))


def _name(dataset: Dataset | Joined, steps: Sequence[Op], in_workers: bool) -> str:
    """Equal only for equal samples. In worker processes byte strings are views, whatever they were."""
    parts = dataset.parts if isinstance(dataset, Joined) else (dataset,)
    fields = [sorted(part.schema) for part in parts]
    identity = [dataset.fingerprint, len(dataset), fields, in_workers, __version__, describe_steps(steps)]
    return hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
