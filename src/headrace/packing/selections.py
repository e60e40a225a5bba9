"""Which samples are packed: those that pass conditions, one of each content, a share of all or of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from headrace.errors import OptionError, SourceError
from headrace.formats import key_hash
from headrace.order.keyed import derive_key
from headrace.packing.pipeline import Selection
from headrace.packing.seen import Seen
from headrace.packing.source import Sample
from headrace.packing.steps import Fill, Require, Where
from headrace.storage import quoted

_MAX_STRATA = 1_000_000
_MAX_NAMES = 1000  # of fields, to be shown
_MAX_NAME = 64  # bytes of a value by which its stratum is named; longer ones by their hash


class Filtered(Selection):
    """Keeps what passes every condition, seen with missing values filled in."""

    title = "where and require"

    def __init__(self, conditions: Sequence[Fill | Where | Require]) -> None:
        self._conditions = tuple(conditions)
        filled = {name for condition in conditions if isinstance(condition, Fill) for name, _ in condition.values}
        asked = {name for condition in conditions if not isinstance(condition, Fill) for name in condition.fields}
        self.fields = frozenset(asked - filled - {"__key__"})
        self.unseen: set[str] = set(self.fields)
        self.seen: set[str] = set()

    def __repr__(self) -> str:
        return f"Filtered(conditions={self._conditions!r})"

    def examine(self, key: str, sample: Sample | None) -> bool:
        """Whether it passes. Raises TransformError where values do not fit a condition."""
        assert sample is not None
        if self.unseen:
            self._note(sample)
        for condition in self._conditions:
            sample = condition(sample)
            if sample is None:
                return False
        return True

    def keeps(self, key: str, examined: Any) -> bool:
        return bool(examined)

    def _note(self, sample: Sample) -> None:
        self.unseen.difference_update(sample)
        if len(self.seen) < _MAX_NAMES:
            self.seen.update(name for name in sample if isinstance(name, str) and name != "__key__")


class Deduplicated(Selection):
    """Keeps the first sample, in the source's order, of each content, byte for byte."""

    title = "dedup"

    def __init__(self, fields: Sequence[str] | None, folder: Path) -> None:
        """`fields` are those that count; None: all but the key. Digests beyond memory go to files in `folder`."""
        self._fields = None if fields is None else tuple(fields)
        self.fields = frozenset(self._fields or ()) - {"__key__"}
        self._seen = Seen(folder)

    def __repr__(self) -> str:
        return f"Deduplicated({self._fields})"

    def examine(self, key: str, sample: Sample | None) -> int:
        """The content's digest. Raises SourceError for a sample without one of the fields that count."""
        assert sample is not None
        names = sorted(name for name in sample if name != "__key__") if self._fields is None else self._fields
        digest = xxhash.xxh3_128()
        for name in names:
            if name not in sample:
                raise SourceError(f"sample {quoted(key)} has no field {name!r} to compare; it has {sorted(sample)}")
            kind, data = _content(sample[name])
            digest.update(orjson.dumps([name, kind, len(data)]))
            digest.update(data)
        return digest.intdigest()

    def keeps(self, key: str, examined: Any) -> bool:
        return self._seen.add(examined)

    def close(self) -> None:
        self._seen.close()


class Sampled(Selection):
    """Keeps a share of all samples, or of those with each value of a field.

    A share of 0.1 is one of every ten in the source's order, drawn by the seed; so of any number of samples that are
    looked through, and of any stratum, the share kept is exact to one sample.
    """

    title = "sample"

    def __init__(self, fraction: float, seed: int, stratify: str | None = None) -> None:
        """0 < fraction <= 1; `stratify` is the field whose every value keeps the same share."""
        if not isinstance(fraction, int | float) or not (math.isfinite(fraction) and 0 < fraction <= 1):
            raise OptionError(f"sample must be a fraction over 0 and at most 1: got {fraction!r}")
        self._fraction, self._seed, self._stratify = float(fraction), seed, stratify
        # One is drawn of each run of 1 / share, so that runs have two samples at least; above a half, to be left out.
        self._draws_kept = self._fraction <= 0.5
        self._share = self._fraction if self._draws_kept else 1 - self._fraction
        self.needs_sample = stratify is not None
        self.fields = frozenset() if stratify is None else frozenset({stratify}) - {"__key__"}
        self._strata: dict[str, _Stratum] = {}

    def __repr__(self) -> str:
        return f"Sampled({self._fraction}, {self._seed}, {self._stratify!r})"

    def examine(self, key: str, sample: Sample | None) -> str:
        """The stratum. Raises SourceError for a sample without the field."""
        if self._stratify is None:
            return ""
        assert sample is not None
        if self._stratify not in sample:
            raise SourceError(
                f"sample {quoted(key)} has no field {self._stratify!r} to stratify by; it has {sorted(sample)}"
            )
        kind, data = _content(sample[self._stratify])
        return f"{kind} {xxhash.xxh3_128_hexdigest(data)}" if len(data) > _MAX_NAME else f"{kind} {data!r}"

    def keeps(self, key: str, examined: Any) -> bool:
        stratum = self._strata.get(examined)
        if stratum is None:
            if len(self._strata) >= _MAX_STRATA:
                raise OptionError(
                    f"the field {self._stratify!r} has over {_MAX_STRATA:,} values: stratify by one with fewer"
                )
            stratum = self._strata[examined] = _Stratum(derive_key(self._seed, key_hash(examined)))
        return stratum.draws(self._share) == self._draws_kept


@dataclass(slots=True)
class _Stratum:
    """Samples counted off in runs of 1 / share, of each of which one is drawn."""

    key: int
    number: int = 0
    """Samples so far."""
    run: int = 0
    """Runs begun so far."""
    end: int = 0
    """The first sample behind the run."""
    drawn: int = -1

    def draws(self, share: float) -> bool:
        """Whether the next sample is the one of its run."""
        if share == 0:
            return False
        if self.number == self.end:
            start, self.run = self.end, self.run + 1
            self.end = math.floor(self.run / share)
            self.drawn = start + derive_key(self.key, self.run) % (self.end - start)
        self.number += 1
        return self.number - 1 == self.drawn


def _content(value: Any) -> tuple[str, bytes]:
    """What a value is and its bytes: equal for equal values of one type alone."""
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", bytes(value)
    if isinstance(value, str):
        return "str", value.encode("utf-8", "surrogatepass")
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes()
    try:
        return "json", orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS)
    except TypeError:
        return type(value).__name__, repr(value).encode("utf-8", "backslashreplace")
