"""Sizes as people write them: `64MiB`, `500 kB`, `4096`."""

from __future__ import annotations

import re
from decimal import Decimal

from headrace.errors import OptionError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)}
_BY_LOWER = {unit.lower(): factor for unit, factor in _UNITS.items()}
_MAX_BYTES = 2**63 - 1  # as many as a file may have
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(size: int | str, name: str) -> int:
    """Bytes, at least 1, from a number or text such as `64MiB` (2^20) or `64MB` (10^6); `name` is for the error."""
    if isinstance(size, int) and not isinstance(size, bool):
        num_bytes = size
    else:
        found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
        factor = _BY_LOWER.get(found[2].lower()) if found else None
        num_bytes = 0 if found is None or factor is None else int(Decimal(found[1]) * factor)
    if not 1 <= num_bytes <= _MAX_BYTES:
        raise OptionError(f"{name} must be a number of bytes, at least 1, like 64MiB or 500kB: got {size!r}")
    return num_bytes
