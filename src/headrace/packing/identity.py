"""Recognising a function from one run to the next, by what it is made of."""

from __future__ import annotations

import functools
from types import CodeType
from typing import Any

import xxhash


def identity_of(function: Any) -> str:
    """A text that changes when a function's own code, defaults or closure change.

    What the function calls, and global names that it reads, are not looked at. For objects whose `repr` holds their
    address it differs from run to run, which at worst refuses what could have been continued.
    """
    if isinstance(function, functools.partial):
        return f"partial({identity_of(function.func)}, {function.args!r}, {sorted(function.keywords.items())!r})"
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        captured = [identity_of(value) if callable(value) else repr(value) for value in cells]
        own = (function.__defaults__, function.__kwdefaults__, captured)
        return f"{function.__qualname__} {_code_digest(code)} {own!r}"
    inner = getattr(type(function).__dict__.get("__call__"), "__code__", None)
    return f"{function!r} {_code_digest(inner) if isinstance(inner, CodeType) else ''}"


def _code_digest(code: CodeType) -> str:
    constants = [
        _code_digest(constant)
        if isinstance(constant, CodeType)
        # Sets of strings are shown in another order by every process.
        else repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
        for constant in code.co_consts
    ]
    text = repr((code.co_code, code.co_names, constants))
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
