"""What samples have, by field name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from headrace.formats.checking import Checked

FIELD_TYPES = ("bytes", "image", "str", "int", "float", "bool", "array", "json", "null")
"""`bytes`: as stored, meant by the field's extension; `image`: the bytes of an encoded image; `json`: lists, objects
and whatever else has no type of its own; `null`: None in every sample."""


@dataclass(frozen=True, slots=True)
class Field:
    """What every sample has under one name."""

    type: str
    """One of FIELD_TYPES."""
    dtype: str | None = None
    """The type of an array's elements, or of a number as it is stored, such as `uint16`."""
    shape: tuple[int, ...] | None = None
    """The shape of the array if all samples share it."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels if every sample's field is an encoded image of this size, measured while packing."""
    nullable: bool = False
    """Whether some sample may have None."""
    wide: bool = False
    """Whether a float64 would round some of the whole numbers; noted of text formats, where one file of a dataset may
    have floats and another such numbers."""

    def merged(self, other: Field) -> Field:
        """What holds for the samples of both; where types differ the first one's counts."""
        if self.type == "null" or other.type == "null":
            known = other if self.type == "null" else self
            return replace(known, nullable=True)
        return Field(
            self.type,
            self.dtype,
            self.shape if self.shape == other.shape else None,
            self.image_size if self.image_size == other.image_size else None,
            self.nullable or other.nullable,
            self.wide or other.wide,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object without what is unknown."""
        values = {"type": self.type, "dtype": self.dtype, "shape": self.shape, "image_size": self.image_size}
        flags = {"nullable": self.nullable, "wide": self.wide}
        return {name: value for name, value in values.items() if value is not None} | {
            name: True for name, is_set in flags.items() if is_set
        }

    @classmethod
    def from_json(cls, item: Checked) -> Field:
        """The field of a JSON object, checked."""

        def sizes(numbers: Checked) -> tuple[int, ...]:
            return tuple(number.integer() for number in numbers.elements())

        image_size = item.get("image_size").optional(sizes)
        if image_size is not None and len(image_size) != 2:
            raise item["image_size"].error("must be [height, width]")
        if item["type"].value not in FIELD_TYPES:
            raise item["type"].error(f"must be one of {', '.join(FIELD_TYPES)}")
        return cls(
            item["type"].text(),
            item.get("dtype").optional(Checked.text),
            item.get("shape").optional(sizes),
            (image_size[0], image_size[1]) if image_size else None,
            item.get("nullable").value is True,
            item.get("wide").value is True,
        )


def fields_from_json(value: Checked) -> dict[str, Field]:
    """The fields of a JSON object, checked."""
    return {name: Field.from_json(item) for name, item in value.items()}
