"""Stored fields to values, by what follows the last dot of the field's name.

    jpg jpeg png webp bmp tif tiff ppm gif    image: uint8, (height, width, 3) or gray (height, width, 1)
    json jsn                                  object
    txt text transcript md py                 str, from UTF-8
    npy                                       array
    cls cls2 index inx id                     int
    pkl pickle pyd pth pt                     refused: unpickling runs code that the data brings
    anything else                             stays bytes

Fields that the dataset itself calls images (of Parquet, MDS) are decoded whatever their name. Values that are typed
already (token arrays, say) pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.errors import OptionError, TransformError
from headrace.transform.pixels import NUM_CHANNELS, Color, Pixels, decode_image
from headrace.transform.spec import ArraySpec, Encoded, Fields, FieldSpec, Sample, array_spec

Kind = Literal["image", "json", "text", "array", "int", "pickle", "bytes"]

_EXTENSIONS: dict[Kind, str] = {
    "image": "jpg jpeg png webp bmp tif tiff ppm gif",
    "json": "json jsn",
    "text": "txt text transcript md py",
    "array": "npy",
    "int": "cls cls2 index inx id",
    "pickle": "pkl pickle pyd pth pt",
}
_KINDS: dict[str, Kind] = {ext: kind for kind, extensions in _EXTENSIONS.items() for ext in extensions.split()}


def field_kind(field: str) -> Kind:
    """What a field of this name is decoded as: `seg.png` is an image."""
    return _KINDS.get(field.rpartition(".")[2].lower(), "bytes")


@dataclass(frozen=True)
class Decode:
    """Decodes every field by its extension. `color` is "rgb" (three channels) or "gray" (one channel), for images.

    `scaled` counts where a Stream puts `RandomResizedCrop` or `Resize` directly behind; it changes pixels a little.

    Raises TransformError, naming the field, for data that is not what its name says.
    """

    color: Color = "rgb"
    images: frozenset[str] = frozenset()
    """Fields that hold encoded images whatever their name says."""
    scaled: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size, where what a crop or size directly behind needs is no larger."""

    takes_rng: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.color not in NUM_CHANNELS:
            raise OptionError(f"color is one of {', '.join(NUM_CHANNELS)}: got {self.color!r}")

    def __call__(self, sample: Sample) -> Sample:
        return {field: self._decode(field, value) for field, value in sample.items()}

    def output_fields(self, fields: Fields) -> Fields:
        """Images have the size that packing measured, where all have the same one; `cls` and its like are int64.

        Of `npy` nothing is known: its shape lies in the data.
        """
        stays = {
            name: spec
            for name, spec in fields.items()
            if not (isinstance(spec, Encoded) and self._kind(name) == "array")
        }
        return {field: self._spec(field, spec) for field, spec in stays.items()}

    def leaves(self, field: str) -> bool:
        """Whether bytes in this field stay what they are."""
        return self._kind(field) == "bytes"

    def takes_columns(self, field: str) -> bool:
        """Whether bytes in this field are decoded by `column` too."""
        return self._kind(field) in ("bytes", "text", "int")

    def column(self, field: str, column: NDArray[Any]) -> NDArray[Any] | None:
        """A column of many samples after the step; None where samples are to be decoded one by one.

        Objects in it are all str, or all memoryviews. Raises ValueError or OverflowError for data
        that is not what its name says, or that int64 does not hold.
        """
        kind = self._kind(field)
        if column.dtype != np.object_ or not isinstance(column[0], memoryview) or kind == "bytes":
            return column
        if kind == "text":
            return np.fromiter(map(_decode_text, column), np.object_, len(column))
        return np.fromiter(map(_decode_int, column), np.int64, len(column)) if kind == "int" else None

    def is_image(self, field: str) -> bool:
        """Whether bytes in this field are decoded as an image."""
        return self._kind(field) == "image"

    def image(self, field: str, data: bytes | memoryview | bytearray, factor: int = 1) -> Pixels:
        """The image in this field; a JPEG `factor` (1, 2, 4 or 8) times smaller where libjpeg decodes it."""
        with self.naming(field):
            return decode_image(memoryview(data) if isinstance(data, bytearray) else data, self.color, factor)

    @contextmanager
    def naming(self, field: str) -> Iterator[None]:
        """What goes wrong with this field's data in the block becomes a TransformError that names it."""
        try:
            yield
        except TransformError as err:
            raise TransformError(f"field {field!r} {err}") from err
        except (ValueError, EOFError, OverflowError, MemoryError, TypeError, SyntaxError) as err:
            reason = " ".join(str(err).split())
            raise TransformError(f"field {field!r} is not {_EXPECTED[self._kind(field)]}: {reason}") from err

    def _kind(self, field: str) -> Kind:
        return "image" if field in self.images else field_kind(field)

    def _decode(self, field: str, value: Any) -> Any:
        if not isinstance(value, bytes | memoryview | bytearray):
            return value
        kind = self._kind(field)
        if kind == "bytes":
            return value
        if kind == "image":
            return self.image(field, value)
        with self.naming(field):
            return _DECODERS[kind](value)

    def _spec(self, field: str, spec: FieldSpec) -> FieldSpec:
        if not isinstance(spec, Encoded):
            return spec
        kind = self._kind(field)
        if kind == "image":
            return array_spec("uint8", (*(spec.image_size or (None, None)), NUM_CHANNELS[self.color]))
        if kind == "int":
            return ArraySpec("int64", ())
        return spec if kind == "bytes" else None


def _decode_text(data: bytes | memoryview) -> str:
    return str(data, "utf-8")


def _decode_array(data: bytes | memoryview) -> np.ndarray[Any, Any]:
    return np.lib.format.read_array(BytesIO(data), allow_pickle=False)


def _decode_int(data: bytes | memoryview) -> int:
    return int(bytes(data))


def _refuse_pickle(data: bytes | memoryview) -> Any:
    raise TransformError("holds a pickle, and unpickling would run code from the data: convert it to json, npy or txt")


_DECODERS: dict[Kind, Callable[[Any], Any]] = {
    "json": orjson.loads,
    "text": _decode_text,
    "array": _decode_array,
    "int": _decode_int,
    "pickle": _refuse_pickle,
}
_EXPECTED: dict[Kind, str] = {
    "image": "an image",
    "json": "JSON",
    "text": "UTF-8 text",
    "array": "an array without Python objects",
    "int": "a whole number",
}
