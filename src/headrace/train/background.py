"""One piece of work at a time in a thread beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a function in a thread; its result, or its error, is fetched by `wait`.

    A daemon: a thread that waits for a peer that hangs must not keep a failed process from ending.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: list[T] = []
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the work has ended with an error that was not fetched yet."""
        return self._error is not None

    @property
    def is_under_way(self) -> bool:
        """Whether something was begun that was not fetched yet."""
        return self._thread is not None

    @property
    def is_done(self) -> bool:
        """Whether there is a result to be fetched."""
        return bool(self._result)

    def begin(self, work: Callable[[], T], name: str) -> None:
        """Start it; what was begun before has been fetched. `name` is the thread's."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def wait(self, timeout_sec: float | None = None) -> T | None:
        """The result of what was begun, or its error, raised; None if there is none, or not after so many seconds."""
        if self._thread is None:
            return None
        self._thread.join(timeout_sec)
        if self._thread.is_alive():
            return None
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._result.pop()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._result.append(work())
        except BaseException as err:
            self._error = err
