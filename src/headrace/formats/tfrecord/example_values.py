"""Python values as features of a `tf.train.Example`, and back.

An Example knows bytes, float32 and int64, each as a flat list. What a value was beyond that (text, a bool, an array of
uint8 of 3 by 4) is not in it: it is said by the dataset's fields, which headrace keeps, and other readers do not see.

    value                           feature                     comes back as
    bytes                           one bytes                   bytes
    str                             one bytes, UTF-8            str
    bool, int                       one int64                   bool, int
    float                           one float32                 float, rounded to 24 bits
    array of whole numbers, bools   int64s, row by row          the array, unless flat by its shape in `name/shape`
    array of floats                 float32s, row by row        the same; float64 comes back as float32
    list of int, float, bool        int64s or float32s          a flat array
    list of bytes or str            bytes, one each             the list
    dict, other lists               one bytes, JSON             the value
    None                            without a list              None; empty in a field of arrays or lists
    an empty list                   without a list              an empty list; an empty array in a field of arrays

One number and lists of numbers under one name are all read as arrays. An empty list has no kind that would suit all
readers, whatever the other samples hold, so it is told from None by the dataset's fields alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.errors import SourceError
from headrace.formats.fields import FIELD_TYPES, Field
from headrace.formats.tfrecord.example import BYTES, FLOATS, INTS, Example, Feature
from headrace.storage import quoted

SHAPE = "/shape"
"""Behind the name of an array's feature: the feature with its shape."""

_NOTHING = Feature(0, [])
_NULL = Field("null", nullable=True)
_KIND_OF_DTYPE = {"b": INTS, "i": INTS, "u": INTS, "f": FLOATS}
# Lists of strings and what has no type at all are of the type json too; `dtype` tells them from JSON text.
_MIXED = "mixed"
_EMPTY = "empty"  # empty lists, of which nothing shows what others would hold
_JSON_OR_EMPTY = "json or empty"
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DTYPES = ("bool", *_WHOLE, "float16", "float32")

Reader = Callable[[Feature], Any]


def to_feature(key: str, name: str, value: Any) -> tuple[Feature, Field, tuple[int, ...] | None]:
    """A value as a feature, the field it makes, and its shape if that must be kept. Raises SourceError."""
    if isinstance(value, np.ndarray):
        return _array(key, name, value)
    if isinstance(value, list | tuple):
        return (*_list(key, name, value), None)
    return (*_single(key, name, value), None)


def field_of(feature: Feature) -> Field:
    """What a feature is by itself."""
    kind, values = feature
    if kind == 0:
        return _NULL
    is_one = len(values) == 1
    if kind == BYTES and is_one:
        return Field("image" if bytes(values[0][:4]).startswith(_IMAGE_MAGIC) else "bytes")
    if kind == BYTES:
        return Field("json", "bytes")
    if is_one:
        return Field("int", "int64") if kind == INTS else Field("float", "float32")
    return Field("array", "int64" if kind == INTS else "float32", (len(values),))


def joined(one: Field, other: Field) -> Field | None:
    """What holds for a field of which some samples are the one and some the other; None if they do not go together."""
    nullable = one.nullable or other.nullable
    if "null" in (one.type, other.type):
        return replace(other if one.type == "null" else one, nullable=True)
    kind = _kind(one)
    if (one.type, one.dtype) == (other.type, other.dtype):
        return one.merged(other)
    if _EMPTY in (one.dtype, other.dtype):
        return replace(_or_empty(other if one.dtype == _EMPTY else one), nullable=nullable)
    if kind != _kind(other) or kind == 0:
        return None
    if kind == BYTES:
        return _joined_bytes(one, other, nullable)
    if "array" in (one.type, other.type):
        shape = one.shape if one.shape == other.shape else None
        return Field("array", _joined_dtype(one, other, kind), shape, nullable=nullable)
    return Field("int", "int64", nullable=nullable)  # bools and whole numbers; there is one type of float


def mixed() -> Field:
    """A field that has no type: each sample's value is what its feature is."""
    return Field("json", _MIXED)


def natural(feature: Feature) -> Any:
    """A feature's value, if nothing is known of it: alone if it is one."""
    kind, values = feature
    if kind == 0:
        return None
    if len(values) == 1:
        return values[0] if kind == BYTES else values[0].item() if isinstance(values, np.ndarray) else values[0]
    return values if kind == BYTES else np.asarray(values, np.int64 if kind == INTS else np.float32)


def is_sound(field: Field) -> bool:
    """Whether a field that was read from a file may be given to `reader` and `joined`."""
    return field.type in FIELD_TYPES and (field.type != "array" or field.dtype in _DTYPES)


def reader(field: Field) -> Reader:
    """What makes a field's values of its features. Where a feature is not as the field says, its natural value."""
    if field.type == "array":
        return _array_reader(np.dtype(field.dtype))
    if field.type == "json":
        return _LIST_READERS.get(field.dtype, _as_json)
    return _READERS.get(field.type, natural)


def reshaped(value: Any, name: str, features: Example) -> Any:
    """An array in the shape that is kept beside it, if one is and it fits."""
    kept = features.get(name + SHAPE)
    if kept is None or kept.kind != INTS or not isinstance(value, np.ndarray):
        return value
    shape = [int(size) for size in kept.values]
    fits = all(size >= 0 for size in shape) and int(np.prod(shape, dtype=object)) == value.size
    return value.reshape(shape) if fits else value


def _single(key: str, name: str, value: Any) -> tuple[Feature, Field]:
    if value is None:
        return _NOTHING, _NULL
    if isinstance(value, bytes | bytearray | memoryview):
        is_image = name.rpartition(".")[2].lower() in _IMAGES
        return Feature(BYTES, [bytes(value)]), Field("image" if is_image else "bytes")
    if isinstance(value, str):
        return Feature(BYTES, [_utf8(key, name, value)]), Field("str")
    if isinstance(value, bool | np.bool_):
        return Feature(INTS, [int(value)]), Field("bool", "bool")
    if isinstance(value, int | np.integer):
        return Feature(INTS, [_int64(key, name, int(value))]), Field("int", "int64")
    if isinstance(value, float | np.floating):
        return Feature(FLOATS, _float32s(key, name, np.array([value], np.float64))), Field("float", "float32")
    if isinstance(value, dict):
        return _json(key, name, value), Field("json")
    raise SourceError(
        f"sample {quoted(key)}: field {name!r} is a {type(value).__name__}; a tfrecord holds bytes, str, numbers, "
        "dict, list and numpy arrays: convert it in the transform"
    )


def _list(key: str, name: str, values: Sequence[Any]) -> tuple[Feature, Field]:
    if not values:
        return _NOTHING, Field("json", _EMPTY)
    if all(isinstance(value, bytes | bytearray | memoryview) for value in values):
        return Feature(BYTES, [bytes(value) for value in values]), Field("json", "bytes")
    if all(isinstance(value, str) for value in values):
        return Feature(BYTES, [_utf8(key, name, value) for value in values]), Field("json", "str")
    if all(isinstance(value, bool | np.bool_) for value in values):
        return Feature(INTS, [int(value) for value in values]), Field("array", "bool", (len(values),))
    if all(_is_whole(value) for value in values):
        return Feature(INTS, [_int64(key, name, int(value)) for value in values]), _flat("int64", values)
    if all(_is_whole(value) or isinstance(value, float | np.floating) for value in values):
        return Feature(FLOATS, _float32s(key, name, np.array(values, np.float64))), _flat("float32", values)
    return _json(key, name, values), Field("json")


def _array(key: str, name: str, value: npt.NDArray[Any]) -> tuple[Feature, Field, tuple[int, ...] | None]:
    kind, flat = _KIND_OF_DTYPE.get(value.dtype.kind), value.reshape(-1)
    if kind is None:
        raise SourceError(
            f"sample {quoted(key)}: field {name!r} is an array of {value.dtype}; a tfrecord holds arrays of whole "
            "numbers, bools and floats: convert it in the transform, or make it a list by .tolist()"
        )
    if kind == INTS and value.dtype == np.uint64 and flat.size and int(flat.max()) >= 1 << 63:
        raise SourceError(f"sample {quoted(key)}: field {name!r} has {flat.max()}, but a tfrecord holds less than 2^63")
    dtype = value.dtype.name if kind == INTS or value.dtype.itemsize <= 4 else "float32"
    numbers = flat.astype(np.int64) if kind == INTS else _float32s(key, name, flat)
    return Feature(kind, numbers), Field("array", dtype, value.shape), None if value.ndim == 1 else value.shape


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _flat(dtype: str, values: Sequence[Any]) -> Field:
    return Field("array", dtype, (len(values),))


def _utf8(key: str, name: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as err:
        raise SourceError(f"sample {quoted(key)}: field {name!r} holds text that is not UTF-8; give bytes") from err


def _int64(key: str, name: str, value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise SourceError(f"sample {quoted(key)}: field {name!r} is {value}, but a tfrecord holds numbers of 64 bits")
    return value


def _float32s(key: str, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.array_equal(np.isinf(values), np.isinf(rounded)):
        raise SourceError(
            f"sample {quoted(key)}: field {name!r} has a number too large for float32, which is all that a tfrecord "
            "holds; scale it, or give it as text"
        )
    return rounded


def _json(key: str, name: str, value: Any) -> Feature:
    try:
        return Feature(BYTES, [orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)])
    except (TypeError, ValueError) as err:
        raise SourceError(f"sample {quoted(key)}: field {name!r} cannot be stored as JSON: {err}") from err


def _kind(field: Field) -> int:
    if field.type in ("bytes", "str", "image") or (field.type == "json" and field.dtype != _MIXED):
        return BYTES
    if field.type in ("bool", "int"):
        return INTS
    if field.type == "array" and field.dtype is not None:
        return _KIND_OF_DTYPE.get(np.dtype(field.dtype).kind, 0)
    return FLOATS if field.type == "float" else 0


def _or_empty(field: Field) -> Field:
    """What holds for a field of which some samples are empty lists."""
    if field.type == "json":
        return Field("json", field.dtype or _JSON_OR_EMPTY)
    if _kind(field) == BYTES:
        return Field("json", "str" if field.type == "str" else "bytes")
    return Field("array", field.dtype)


def _joined_bytes(one: Field, other: Field, nullable: bool) -> Field | None:
    """Of text and bytes: bytes; of one and lists: lists. JSON goes with JSON alone."""
    are_json = [field.type == "json" and field.dtype in (None, _JSON_OR_EMPTY) for field in (one, other)]
    if any(are_json):
        return Field("json", _JSON_OR_EMPTY, nullable=nullable) if all(are_json) else None
    is_text = all("str" in (field.type, field.dtype) for field in (one, other))
    if "json" in (one.type, other.type):
        return Field("json", "str" if is_text else "bytes", nullable=nullable)
    return Field("bytes", nullable=nullable)


def _joined_dtype(one: Field, other: Field, kind: int) -> str:
    """The type that holds both; of uint64 and a signed one, int64, as they are stored."""
    dtype = np.promote_types(one.dtype or "int64", other.dtype or "int64")
    return dtype.name if _KIND_OF_DTYPE[dtype.kind] == kind else "int64"


def _array_reader(dtype: np.dtype[Any]) -> Reader:
    kind = _KIND_OF_DTYPE[dtype.kind]
    stored = np.int64 if kind == INTS else np.float32

    def read(feature: Feature) -> Any:
        if feature.kind not in (kind, 0):
            return natural(feature)
        return np.asarray(feature.values, stored).astype(dtype, copy=False)

    return read


def _single_reader(convert: Callable[[Any], Any], kind: int) -> Reader:
    def read(feature: Feature) -> Any:
        return convert(feature.values[0]) if feature.kind == kind and len(feature.values) == 1 else natural(feature)

    return read


def _list_reader(convert: Callable[[Any], Any]) -> Reader:
    def read(feature: Feature) -> Any:
        return [convert(value) for value in feature.values] if feature.kind in (BYTES, 0) else natural(feature)

    return read


def _text(value: memoryview) -> str:
    return str(value, "utf-8")


_as_json = _single_reader(orjson.loads, BYTES)
_READERS: Mapping[str, Reader] = {"str": _single_reader(_text, BYTES), "bool": _single_reader(bool, INTS)}
_LIST_READERS: Mapping[str | None, Reader] = {
    _EMPTY: _list_reader(lambda value: value),
    _JSON_OR_EMPTY: lambda feature: _as_json(feature) if feature.kind else [],
    "bytes": _list_reader(lambda value: value),
    "str": _list_reader(_text),
    _MIXED: natural,
}
