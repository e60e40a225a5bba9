"""Numbers as people read them, with their units. KB, MB and GB are powers of 1000; GiB is 2^30 bytes."""

from __future__ import annotations

import math
from datetime import UTC, datetime

UNKNOWN = "–"  # noqa: RUF001 (an en dash, as in tables)

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """A whole number with thousands separated: 12,345."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """A measured number to so many significant digits: 0.01234, 1,234, 1.2e-05."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < digits:
        return f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return f"{value:,.0f}" if digits <= magnitude < 9 else f"{value:.{digits - 1}g}"


def tick(value: float) -> str:
    """A round number on an axis, without trailing zeros: 0.5, 20, 1,000."""
    text = number(value, 3)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def seconds(value: float | None) -> str:
    """A duration: 3.2 ms, 12.4 s, 5 min 10 s, 2 h 5 min, 3 d 4 h."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0 s"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (99.95, 1, "s")):
        if value < limit:
            return f"{number(value * factor, 3)} {unit}"
    for size, unit, part, part_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if value >= size:
            whole, rest = divmod(round(value / part), size // part)
            return f"{whole} {unit} {rest} {part_unit}" if rest else f"{whole} {unit}"
    return f"{value:.0f} s"


def num_bytes(value: float | None) -> str:
    """A size: 117.3 KB, 2.1 GB."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{number(value / size, 3)} {prefix.replace('k', 'K')}B"
    return f"{value:.0f} B"


def rate(value: float | None, unit: str) -> str:
    """A rate: 1,234 samples/s."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{number(value, 4)} {unit}/s"


def percent(share: float | None) -> str:
    """A share of one: 41 %, 3.2 %."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    digits = 0 if abs(share) >= 0.0995 or share == 0 else 1
    return f"{100 * share:.{digits}f} %"


def moment(unix_sec: float | None) -> str:
    """A point in time, in UTC: 2026-11-20 19:55 UTC."""
    if unix_sec is None:
        return UNKNOWN
    return datetime.fromtimestamp(unix_sec, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(number: float | None, word: str) -> str:
    """A count with its noun: 1 step, 1,200 steps; empty for an unknown one."""
    return "" if number is None else f"{count(number)} {word}{'' if number == 1 else 's'}"


def as_float(value: object) -> float | None:
    """A number of an event, or None for anything else."""
    return float(value) if isinstance(value, int | float) else None
