"""Many names written as one: `train-{000000..000099}.tar`, `{a,b}.tar`."""

from __future__ import annotations

import re
from itertools import product

from headrace.errors import OptionError

MAX_NAMES = 10_000_000
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(url: str) -> list[str]:
    """Every name that the braces of `url` stand for, in order; `url` itself if it has none.

    `{000..010}` counts with the first number's width, `{a,b}` lists. Raises OptionError for over 10 million names.
    """
    parts = _BRACE.split(url)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    total = 1
    for some in choices:
        total *= len(some)
    if total > MAX_NAMES:
        raise OptionError(f"braces may stand for {MAX_NAMES:,} names at most: {url!r} stands for {total:,}")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(text: str) -> list[str]:
    found = _RANGE.fullmatch(text)
    if found:
        first, last, width = int(found[1]), int(found[2]), len(found[1])
        if first > last or last - first >= MAX_NAMES:
            raise OptionError(f"a range in braces must go up and have at most {MAX_NAMES:,} numbers: got {{{text}}}")
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    return text.split(",") if "," in text else ["{" + text + "}"]
