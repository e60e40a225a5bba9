"""What workers are asked to do: rows of a batch from samples that were read, or a whole batch out of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from headrace.errors import DamagedError, HeadraceError
from headrace.load.batch import Batch
from headrace.load.column_batch import ColumnBatch
from headrace.load.decoded import KeptSamples, Origin
from headrace.load.job import unexpected
from headrace.load.marks import Lane, Where
from headrace.load.reader import ReadAhead
from headrace.load.rows import Made, Row, condemned_row, damaged
from headrace.load.runs import LoadedRun
from headrace.load.tabled import Picked
from headrace.order import Run


@dataclass(slots=True)
class Source:
    """Where the raw sample of one row lies."""

    row: int
    epoch: int
    position: int
    number: int
    """Number of the sample in its shard."""
    run: LoadedRun
    number_kept: int | None = None
    """Its number in the cache of decoded samples; None where that is not used."""
    read: Callable[[Lane], LoadedRun] | None = None
    """Reads it alone, where its run may not have been read."""
    was_unsound: bool = False
    """Whether the cache had it damaged."""

    def keep(self, kept: KeptSamples, piece: int, reader: ReadAhead) -> None:
        """Look for it in a cache, and put it there; `piece` is where it lies, `reader` what reads the runs."""
        self.number_kept = kept.number(piece, self.number)
        run = Run(0, piece, self.number, self.number + 1, self.position, self.position + 1)
        self.read = partial(reader.load, run)

    def with_bytes(self, lane: Lane, made: Made) -> Source:
        """The same with its stored bytes, for what the cache turned out not to have, as `made` says."""
        assert self.read is not None  # it was looked for in a cache
        was_unsound = made.came is not None and made.came.origin is Origin.UNSOUND
        return replace(self, run=self.read(lane), was_unsound=was_unsound)


@dataclass(slots=True)
class Task:
    """Some rows of a batch, and whom to tell when they are done: `done(True)` after the batch's last."""

    batch: Batch
    sources: list[Source]
    done: Callable[[bool], None]
    condemned: Mapping[Where, str] = field(default_factory=dict)
    """Samples over which worker processes ended while only the cache had them."""

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return len(self.sources)

    def finish(self, made: Mapping[int, Made], keep_samples: bool) -> None:
        """What became of each row, by its number in the batch; those that are missing are not done with."""
        numbers = [source.row for source in self.sources if not made[source.row].is_missing]
        self.done(self.batch.add(numbers, [made[number] for number in numbers], keep_samples))

    def fail(self, err: BaseException) -> None:
        """None of the rows can be had."""
        error = err if isinstance(err, HeadraceError) else unexpected(err)
        self.done(self.batch.fail([source.row for source in self.sources], error))


@dataclass(slots=True)
class FromRuns:
    """A whole batch out of runs' columns, and whom to tell when it is done."""

    batch: ColumnBatch
    epoch: int
    position: int
    """Of its first row."""
    picked: Picked
    done: Callable[[bool], None]

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return self.batch.num_rows


def make_all(
    sources: Sequence[Source], condemned: Mapping[Where, str], make: Callable[[list[Row]], list[Made]], lane: Lane
) -> dict[int, Made]:
    """What becomes of each row. What the cache turns out not to have is made of its stored bytes, read in `lane`."""
    made = _make_once(sources, condemned, make)
    missing = [source for source in sources if made[source.row].is_missing]
    if missing:
        at_hand = [source.with_bytes(lane, made[source.row]) for source in missing]
        made |= _make_once(at_hand, condemned, make)
    return made


def _make_once(
    sources: Sequence[Source], condemned: Mapping[Where, str], make: Callable[[list[Row]], list[Made]]
) -> dict[int, Made]:
    rows, made = raw_rows(sources, condemned)
    made |= dict(zip([row.number for row in rows], make(rows), strict=True))
    count_unsound(sources, made)
    return made


def count_unsound(sources: Sequence[Source], made: Mapping[int, Made]) -> None:
    """Note of samples that were made from their stored bytes at last that the cache had them damaged."""
    for source in sources:
        came = made[source.row].came
        if source.was_unsound and came is not None:
            came.origin = Origin.UNSOUND


def raw_rows(sources: Sequence[Source], condemned: Mapping[Where, str]) -> tuple[list[Row], dict[int, Made]]:
    """The rows' raw samples, and what there is instead for those that are damaged or condemned."""
    rows: list[Row] = []
    lost: dict[int, Made] = {}
    for source in sources:
        run = source.run
        if run.is_unread:
            if (source.epoch, source.position) in condemned:  # the stored bytes tell its key
                lost[source.row] = Made("", None, is_missing=True)
            else:
                rows.append(Row(source.row, source.epoch, source.position, None, source.number_kept))
        elif run.opened is None or source.number in run.opened.damage:
            lost[source.row] = _lost(source)
        else:
            try:
                sample = run.opened.sample(source.number)
            except DamagedError as err:
                lost[source.row] = _lost(source, str(err))
                continue
            row = Row(source.row, source.epoch, source.position, sample, source.number_kept)
            if row.where in condemned:
                lost[source.row] = condemned_row(sample["__key__"], condemned[row.where])
            else:
                rows.append(row)
    return rows, lost


def _lost(source: Source, reason: str | None = None) -> Made:
    run = source.run
    if run.index is None or run.opened is None:
        return Made(f"{run.shard_name}:{source.number}", None, run.error)
    return damaged(run.index.key(source.number), run.shard_name, reason or run.opened.damage[source.number])
