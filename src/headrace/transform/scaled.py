"""Decoding and the first crop or size as one step: a JPEG is decoded no larger than the cut needs it.

A JPEG is stored as blocks of 8 x 8 frequencies, and leaving out the higher ones decodes it at 1/2, 1/4 or 1/8 of its
size in less time. Which of them will do depends on the part that is cut out, so that is drawn first, from the size in
the header, by the same draws as over the decoded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.transform.decode import Decode
from headrace.transform.image import RandomResizedCrop, Resize
from headrace.transform.image_field import Place, is_image
from headrace.transform.pixels import Pixels, is_jpeg
from headrace.transform.probe import jpeg_header
from headrace.transform.spec import NO_ROWS, Fields, Op, Rows, Sample


@dataclass(frozen=True)
class ScaledDecode:
    """`Decode(scaled=True)` and the step behind it.

    What is no JPEG, or not the only image where the step names no field, is decoded in full.
    """

    decode: Decode
    step: RandomResizedCrop | Resize

    @property
    def takes_rng(self) -> bool:
        """Whether the crop is a random one."""
        return self.step.takes_rng

    @property
    def name(self) -> str:
        """Both steps, for messages."""
        return f"Decode with {type(self.step).__name__}"

    def __call__(self, sample: Sample, *rng: np.random.Generator) -> Sample:
        return self.into(NO_ROWS, sample, *rng)

    def into(self, rows: Rows, sample: Sample, *rng: np.random.Generator) -> Sample:
        """The same, written into the image's row of the batch where there is one."""
        field = self._scalable(sample)
        if field is not None:
            decoded = self.decode({**sample, field: None})
            if self.step.field is not None or not any(map(is_image, decoded.values())):
                return {**decoded, field: self._cut_out(field, sample[field], rows.get(field), *rng)}
        return self.step.into(rows, self.decode(sample), *rng)

    def output_fields(self, fields: Fields) -> Fields:
        """What both steps say of it."""
        return self.step.output_fields(self.decode.output_fields(fields))

    def _scalable(self, sample: Sample) -> str | None:
        """The field of the one JPEG that the step is about."""
        jpegs = [field for field, value in sample.items() if self.decode.is_image(field) and is_jpeg(value)]
        if self.step.field is not None:
            return self.step.field if self.step.field in jpegs else None
        return jpegs[0] if len(jpegs) == 1 else None

    def _cut_out(self, field: str, data: bytes | memoryview, row: Place, *rng: np.random.Generator) -> Pixels:
        with self.decode.naming(field):
            height, width, _ = jpeg_header(data)
        cut = self.step.cut(height, width, *rng)
        image = self.decode.image(field, data, cut.factor)
        # Where libjpeg gives up, Pillow decodes in full.
        return (cut if image.shape[:2] == (height, width) else cut.shrunk(cut.factor)).of(image, row)


def with_step(ops: Sequence[Op], op: Op) -> tuple[Op, ...]:
    """The steps and one more: a crop or size directly behind a scaled decoding becomes one with it."""
    if ops and isinstance(ops[-1], Decode) and ops[-1].scaled and isinstance(op, RandomResizedCrop | Resize):
        return (*ops[:-1], ScaledDecode(ops[-1], op))
    return (*ops, op)
