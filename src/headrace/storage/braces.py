"""Many names written as one: `train-{000000..000999}.tar`, `{train,val}-{0..9}.tar`.

Braces are counted before any name is made, so that a slip of the finger does not fill memory. Where a local file has
braces in its own name, the file is meant: whoever opens a place asks for that first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from math import prod

from headrace.errors import OptionError

MAX_NAMES = 10_000_000
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})", re.ASCII)


def expand_braces(url: str) -> list[str]:
    """Every name that the braces of `url` stand for, the last brace counting fastest; `url` itself if it has none.

    `{000..010}` counts, with as many digits as the longer number has if one of them begins with 0; `{a,b}` lists; any
    other brace is part of the name. Raises OptionError for a range that goes down, for braces within braces, and for
    over 10 million names.
    """
    parts = _BRACE.split(url)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    total = prod(map(len, choices))
    if total > MAX_NAMES:
        raise OptionError(f"braces may stand for {MAX_NAMES:,} names at most: {url!r} stands for {total:,}")
    if total > 1 and any("{" in part or "}" in part for part in parts[::2]):
        raise OptionError(f"braces must not lie within braces, and must come in pairs: got {url!r}")
    return ["".join(chosen) for chosen in product(*choices)]


class _Range(Sequence[str]):
    """The numbers first .. last as text, made when asked for."""

    def __init__(self, first: str, last: str) -> None:
        self._numbers = range(int(first), int(last) + 1)
        self._width = max(len(first), len(last)) if (first[0] == "0" and first != "0") or last[0] == "0" else 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices: nobody asks for them
        return f"{self._numbers[i]:0{self._width}d}"


def _choices(text: str) -> Sequence[str]:
    found = _RANGE.fullmatch(text)
    if found:
        if int(found[1]) > int(found[2]):
            raise OptionError(f"a range in braces must go up: got {{{text}}}")
        return _Range(found[1], found[2])
    return text.split(",") if "," in text else ["{" + text + "}"]
