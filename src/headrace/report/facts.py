"""What a run was made with, as its record says: settings, the feed, versions and the machine, each by one name.

Values are shown to people and written into pages that are sent around, so none of them is a secret.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.report import formatting as fmt
from headrace.report.runlog import Run
from headrace.telemetry.secrets import HIDDEN, cleaned, is_secret, without_secrets

GROUPS = ("run", "configuration", "data", "feed", "versions", "machine")
"""Where facts belong, in the order in which they are shown."""

_OF_RUN = ("world_size", "global_batch_size", "mesh", "precision", "total_steps")
_LONGEST_CALL = 1000


@dataclass(frozen=True)
class Fact:
    """One setting of a run, or one property of what it ran on."""

    group: str
    """One of `GROUPS`."""
    name: str
    """What is inside of something else is joined by dots: `optimizer.lr`."""
    value: Any
    """As the record has it: a JSON value. It may be a secret; `text` is not."""

    @property
    def is_hidden(self) -> bool:
        """Whether its value is not to be shown."""
        return is_secret(self.name, self.value)

    @property
    def text(self) -> str:
        """The value for people, without secrets."""
        if self.is_hidden:
            return HIDDEN
        if self.value is None:
            return "none"
        if self.name.endswith("_bytes") and isinstance(self.value, int | float):
            return f"{self.value / 2**30:.1f} GiB" if self.value >= 2**30 else fmt.num_bytes(self.value)
        text = self.value if isinstance(self.value, str) else orjson.dumps(cleaned(self.value)).decode()
        return without_secrets(text)

    def is_same(self, other: Fact) -> bool:
        """Whether two runs agree in it; URLs whose queries alone differ, as of signed ones, are the same."""
        return self.value == other.value if self.is_hidden or other.is_hidden else self.text == other.text


def facts(run: Run) -> dict[tuple[str, str], Fact]:
    """All that the last start of a run, and its feed, say of what it was made with, by group and name."""
    start = run.attempts[-1].start if run.attempts else {}
    feed = run.feeds[-1] if run.feeds else {}
    groups: dict[str, Mapping[str, Any]] = {
        "run": {name: start[name] for name in _OF_RUN if name in start},
        "configuration": _opened(start.get("config")),
        "data": _mapping(start.get("data")),
        "feed": {name: feed[name] for name in ("threads", "processes") if feed.get(name) is not None},
        "versions": _mapping(start.get("versions")),
        "machine": _mapping(start.get("machine")),
    }
    found = [Fact(group, name, value) for group in GROUPS for name, value in _flat(groups[group])]
    return {(fact.group, fact.name): fact for fact in found}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _opened(config: Any) -> Mapping[str, Any]:
    """A configuration with the recipe's settings after the rest, and descriptions such as AdamW(lr=0.1) by argument."""
    flat = dict(_mapping(config))
    settings = _mapping(flat.pop("settings", None))
    described = {name: _called(value) if isinstance(value, str) else value for name, value in flat.items()}
    return {**described, **{f"settings.{name}": value for name, value in settings.items()}}


def _called(text: str) -> Any:
    """`AdamW(lr=0.001, eps=1e-08)` as {"": "AdamW", "lr": 0.001, "eps": 1e-08}; any other text as it is."""
    try:
        call = ast.parse(text[:_LONGEST_CALL].strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # whatever is no expression is a plain text
        return text
    if not isinstance(call, ast.Call) or call.args or not call.keywords or len(text) > _LONGEST_CALL:
        return text
    arguments = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg is not None}
    return {"": ast.unparse(call.func), **arguments}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        full = f"{prefix}.{name}" if prefix and name else f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flat(value, full)
        else:
            yield full, value
