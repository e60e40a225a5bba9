"""The keys of some rows: those of one length travel as their characters, and become strings where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = "list[str] | NDArray[np.void]"
"""Each key; or the ASCII characters of each, all of one length."""


def strings(keys: Keys) -> list[str]:
    """Each key as a string."""
    if isinstance(keys, list):
        return keys
    text, length = keys.tobytes().decode("ascii"), keys.itemsize
    return [text[at : at + length] for at in range(0, len(text), length)]


def joined(parts: Sequence[tuple[NDArray[np.int64] | slice, Keys]], num_rows: int) -> Keys:
    """All rows' keys, out of those of some rows each. None are left out."""
    dtypes = {keys.dtype if isinstance(keys, np.ndarray) else None for _, keys in parts}
    dtype = dtypes.pop()
    is_one_length = dtype is not None and not dtypes
    all_keys: NDArray[Any] = np.empty(num_rows, dtype if is_one_length else np.object_)
    for rows, keys in parts:
        all_keys[rows] = keys if is_one_length else strings(keys)
    return all_keys if is_one_length else all_keys.tolist()
