"""What a thread of the loader process asks of its worker process, and what it does with the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.load.batch import Batch
from headrace.load.column_batch import ColumnBatch
from headrace.load.job import unexpected
from headrace.load.marks import Lane, Where
from headrace.load.row_task import RowOrder
from headrace.load.rows import Made, Row, condemned_row
from headrace.load.share_task import ShareDone, ShareOrder
from headrace.load.tasks import Task, count_unsound, raw_rows
from headrace.telemetry import Meter


class AskedRows:
    """Rows to be transformed."""

    def __init__(self, task: Task, condemned: Mapping[Where, str], keep_samples: bool, lane: Lane) -> None:
        """`condemned` are samples over which loader processes ended; `lane` is that of the thread that asks."""
        self._task, self._keep_samples, self._lane = task, keep_samples, lane
        self._rows, self._lost = raw_rows(task.sources, {**condemned, **task.condemned})
        self._condemned: dict[Where, str] = {}

    @property
    def batch(self) -> Batch:
        """The batch that they belong to."""
        return self._task.batch

    @property
    def where(self) -> Where:
        """The first of them."""
        first = self._task.sources[0]
        return first.epoch, first.position

    @property
    def num_rows(self) -> int:
        """How many."""
        return self._task.num_rows

    def order(self, condemned: Mapping[Where, str]) -> RowOrder | None:
        """What is left to be transformed."""
        self._condemned |= condemned
        left = [row for row in self._rows if row.where not in self._condemned]
        return RowOrder(left, self.batch.places) if left else None

    def finish(self, made: Sequence[Made] | None) -> Task | None:
        """The answer. Returns the rows that are to be asked for again, with their stored bytes."""
        answers = iter(made or ())
        for row in self._rows:
            why = self._condemned.get(row.where)
            self._lost[row.number] = _condemned(row, why) if why else next(answers)
        task = self._task
        count_unsound(task.sources, self._lost)
        missing = [source for source in task.sources if self._lost[source.row].is_missing]
        at_hand = [source.with_bytes(self._lane, self._lost[source.row]) for source in missing]
        task.finish(self._lost, self._keep_samples)
        return Task(task.batch, at_hand, task.done, self._condemned) if missing else None

    def fail(self, err: BaseException) -> None:
        """There will be no answer."""
        self._task.fail(err)


def _condemned(row: Row, why: str) -> Made:
    if row.sample is None:  # the stored bytes tell its key
        return Made("", None, is_missing=True)
    return condemned_row(row.sample["__key__"], why)


@dataclass(slots=True)
class ShareRows:
    """Rows of a batch that one process reads and makes, and whom to tell."""

    batch: ColumnBatch
    share: int
    order: ShareOrder
    reading: dict[int, int]
    """How many reads each share may have under way at once."""
    done: Callable[[bool], None]

    def fail(self, err: BaseException) -> None:
        """None of the rows can be had."""
        error = err if isinstance(err, HeadraceError) else unexpected(err)
        self.done(self.batch.fail(self.order.rows.tolist(), error))


class AskedShare:
    """Rows of a process's own partitions."""

    def __init__(self, task: ShareRows, condemned: Mapping[Where, str], meters: Mapping[str, Meter]) -> None:
        """`condemned` are samples over which loader processes ended."""
        self._task, self._condemned, self._meters = task, condemned, meters

    @property
    def batch(self) -> Batch:
        """The batch that they belong to."""
        return self._task.batch

    @property
    def where(self) -> Where:
        """Where the batch begins."""
        return self._task.order.epoch, self._task.order.start

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self._task.order.rows)

    def order(self, condemned: Mapping[Where, str]) -> ShareOrder:
        """All of them."""
        return self._task.order._replace(condemned={**self._condemned, **condemned})

    def finish(self, done: ShareDone) -> None:
        """The answer. Raises what says that none can be had."""
        self._task.reading[self._task.share] = done.num_reading
        for stage, reading in done.readings.items():
            self._meters[stage].add(reading.items, reading.bytes, reading.busy_sec, reading.wait_sec)
        if done.error is not None:
            raise done.error
        self._task.done(self._task.batch.add_read(done.rows, done.columns, done.others))

    def fail(self, err: BaseException) -> None:
        """There will be no answer."""
        self._task.fail(err)
