"""The query of an http URL, kept out of everything that is printed or pickled.

A signed URL is a password: whoever reads it may read the data. So a query lives in the memory of the process that was
given it. A pickled place carries a handle only, drawn at random, and the process that unpickles it looks the query up
in its own memory or in the environment variable HEADRACE_URL_QUERIES, which `child_environment` makes for a child.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from typing import Self

import orjson

from headrace.errors import StorageError

VARIABLE = "HEADRACE_URL_QUERIES"

_LOCK = threading.Lock()
_BY_HANDLE: dict[str, str] = {}
_BY_TEXT: dict[str, str] = {}


class Query:
    """What follows the `?` of a URL. Equal where the text is; never printed, never pickled."""

    __slots__ = ("_handle", "_text")

    def __init__(self, text: str | None, handle: str) -> None:
        self._text, self._handle = text, handle

    @classmethod
    def of(cls, text: str) -> Self:
        """The query with this text; empty for none."""
        if not text:
            return cls("", "")
        with _LOCK:
            handle = _BY_TEXT.get(text) or secrets.token_hex(8)
            _BY_TEXT[text], _BY_HANDLE[handle] = handle, text
        return cls(text, handle)

    def reveal(self) -> str:
        """The text itself, for the store that sends it. Raises StorageError where this process was never given it."""
        if self._text is None:
            raise StorageError(
                "the query of this URL (its signature) is not passed on to other processes: locate the whole URL "
                f"again in this process, or start it with the variable {VARIABLE} that storage.child_environment makes"
            )
        return self._text

    def __bool__(self) -> bool:
        return self._text != ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and (self._text, self._handle) == (other._text, other._handle)

    def __hash__(self) -> int:
        return hash((self._text, self._handle))

    def __repr__(self) -> str:
        return "Query(hidden)" if self else "Query()"

    def __reduce__(self) -> tuple[Callable[[str], Query], tuple[str]]:
        return _restored, (self._handle,)


NO_QUERY = Query("", "")


def child_environment() -> dict[str, str]:
    """The variables that a child process needs for the http places of this one: none where no URL had a query."""
    with _LOCK:
        known = dict(_BY_HANDLE)
    return {VARIABLE: orjson.dumps(known).decode()} if known else {}


def known_queries() -> list[str]:
    """Every query this process was given: what must not appear in a message."""
    with _LOCK:
        return list(_BY_TEXT)


def _restored(handle: str) -> Query:
    if not handle:
        return NO_QUERY
    with _LOCK:
        text = _BY_HANDLE.get(handle)
    if text is None:
        text = _from_environment(handle)
    return Query(text, handle)


def _from_environment(handle: str) -> str | None:
    given = os.environ.get(VARIABLE)
    if given is None:
        return None
    try:
        text = orjson.loads(given).get(handle)
    except (orjson.JSONDecodeError, AttributeError):
        raise StorageError(f"the variable {VARIABLE} is not what storage.child_environment makes") from None
    if not isinstance(text, str):
        return None
    with _LOCK:
        _BY_TEXT[text], _BY_HANDLE[handle] = handle, text
    return text
