"""Trying again, with pauses drawn at random, until a deadline for the whole operation.

The first attempt may use all the time there is; a later one the largest of 1/2, 1/4, 1/8 and 1/16 of it that is still
left, so that an operation never outlives its deadline and the store's clients need only be made for a few time limits.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from headrace.errors import OptionError, StorageError
from headrace.storage.place import Place
from headrace.storage.store import Failure, Trouble

T = TypeVar("T")

VARIABLE = "HEADRACE_STORAGE_TIMEOUT_SEC"
DEFAULT_TIMEOUT_SEC = 60.0
_FIRST_PAUSE_SEC = 0.1
_LONGEST_PAUSE_SEC = 5.0
_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)


def _from_environment() -> float:
    given = os.environ.get(VARIABLE)
    if given is None:
        return DEFAULT_TIMEOUT_SEC
    try:
        return float(given)
    except ValueError:
        raise OptionError(f"{VARIABLE} must be a number of seconds above 0: got {given!r}") from None


@dataclass(frozen=True)
class ReadOptions:
    """How patient an operation on a store is."""

    timeout_sec: float | None = None
    """Seconds that one operation may take in all, retries and pauses included; above 0. None: the environment variable
    HEADRACE_STORAGE_TIMEOUT_SEC, else 60. Uploads and writes in parts may take it for each part."""

    def seconds(self) -> float:
        """The deadline in force. Raises OptionError for one that is not a positive number."""
        seconds = _from_environment() if self.timeout_sec is None else self.timeout_sec
        if not (seconds > 0 and math.isfinite(seconds)):
            raise OptionError(f"timeout_sec must be a number of seconds above 0: got {seconds}")
        return float(seconds)


DEFAULT = ReadOptions()


def persist(action: str, place: Place, options: ReadOptions | None, once: Callable[[float], T]) -> T:
    """What `once(limit_sec)` returns, tried again while it raises Trouble and there is time.

    Raises the error of its last failure; one line that says what was tried and the last cause.
    """
    timeout = (options or DEFAULT).seconds()
    started, limit, attempts = time.monotonic(), timeout, 0
    while True:
        attempts += 1
        try:
            return once(limit)
        except Trouble as trouble:
            last = str(trouble)
        except Failure as failure:
            raise failure.error(action, place) from None
        pause = _pause(attempts)
        limit = _limit(timeout, timeout - (time.monotonic() - started) - pause)
        if not limit:
            break
        time.sleep(pause)
    seconds = time.monotonic() - started
    raise StorageError(
        f"cannot {action} {place}: gave up after {seconds:.3g} s and {attempts} attempts, the last cause: {last}; "
        f"see whether the store is up, or set {VARIABLE} above {timeout:g}"
    )


def _limit(timeout: float, left: float) -> float:
    return next((timeout * share for share in _SHARES if timeout * share <= left), 0.0)


def _pause(attempts: int) -> float:
    longest = min(_LONGEST_PAUSE_SEC, _FIRST_PAUSE_SEC * 2.0 ** min(attempts - 1, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # so that many readers do not come back all at once
