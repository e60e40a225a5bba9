"""The first pass: look through the source once, choose, deal samples into splits, and note each in the spool.

Samples are dealt into splits, and shuffled, by hashes of their keys. So both depend on nothing but the keys: the same
source gives the same shards on every machine, and a sample stays in its split when others are added.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash

from headrace.errors import SourceError
from headrace.packing.appending import digest_of, note_keys
from headrace.packing.fields import unseen_fields
from headrace.packing.options import Options
from headrace.packing.pipeline import Selection, name_of
from headrace.packing.seen import Seen
from headrace.packing.skipped import Skipped, SkippedList
from headrace.packing.source import BAD_SAMPLE, Bad, Loader, Source
from headrace.packing.spool import Record, Spool
from headrace.packing.workers import in_chunks, num_threads, ordered_map
from headrace.storage import Place, quoted
from headrace.telemetry import progress

_FRACTION_STEPS = 2**53  # what a float holds, so that no hash rounds up to 1
_FRACTION_SHIFT = 64 - 53
_SHUFFLE = 0x9E3779B97F4A7C15  # keeps the hashes that shuffle apart from those that split, which have seed 0


@dataclass(frozen=True, slots=True)
class Part:
    """What of a source goes into one dataset."""

    number: int
    name: str | None
    """Of the split; None for the whole source."""
    skipped: SkippedList
    """What was found broken while looking through the source."""


class Survey:
    """What one pass over a source found. Its records are read from `spool`, part by part, in their final order."""

    def __init__(self, source: Source, options: Options, scratch: Path, bases: Sequence[Place] = ()) -> None:
        """Looks through the source; temporary files lie in `scratch`. `bases` are datasets that are appended to.

        Raises SourceError if nothing is left or a part of a split would be empty, and what a broken sample raises,
        unless those are to be skipped.
        """
        self._source, self._options = source, options
        names: Sequence[str | None] = [None] if options.split is None else list(options.split)
        self.parts = [Part(number, name, SkippedList(scratch)) for number, name in enumerate(names)]
        self.dropped: Counter[str] = Counter()
        """Samples that selections left out, by the selection's name."""
        self.clash: Bad | None = None
        """The first sample whose key a dataset that is appended to has already."""
        self.spool = Spool(scratch, len(names), scatter=options.shuffle)
        self._deal = _Dealer(options.split)
        try:
            with closing(Seen(scratch)) as seen, closing(Seen(scratch)) as taken:
                # What steps make of a sample may have another key: then that one must be new, and the writer looks.
                for base in bases if not options.steps else ():
                    note_keys(taken, base)
                self._look_through(seen, taken)
            self.spool.seal()
            if not bases:
                self._check_parts()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the temporary files."""
        self.spool.close()
        for part in self.parts:
            part.skipped.close()

    @property
    def num_records(self) -> int:
        """How many samples go into all parts."""
        return sum(self.spool.num_records(part.number) for part in self.parts)

    def _look_through(self, seen: Seen, taken: Seen) -> None:
        seed = (self._options.seed ^ _SHUFFLE) % 2**64
        total = self._source.num_records
        with progress("reading", total, "samples") as advance:
            for record in self._chosen(self._source.records()):
                advance()
                if isinstance(record, Bad):
                    self._pass_over(record)
                elif not seen.add(digest := digest_of(record.key)):
                    self._pass_over(Bad(record.key, twice(record.key)))
                elif digest in taken:
                    self._note_clash(Bad(record.key, already_there(record.key)))
                else:
                    order_hash = xxhash.xxh3_64_intdigest(record.key.encode(), seed)
                    self.spool.add(self._deal(record.key), order_hash, record)

    def _chosen(self, records: Iterator[Record | Bad]) -> Iterator[Record | Bad]:
        """The records that every selection keeps, and what is broken."""
        selections = self._options.selections
        if not selections:
            yield from records
            return
        needs_sample = any(selection.needs_sample for selection in selections)
        examine = partial(_examined, selections=selections, loader=self._source.loader if needs_sample else None)
        workers = num_threads(self._source.loader, self._options.workers) if needs_sample else 0
        chunks = in_chunks(records, _memory_of)
        for examined in ordered_map(lambda chunk: [examine(record) for record in chunk], chunks, workers):
            for record, facts in examined:
                if isinstance(record, Bad):
                    yield record
                elif (dropped_by := _dropped_by(selections, record.key, facts)) is not None:
                    self.dropped[dropped_by] += 1
                else:
                    yield record

    def _pass_over(self, bad: Bad) -> None:
        if self._options.on_error == "raise":
            raise bad.raised() from bad.error
        self.parts[self._deal(bad.key)].skipped.add(Skipped(bad.key, str(bad.error)))

    def _note_clash(self, bad: Bad) -> None:
        # Whether the same was appended before is known when all of the source is: then it is no error.
        self.clash = self.clash or bad
        if self._options.on_error == "skip":
            self._pass_over(bad)

    def _check_parts(self) -> None:
        for part in self.parts:
            if not self.spool.num_records(part.number):
                raise SourceError(self._nothing_in(part))

    def _nothing_in(self, part: Part) -> str:
        num_bad, num_dropped = sum(len(each.skipped) for each in self.parts), sum(self.dropped.values())
        total = self.num_records
        if total:
            return (
                f"split {part.name!r} would be empty: none of {total:,} samples has its hash there; give more samples "
                "or a larger fraction"
            )
        first = next((each.skipped.first for each in self.parts if each.skipped.first), None)
        found = [f"{num_bad:,} are broken (the first: {first.reason})"] if first else []
        found += [f"{count:,} are left out by {name}" for name, count in sorted(self.dropped.items())]
        unseen = unseen_fields(self._options.selections)
        why = " and ".join(found) + (f"; {unseen}" if unseen else "")
        return f"nothing is left to pack: of {num_bad + num_dropped:,} samples {why}"


def twice(key: str) -> SourceError:
    """What a key that is there twice is."""
    return SourceError(f"the key {quoted(key)} is there twice: give every sample a `__key__` of its own")


def already_there(key: str) -> SourceError:
    """What a key is that the dataset has already, to which samples are appended."""
    return SourceError(f"the key {quoted(key)} is in the dataset already: append samples of other keys")


def _examined(
    record: Record | Bad, *, selections: Sequence[Selection], loader: Loader | None
) -> tuple[Record | Bad, Sequence[Any]]:
    """A record, and what each selection has to know of it."""
    if isinstance(record, Bad):
        return record, ()
    try:
        sample = loader.load(record.key, record.payload) if loader is not None else None
        return record, [selection.examine(record.key, sample) for selection in selections]
    except BAD_SAMPLE as err:
        return Bad(record.key, err), ()


def _dropped_by(selections: Iterable[Selection], key: str, facts: Iterable[Any]) -> str | None:
    for selection, examined in zip(selections, facts, strict=True):
        if not selection.keeps(key, examined):
            return name_of(selection)
    return None


def _memory_of(record: Record | Bad) -> int:
    return record.size if isinstance(record, Record) else 0


class _Dealer:
    """The number of the part that a key belongs to: hashes are fractions of all, and parts are ranges of them."""

    def __init__(self, split: Mapping[str, float] | None) -> None:
        # Whatever the sum's last bits are, every hash is below the last bound.
        self._bounds = [] if split is None else [*accumulate(split.values())][:-1]

    def __call__(self, key: str) -> int:
        if not self._bounds:
            return 0
        # Keys of broken names may hold what is not UTF-8.
        hashed = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
        return bisect_right(self._bounds, (hashed >> _FRACTION_SHIFT) / _FRACTION_STEPS)
