"""The second pass: records in their final order, made ready by workers, into shards; and after each shard a note.

Where a shard ends depends on the samples alone, so a pack that is continued behind any finished shard writes the same
bytes as one that was never cut off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import xxhash

from headrace.errors import SourceError
from headrace.formats import Encoded, Field, Manifest, Shard, Shards, ShardWriter, shard_name
from headrace.packing.appending import Classes
from headrace.packing.finishing import Finisher
from headrace.packing.journal import Milestone
from headrace.packing.options import Options
from headrace.packing.prepare import Made, Preparer
from headrace.packing.processes import Processes
from headrace.packing.seen import Seen
from headrace.packing.skipped import Skipped
from headrace.packing.source import BAD_SAMPLE, Bad
from headrace.packing.spool import Spool, SpoolFile
from headrace.packing.survey import Part, twice
from headrace.packing.target import Target, joined_requests
from headrace.packing.workers import in_chunks, num_threads, ordered_map, ordered_map_if_waiting
from headrace.telemetry import progress
from headrace.telemetry.progress import Advance

MOST_SAMPLES = 1 << 18
"""Of one shard: its index is in memory as a whole, while it is written and whenever it is read."""

_NOTE_SEC = 0.5
_ENTRIES_AT_ONCE = 4096

Facts = tuple[Mapping[str, Field], tuple[Skipped, ...], Mapping[str, int]]
"""Fields so far, and what was passed over and dropped since the shard before."""


class Chunk(NamedTuple):
    """Records for one worker: (offset, length) in the file."""

    file: SpoolFile
    places: Sequence[tuple[int, int]]


class DatasetWriter:
    """Writes the shards of a target from where it stands to their end."""

    def __init__(self, target: Target, spool: Spool, part: Part, seen: Seen | None, options: Options) -> None:
        """`seen` are the keys of the dataset so far, if what is made of samples may have other keys than these."""
        self._target, self._spool, self._part, self._options = target, spool, part, options
        self._seen = seen
        self._fields: dict[str, Field] = {} if target.base is None else dict(target.base.fields)
        self._skipped = part.skipped
        self._num_found = len(part.skipped)
        self._dropped: Counter[str] = Counter()
        self._shards: list[Shard] = []
        self._item = self._within = 0
        self._news: list[Skipped] = []
        self._new_drops: Counter[str] = Counter()
        self._writer: ShardWriter | None = None
        for milestone in target.milestones():
            self._take_over(milestone)
        self._num_begun = len(self._shards)

    @property
    def dropped(self) -> Counter[str]:
        """Samples that steps have left out, by the step's name."""
        return self._dropped

    def write(self, preparer: Preparer) -> None:
        """Write what is missing. Raises SourceError if no sample is left."""
        title = "packing" if self._part.name is None else f"packing {self._part.name}"
        with ExitStack() as stack:
            self._finisher = stack.enter_context(closing(Finisher()))
            stack.callback(self._abandon)
            advance = stack.enter_context(progress(title, self._spool.num_records(self._part.number), "samples"))
            advance(self._item)
            results = stack.enter_context(closing(self._prepared(preparer)))
            self._write_all(results, advance)
            self._finisher.wait()
        if not self._shards and self._target.base is None:
            raise SourceError(self._nothing_left())

    def make_ready(self, request: str, classes: Classes) -> None:
        """Note what the dataset will be."""
        base = self._target.base
        shards = [*_rows(base), *self._shards]
        manifest = Manifest(
            self._options.format.name,
            self._fields,
            Shards.of(shards),
            classes=classes.names if classes.field in self._fields else None,
            class_field=classes.field,
            request=request if base is None else joined_requests(base, request),
            skipped=len(self._skipped) + (0 if base is None else base.skipped),
            revision=1 if base is None else base.revision + 1,
        )
        self._target.make_ready(manifest, self._skipped)

    def _take_over(self, milestone: Milestone) -> None:
        self._shards.append(milestone.shard)
        self._item, self._within = milestone.item, milestone.within
        self._fields = dict(milestone.fields)
        self._dropped.update(milestone.dropped)
        for skipped in milestone.skipped:
            self._skipped.add(skipped)

    def _prepared(self, preparer: Preparer) -> Generator[list[Made], None, None]:
        chunks = _chunks(self._spool, self._part.number, self._item)
        workers = self._options.workers
        if not preparer.holds_lock:
            map_ = ordered_map if preparer.steps or preparer.loader.waits else ordered_map_if_waiting
            return map_(partial(_prepare, preparer), chunks, num_threads(preparer.loader, workers))
        processes = Processes(preparer, workers)
        return ordered_map(partial(_prepare_there, processes), chunks, workers, processes.close)

    def _write_all(self, results: Iterator[list[Made]], advance: Advance) -> None:
        rate = _Rate()
        for chunk in results:
            for made in chunk:
                self._add_made(made)
                self._item, self._within = self._item + 1, 0
            advance(len(chunk), rate.note(chunk))
        self._end_shard()

    def _add_made(self, made: Made) -> None:
        if made.error is not None:
            self._pass_over(Bad(made.key, made.error))
        elif made.dropped_by:
            self._dropped[made.dropped_by] += 1
            self._new_drops[made.dropped_by] += 1
        for number, sample in enumerate(made.samples):
            if number < self._within:
                continue  # it is in a finished shard
            try:
                self._add(sample, number)
            except BAD_SAMPLE as err:
                self._pass_over(Bad(sample.key, err))

    def _add(self, sample: Encoded, number: int) -> None:
        digest = 0 if self._seen is None else xxhash.xxh3_128_intdigest(sample.key.encode())
        if self._seen is not None and digest in self._seen:
            raise twice(sample.key)
        if self._writer is not None and self._is_full(self._writer, sample):
            self._within = number
            self._end_shard()
        if self._writer is None:
            self._writer = self._next_writer()
        self._writer.add(sample)
        if self._seen is not None:
            self._seen.add(digest)
        for name, field in sample.fields.items():
            known, join = self._fields.get(name), self._options.format.join
            if known != field or field.type == "null":
                self._fields[name] = field if known is None else join(known, field) if join else known.merged(field)

    def _is_full(self, writer: ShardWriter, sample: Encoded) -> bool:
        return writer.num_samples >= MOST_SAMPLES or writer.size_with(sample) > self._options.shard_size

    def _next_writer(self) -> ShardWriter:
        format_ = self._options.format
        assert format_.writer is not None  # it is a written format
        name = shard_name(self._target.first_shard + self._num_begun, format_.suffix)
        writer = format_.writer(self._target.shard_path(name), dict(self._fields))
        self._num_begun += 1
        return writer

    def _end_shard(self) -> None:
        """Have the shard ended, if one is begun; the next one begins with the sample at hand."""
        writer = self._writer
        if writer is None or not writer.num_samples:
            return
        if writer.fields is not None:
            self._fields = dict(writer.fields)
        facts = (dict(self._fields), tuple(self._news), dict(self._new_drops))
        self._finisher.submit(writer, partial(self._keep, self._item, self._within, facts))
        self._writer = None
        self._news, self._new_drops = [], Counter()

    def _keep(self, item: int, within: int, facts: Facts, shard: Shard) -> None:
        self._target.keep(Milestone(item, within, shard, *facts))
        self._shards.append(shard)

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()

    def _pass_over(self, bad: Bad) -> None:
        if self._options.on_error == "raise":
            raise bad.raised() from bad.error
        skipped = Skipped(bad.key, str(bad.error))
        self._skipped.add(skipped)
        self._news.append(skipped)

    def _nothing_left(self) -> str:
        num_broken, num_dropped = len(self._skipped), sum(self._dropped.values())
        total = self._spool.num_records(self._part.number) + self._num_found
        first = f" (the first: {self._skipped.first.reason})" if self._skipped.first else ""
        by = " and ".join(sorted(self._dropped))
        rest = f" and {by} dropped the rest" if num_dropped else ""
        return f"nothing is left to pack: of {total:,} samples {num_broken:,} are broken{first}{rest}"


class _Rate:
    """How fast samples come, for the progress bar: over the last half second or more."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._num_samples = self._num_bytes = 0

    def note(self, chunk: Sequence[Made]) -> str:
        """The rate in words, now and then; else nothing."""
        self._num_samples += len(chunk)
        self._num_bytes += sum(len(sample.blob) for made in chunk for sample in made.samples)
        seconds = time.perf_counter() - self._began
        if seconds < _NOTE_SEC:
            return ""
        note = f"{self._num_samples / seconds:,.0f}/s, {self._num_bytes / seconds / 1e6:,.1f} MB/s"
        self._began, self._num_samples, self._num_bytes = time.perf_counter(), 0, 0
        return note


def _chunks(spool: Spool, part: int, first: int) -> Iterator[tuple[Chunk, int]]:
    """The records of a part from number `first` on, in lists for one worker each, with their bytes in memory."""
    for file, entries in spool.runs(part, first):
        for at in range(0, len(entries), _ENTRIES_AT_ONCE):
            rows = entries[at : at + _ENTRIES_AT_ONCE]
            places = zip(rows["offset"].tolist(), rows["length"].tolist(), rows["size"].tolist(), strict=True)
            for chunk, num_bytes in in_chunks(places, itemgetter(2)):
                yield Chunk(file, [(offset, length) for offset, length, _ in chunk]), num_bytes


def _prepare(preparer: Preparer, chunk: Chunk) -> list[Made]:
    return [preparer(*chunk.file.record(*place)) for place in chunk.places]


def _prepare_there(processes: Processes, chunk: Chunk) -> list[Made]:
    return processes.prepare([chunk.file.record(*place) for place in chunk.places])


def _rows(base: Manifest | None) -> list[Shard]:
    return [] if base is None else [base.shards.row(k) for k in range(len(base.shards))]
