"""When an alarm rings, and who is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from headrace.alarms.webhook import check_webhook, shown_webhook
from headrace.errors import OptionError

_SHARES = ("au_below", "throughput_below")
_SPANS = ("au_minutes", "throughput_minutes", "no_step_sec", "memory_hours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """When a run rings: a line in the log, an `alarm` event in its record, and a webhook, if there is one.

    Each rule rings once, and again only after it was quiet. None turns a rule off. Raises OptionError for values that
    cannot work.

    >>> Alarms(au_below=0.7, au_minutes=10).au_minutes
    10
    """

    au_below: float | None = 0.5
    """Rings when accelerator utilization over `au_minutes` is below this share, above 0 up to 1."""
    au_minutes: float = 5.0
    """Minutes over which it is taken, above 0."""
    throughput_below: float | None = 0.5
    """Rings when samples/s over `throughput_minutes` are below this share of what was usual in the 30 times as long
    before; above 0 up to 1."""
    throughput_minutes: float = 2.0
    """Minutes over which it is taken, above 0."""
    spike_score: float | None = 10.0
    """Rings when the loss is more than so many robust standard deviations above the median of the latest 128 steps;
    above 0."""
    straggler_ratio: float | None = 1.5
    """Rings when a rank takes more than so many times the ranks' median for its own part of a step; at least 1."""
    no_step_sec: float | None = 600.0
    """Rings when no step, evaluation or checkpoint ended for so many seconds, above 0; for three times as long before
    the first step, and not before three times the longest such time so far."""
    disk_free_bytes: int | None = 2_000_000_000
    """Rings when the disk of the run's folder has fewer bytes to give, or fewer than one and a half of the latest
    checkpoint there; at least 1."""
    memory_hours: float | None = 12.0
    """Rings when the memory of the process and those that it started grows so steadily that what the machine has left
    is used up in less than so many hours, above 0; looked at over half an hour."""
    webhook: str | None = field(default=None, repr=False)
    """A URL to which each alarm is sent as JSON by POST: https, or http on this machine."""
    plain_http: bool = False
    """Whether the webhook may be http on another machine, readable by whoever is in between."""

    def __post_init__(self) -> None:
        for name in _SHARES:
            if (share := getattr(self, name)) is not None and not (_is_number(share) and 0 < share <= 1):
                raise OptionError(f"{name} must be above 0 and at most 1, or None: got {share!r}")
        for name in _SPANS:
            span = getattr(self, name)
            optional = name in ("no_step_sec", "memory_hours")
            if not (span is None and optional) and not (_is_number(span) and 0 < span < math.inf):
                raise OptionError(f"{name} must be above 0{', or None' if optional else ''}: got {span!r}")
        if self.spike_score is not None and not (_is_number(self.spike_score) and 0 < self.spike_score < math.inf):
            raise OptionError(f"spike_score must be above 0, or None: got {self.spike_score!r}")
        ratio = self.straggler_ratio
        if ratio is not None and not (_is_number(ratio) and 1 <= ratio < math.inf):
            raise OptionError(f"straggler_ratio must be at least 1, or None: got {ratio!r}")
        if self.disk_free_bytes is not None and not (type(self.disk_free_bytes) is int and self.disk_free_bytes >= 1):
            raise OptionError(
                f"disk_free_bytes must be a whole number of at least 1, or None: got {self.disk_free_bytes!r}"
            )
        if self.webhook is not None:
            check_webhook(self.webhook, self.plain_http)

    def described(self) -> dict[str, Any]:
        """What the record of a run says of it, as JSON values: of the webhook its scheme and host alone."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return values | {"webhook": None if self.webhook is None else shown_webhook(self.webhook)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
