"""What workers are asked to do: rows of a batch from samples that were read, or a whole batch out of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import DamagedError, HeadraceError
from headrace.load.batch import Batch
from headrace.load.column_batch import ColumnBatch
from headrace.load.job import unexpected
from headrace.load.marks import Where
from headrace.load.reader import LoadedRun
from headrace.load.rows import Made, Row, condemned_row, damaged
from headrace.load.tabled import Part


@dataclass(slots=True)
class Source:
    """Where the raw sample of one row lies."""

    row: int
    epoch: int
    position: int
    number: int
    """Number of the sample in its shard."""
    run: LoadedRun


@dataclass(slots=True)
class Task:
    """Some rows of a batch, and whom to tell when they are done: `done(True)` after the batch's last."""

    batch: Batch
    sources: list[Source]
    done: Callable[[bool], None]

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return len(self.sources)

    def finish(self, made: Mapping[int, Made], keep_samples: bool) -> None:
        """What became of each row, by its number in the batch."""
        numbers = [source.row for source in self.sources]
        self.done(self.batch.add(numbers, [made[number] for number in numbers], keep_samples))

    def fail(self, err: BaseException) -> None:
        """None of the rows can be had."""
        error = err if isinstance(err, HeadraceError) else unexpected(err)
        self.done(self.batch.fail([source.row for source in self.sources], error))


@dataclass(slots=True)
class Parts:
    """A whole batch out of tables, and whom to tell when it is done."""

    batch: ColumnBatch
    epoch: int
    position: int
    """Of its first row."""
    parts: list[Part]
    done: Callable[[bool], None]

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return self.batch.num_rows


def raw_rows(sources: Sequence[Source], condemned: Mapping[Where, str]) -> tuple[list[Row], dict[int, Made]]:
    """The rows' raw samples, and what there is instead for those that are damaged or condemned."""
    rows: list[Row] = []
    lost: dict[int, Made] = {}
    for source in sources:
        run = source.run
        if run.opened is None or source.number in run.opened.damage:
            lost[source.row] = _lost(source)
        else:
            try:
                sample = run.opened.sample(source.number)
            except DamagedError as err:
                lost[source.row] = _lost(source, str(err))
                continue
            row = Row(source.row, source.epoch, source.position, sample)
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
