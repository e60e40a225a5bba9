"""Images while packing: made smaller, or proved to be whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.errors import SourceError, TransformError
from headrace.transform.decode import field_kind
from headrace.transform.pixels import decode_image
from headrace.transform.probe import probe_image
from headrace.transform.reencode import check_shrink_options, shrink_image


@dataclass(frozen=True)
class ShrinkImages:
    """Every image with more pixels than wanted is made smaller and encoded again in its own format."""

    resize_short: int | None
    """Pixels of the shorter side at most."""
    max_side: int | None
    """Pixels of the longer side at most."""
    quality: int
    """Of JPEG and WebP, 1 to 100."""
    images: frozenset[str] = frozenset()
    """Fields that are images whatever their name says."""

    def __post_init__(self) -> None:
        check_shrink_options(self.resize_short, self.max_side, self.quality)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with its images made smaller. Raises SourceError for one that is broken."""
        made = dict(sample)
        for name in _images_of(sample, self.images):
            try:
                made[name] = shrink_image(
                    sample[name], short=self.resize_short, max_side=self.max_side, quality=self.quality
                )
            except TransformError as err:
                raise SourceError(f"sample {sample['__key__']!r}: field {name!r} {err}") from err
        return made


@dataclass(frozen=True)
class CheckImages:
    """Every image is decoded to its last pixel: damage that headers do not show is found while packing."""

    images: frozenset[str] = frozenset()
    """Fields that are images whatever their name says."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample itself. Raises SourceError if one of its images cannot be decoded."""
        for name in _images_of(sample, self.images):
            try:
                probe_image(sample[name])  # its end and its checksums, which decoders pass over
                decode_image(sample[name])
            except TransformError as err:
                raise SourceError(f"sample {sample['__key__']!r}: field {name!r} {err}") from err
        return sample


def _images_of(sample: dict[str, Any], images: frozenset[str]) -> list[str]:
    return [
        name
        for name, value in sample.items()
        if isinstance(value, bytes | bytearray | memoryview) and (name in images or field_kind(name) == "image")
    ]
