"""What `pack` is asked to do to samples on its own, checked, and in which order it is done.

Which samples are packed is decided first: by conditions (with missing values filled in), then one of each content, then
a share of what is left. Those are then changed: values filled in, images made smaller, text to tokens, and last the
user's own transform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import OptionError
from headrace.packing.pipeline import Selection, Step, Transform, UserTransform
from headrace.packing.selections import Deduplicated, Filtered, Sampled
from headrace.packing.steps import CheckImages, Fill, Require, ShrinkImages, Tokenize, Where
from headrace.packing.steps.missing import check_names

QUALITY = 90
"""Of JPEG and WebP images that are made smaller, where none is given."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The options of one pack that choose and change samples. Raises OptionError for what does not go together."""

    where: str | None = None
    require: Sequence[str] = ()
    fill: Mapping[str, Any] | None = None
    dedup: bool | Sequence[str] = False
    sample: float | None = None
    stratify: str | None = None
    resize_short: int | None = None
    max_side: int | None = None
    quality: int | None = None
    drop_broken: bool = False
    tokenizer: str | None = None
    text_field: str | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        resizes = self.resize_short is not None or self.max_side is not None
        for option, given, needs, has in (
            ("stratify", self.stratify is not None, "sample", self.sample is not None),
            ("quality", self.quality is not None, "resize_short or max_side", resizes),
            ("text_field", self.text_field is not None, "tokenizer", self.tokenizer is not None),
        ):
            if given and not has:
                raise OptionError(f"{option} goes with {needs}: give that too, or leave {option} out")
        if isinstance(self.require, str) or isinstance(self.dedup, str):
            raise OptionError("require and dedup take lists of fields: got text")
        if not isinstance(self.dedup, bool):
            check_names("dedup", tuple(self.dedup))
        if self.stratify is not None:
            check_names("stratify", (self.stratify,))

    def selections(self, seed: int, scratch: Path) -> tuple[Selection, ...]:
        """Which samples are packed, asked in this order; digests beyond memory go to files in `scratch`."""
        made: list[Selection] = []
        if conditions := self._conditions():
            made.append(Filtered(conditions))
        if self.dedup:
            made.append(Deduplicated(None if self.dedup is True else self.dedup, scratch))
        if self.sample is not None:
            made.append(Sampled(self.sample, seed, self.stratify))
        return tuple(made)

    def steps(self, images: frozenset[str] = frozenset()) -> tuple[Step, ...]:
        """What is done to each sample, in this order. `images` are fields that are images whatever their name says."""
        made: list[Step] = []
        if self.fill:
            made.append(self._fill())
        if self.drop_broken:
            made.append(CheckImages(images))
        if self.resize_short is not None or self.max_side is not None:
            quality = QUALITY if self.quality is None else self.quality
            made.append(ShrinkImages(self.resize_short, self.max_side, quality, images))
        if self.tokenizer is not None:
            made.append(Tokenize.load(self.tokenizer, self.text_field))
        if self.transform is not None:
            made.append(UserTransform(self.transform))
        return tuple(made)

    def _conditions(self) -> tuple[Fill | Where | Require, ...]:
        conditions: list[Fill | Where | Require] = []
        if self.where is not None:
            conditions.append(Where(self.where))
        if self.require:
            conditions.append(Require(tuple(self.require)))
        return (self._fill(), *conditions) if conditions and self.fill else tuple(conditions)

    def _fill(self) -> Fill:
        assert self.fill is not None
        return Fill(tuple(self.fill.items()))
