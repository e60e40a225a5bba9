"""Python values as bytes, for formats that store bytes: `.decode()` reads them back by the field's extension."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.errors import SourceError
from headrace.storage import quoted


def value_to_bytes(key: str, name: str, value: Any) -> bytes:
    """A field's value as stored: bytes as they are, text as UTF-8, numbers as text, objects as JSON, arrays as npy."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return _text_to_bytes(key, name, value)
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return str(int(value)).encode()
    if isinstance(value, float | np.floating):
        return repr(float(value)).encode()
    if isinstance(value, np.ndarray):
        return _array_to_bytes(key, name, value)
    if isinstance(value, dict | list | tuple):
        return _object_to_bytes(key, name, value)
    if value is None:
        raise SourceError(
            f"sample {quoted(key)}: field {name!r} is None, which a tar cannot hold: fill it in (fill, --fill), pack "
            "another format, or leave it out in the transform"
        )
    raise SourceError(
        f"sample {quoted(key)}: field {name!r} is a {type(value).__name__}; a tar holds bytes, str, numbers, "
        "dict, list and numpy arrays: convert it in the transform"
    )


def _text_to_bytes(key: str, name: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as err:
        raise SourceError(f"sample {quoted(key)}: field {name!r} holds text that is not UTF-8; give bytes") from err


def _array_to_bytes(key: str, name: str, value: npt.NDArray[Any]) -> bytes:
    if name.rpartition(".")[2] != "npy":
        raise SourceError(
            f"sample {quoted(key)}: field {name!r} is an array; name it {name + '.npy'!r} to store it, or encode it"
        )
    if value.dtype.hasobject:
        raise SourceError(f"sample {quoted(key)}: field {name!r} is an array of Python objects, which is not stored")
    file = io.BytesIO()
    np.lib.format.write_array(file, value, allow_pickle=False)
    return file.getvalue()


def _object_to_bytes(key: str, name: str, value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as err:
        raise SourceError(f"sample {quoted(key)}: field {name!r} cannot be stored as JSON: {err}") from err
