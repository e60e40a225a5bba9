"""Calls into foreign libraries that may wait long, made in a thread that can be left behind.

A call that is in native code cannot be interrupted, and few file systems take a time limit. So such a call is made in a
daemon thread while the caller waits: Ctrl-C and the time limit then work, and a thread that hangs is left to its fate.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MOST_IDLE = 32
_IDLE: list[_Worker] = []  # append and pop are atomic


class _Worker:
    """A thread that makes one call after another, and lines up for the next when it is done."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="headrace-storage", daemon=True).start()

    def take(self, future: Future[Any], function: Callable[[], Any]) -> None:
        self._calls.put((future, function))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            _run(*call)
            del call  # or an idle thread would keep a buffer alive
            if len(_IDLE) >= _MOST_IDLE:
                return
            _IDLE.append(self)


def begin(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Make the call in another thread, now."""
    future: Future[T] = Future()
    try:
        worker = _IDLE.pop()
    except IndexError:
        worker = _Worker()
    worker.take(future, lambda: function(*args, **kwargs))
    return future


def interruptible(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns; in the main thread Ctrl-C ends the waiting at once."""
    if threading.current_thread() is not threading.main_thread():
        return function(*args, **kwargs)
    return begin(function, *args, **kwargs).result()


def limited(limit_sec: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns. Raises TimeoutError if that takes longer; the call itself is then left running."""
    return begin(function, *args, **kwargs).result(limit_sec)


os.register_at_fork(after_in_child=_IDLE.clear)  # the threads are not in the child


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as err:
        future.set_exception(err)
