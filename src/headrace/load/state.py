"""Where a loader stands, as a small JSON value that is the same on every rank and valid at other world sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import StateError

VERSION = 1
_NUMBERS = ("epoch", "position", "first_epoch")
_MAX_NUMBER = 2**53  # what JSON readers keep exactly
MAX_PARTITIONS = 1 << 20
_WAYS_OUT = {"dataset": "open the dataset that the state was saved with"}


def check_state(state: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Refuse a state of another version, or one whose order is not this one's; the message names what differs."""
    if not isinstance(state, Mapping) or not isinstance(state.get("order"), Mapping):
        raise StateError(f"a loader's state is a dict from state_dict(): got {type(state).__name__} without an order")
    if "num_workers" in state:
        raise StateError(
            "a headrace.Loader resumes from its own state_dict(): got the state of a stream in a DataLoader"
        )
    _check_version(state)
    _check_numbers(state, _NUMBERS)
    _check_order(state["order"], order)
    _check_place(state, order)


def check_samples_state(state: Mapping[str, Any], numbers: tuple[str, ...], order: Mapping[str, Any]) -> None:
    """Refuse what is no state of a stream inside a DataLoader with these numbers, or has another order."""
    if not isinstance(state, Mapping) or not isinstance(state.get("order"), Mapping) or not {*numbers} <= state.keys():
        shown = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise StateError(
            f"a stream's state in a DataLoader has the parts order, {', '.join(numbers)}: got {shown}; the state of a "
            "headrace.Loader is for a headrace.Loader"
        )
    _check_version(state)
    _check_numbers(state, numbers)
    _check_order(state["order"], order)


def check_same(name: str, saved: int, ours: int, way_out: str) -> None:
    """Refuse a state that holds at another number of ranks or workers only."""
    if saved != ours:
        raise StateError(
            f"inside a DataLoader a state holds for the {name} it was saved with, {saved}: got {ours}; {way_out}, or "
            "use headrace.Loader, whose state holds for others"
        )


def partitions_of(state: Mapping[str, Any]) -> int | None:
    """The partitions that a state was saved with, to be adopted; None if it does not say."""
    order = state.get("order") if isinstance(state, Mapping) else None
    partitions = order.get("partitions") if isinstance(order, Mapping) else None
    return partitions if type(partitions) is int and 0 < partitions <= MAX_PARTITIONS else None


def _check_version(state: Mapping[str, Any]) -> None:
    if not _same(state.get("version"), VERSION):
        raise StateError(f"this release reads loader states of version {VERSION}: got version {state.get('version')!r}")


def _check_numbers(state: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = state.get(name)
        if type(value) is not int or not 0 <= value < _MAX_NUMBER:
            raise StateError(f"a state's {name} is a whole number of at least 0: got {value!r}")


def _check_order(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in {**ours, **saved}:
        if not _same(saved.get(name), ours.get(name)):
            # Of one dataset there are as many samples as there are; only a mixture's epoch is as long as one likes.
            option = "samples_per_epoch" if name == "samples" else "it"
            way_out = _WAYS_OUT.get(name, f"set {option} to {saved.get(name)!r}, or start without the state")
            raise StateError(
                f"the state was saved with {name}={saved.get(name)!r}, but here it is {ours.get(name)!r}: {way_out}"
            )


def _check_place(state: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    position, batch, samples = state["position"], order["global_batch_size"], order["samples"]
    if position % batch or position > samples:
        raise StateError(
            f"a state's position is a multiple of the global batch size within an epoch of {samples:,} samples: got "
            f"{position:,} for batches of {batch:,}; it was not saved by state_dict()"
        )
    if state["first_epoch"] > state["epoch"]:
        raise StateError(
            f"a state's first_epoch is at most its epoch: got {state['first_epoch']} and {state['epoch']}; it was not "
            "saved by state_dict()"
        )


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)
