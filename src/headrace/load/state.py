"""Where a loader stands, as a small JSON value that is the same on every rank and valid at other world sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import StateError

VERSION = 1
_NUMBERS = ("epoch", "position", "first_epoch")
_MAX_NUMBER = 2**53  # what JSON readers keep exactly
_WAYS_OUT = dict.fromkeys(("dataset", "samples"), "open the dataset that the state was saved with")


def check_state(state: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Refuse a state of another version, or one whose order is not this one's; the message names what differs."""
    if not isinstance(state, Mapping) or not isinstance(state.get("order"), Mapping):
        raise StateError(f"a loader's state is a dict from state_dict(): got {type(state).__name__} without an order")
    if not _same(state.get("version"), VERSION):
        raise StateError(f"this release reads loader states of version {VERSION}: got version {state.get('version')!r}")
    for name in _NUMBERS:
        value = state.get(name)
        if type(value) is not int or not 0 <= value < _MAX_NUMBER:
            raise StateError(f"a state's {name} is a whole number of at least 0: got {value!r}")
    _check_order(state["order"], order)
    _check_place(state, order)


def _check_order(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in {**ours, **saved}:
        if not _same(saved.get(name), ours.get(name)):
            way_out = _WAYS_OUT.get(name, f"set it to {saved.get(name)!r}, or start without the state")
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
