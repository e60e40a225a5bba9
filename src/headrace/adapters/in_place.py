"""Timing what another library calls by itself: its methods and its loaders, in place, and undone afterwards.

A library that holds a loader, or asks an object of its own to save, has no hook before and after. So the object's
method is replaced on that object alone, and the loader gets a class of its own below its former one: to whoever asks it
is still what it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from headrace.errors import OptionError

B = TypeVar("B")

_MARK = "_headrace_times_it"


class TimedBatches(Generic[B]):
    """An iterator whose `next` is timed; whatever else it has is its own."""

    def __init__(self, batches: Iterator[B], waited: Callable[[float], None]) -> None:
        self._batches, self._waited = batches, waited

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._waited(time.perf_counter() - began)

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._batches, name)


def timed(batches: Iterator[B], waited: Callable[[float], None]) -> TimedBatches[B]:
    """The iterator, timed; one that is, stays as it is."""
    return batches if isinstance(batches, TimedBatches) else TimedBatches(batches, waited)


def time_from_now_on(loader: Any, waited: Callable[[float], None], undo: ExitStack) -> None:
    """`timed_loader`, until `undo` is closed; nothing for a loader that is timed, or is an iterator itself."""
    if not isinstance(loader, Iterator) and not hasattr(type(loader), _MARK):
        undo.enter_context(timed_loader(loader, waited))


@contextmanager
def timed_loader(loader: Any, waited: Callable[[float], None]) -> Iterator[None]:
    """Have `waited` told of each `next` of a loader that somebody else iterates, from the next iteration on.

    Raises OptionError for an object that no class can be made for.
    """
    kind = type(loader)

    def batches(self: Any) -> TimedBatches[Any]:
        return TimedBatches(iter(kind.__iter__(self)), waited)

    try:
        loader.__class__ = type(
            kind.__name__, (kind,), {"__iter__": batches, "__module__": kind.__module__, _MARK: True}
        )
    except TypeError as err:
        raise OptionError(
            f"a {kind.__name__} cannot be watched from within a loop: give the loop a DataLoader, or an object of a "
            "class written in Python that iterates it"
        ) from err
    try:
        yield
    finally:
        loader.__class__ = kind


@contextmanager
def replaced(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """Have each call of a method of `owner` become `by(method, *arguments)`."""
    method, before = getattr(owner, name), vars(owner).get(name)

    def called(*arguments: Any, **named: Any) -> Any:
        return by(method, *arguments, **named)

    setattr(owner, name, called)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def around(owner: Any, name: str, context: Callable[..., AbstractContextManager[Any]]) -> AbstractContextManager[None]:
    """Have each call of a method of `owner` lie within `context(*arguments)`."""

    def within(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with context(*arguments, **named):
            return method(*arguments, **named)

    return replaced(owner, name, within)
