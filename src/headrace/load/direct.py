"""Samples that nothing is done to: read from the disk to their places in the batch, without a copy on the way.

The page cache is what reads ahead: it is asked for runs in the order of first need, a bounded way ahead. So a large
sample passes memory once, where a buffer of ours, filled early and emptied late, would cost as much again.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headrace.dataset import Dataset, Joined, open_run
from headrace.errors import DamagedError, HeadraceError
from headrace.formats import ShardIndex, sample_checksum
from headrace.load.batch import WORD, Batch, Stored
from headrace.load.fields import Specs
from headrace.load.files import OpenFiles
from headrace.load.job import Blob, Job, unexpected
from headrace.load.marks import Lane
from headrace.load.reader import PlannedRun
from headrace.load.rows import Chain, Made, Row, damaged, make_rows
from headrace.order import Run
from headrace.storage import File
from headrace.telemetry import Meter

LEAST_SAMPLE_BYTES = 16 << 10
"""Smaller ones cost less where many are read by one call."""

_MOST_PIECES = 128


@dataclass(slots=True)
class Rows:
    """Some rows of a batch, and whom to tell when they are done: `done(True)` after the batch's last."""

    batch: Batch
    first: int
    epoch: int
    positions: list[int]
    pieces: list[int]
    samples: list[int]
    done: Callable[[bool], None]


def reads_directly(job: Job, specs: Specs | None) -> bool:
    """Whether a job's samples go into batches as they are stored, from the local disk."""
    if specs is None or any(spec is not None for spec in specs.values()):
        return False
    if job.ops or job.collate is not None or job.processes > 1 or job.suspects or job.condemned:
        return False
    dataset, pieces = job.dataset, job.dataset.pieces
    if dataset.is_remote or pieces.is_whole.any() or int(pieces.bytes.sum()) < LEAST_SAMPLE_BYTES * len(dataset):
        return False
    try:
        layout = dataset.piece(0).layout
    except HeadraceError:  # told when it is read
        return False
    return layout is not None and layout.fields.keys() == specs.keys()


@dataclass(frozen=True, slots=True)
class _Piece:
    """What reading a piece's samples takes; plain Python numbers come out of memoryviews."""

    index: ShardIndex
    file: File
    shard_name: str
    spans: tuple[memoryview, memoryview, memoryview] | None
    """Offset, length and checksum of each sample; None where its fields have no places known beforehand."""
    fields: tuple[tuple[str, memoryview, memoryview], ...] = ()
    """Each field's name, and its place in each sample."""


class DirectReader:
    """Reads rows. Thread-safe."""

    def __init__(self, dataset: Dataset | Joined, chain: Chain, meters: dict[str, Meter]) -> None:
        self._dataset, self._chain, self._meters = dataset, chain, meters
        self._names = tuple(chain.specs or ())
        self._files = OpenFiles(dataset)
        self._pieces: OrderedDict[int, _Piece] = OrderedDict()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Open shards anew from here on: one may have been restored since. For when nothing is being read."""
        self._pieces.clear()
        self._files.close()

    def read(self, rows: Rows, lane: Lane) -> bool:
        """Fill the rows of a batch. True after the batch's last."""
        numbers = range(rows.first, rows.first + len(rows.positions))
        lane.mark(rows.epoch, rows.positions[0])
        try:
            made, stored = self._read(rows, lane)
            return rows.batch.add(numbers, made, keep_samples=False, stored=stored)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            return rows.batch.fail(numbers, err if isinstance(err, HeadraceError) else unexpected(err))
        finally:
            lane.clear()

    def _read(self, rows: Rows, lane: Lane) -> tuple[list[Made], list[Stored]]:
        pieces = [self._piece(piece) for piece in rows.pieces]
        lengths = [_length(piece, i) for piece, i in zip(pieces, rows.samples, strict=True)]
        begin, area = rows.batch.slot.allocate(sum(map(_padded, lengths)))
        view, at = area.data, 0
        made: list[Made] = []
        stored: list[Stored] = []
        verify_sec, began = 0.0, time.perf_counter()
        for number, piece, i, length in zip(itertools.count(), pieces, rows.samples, lengths, strict=False):
            if isinstance(piece, HeadraceError) or piece.spans is None:
                made.append(self._made(piece, rows, number, lane))
                stored.append({})
                continue
            one, places, seconds = _place(piece, i, view[at : at + length], begin + at)
            made.append(one)
            stored.append(places)
            verify_sec += seconds
            at += _padded(length)
        read_sec = time.perf_counter() - began - verify_sec
        self._meters["read"].add(items=len(made), num_bytes=sum(lengths), busy_sec=read_sec)
        self._meters["verify"].add(items=len(made), num_bytes=sum(lengths), busy_sec=verify_sec)
        return made, stored

    def _made(self, piece: _Piece | HeadraceError, rows: Rows, number: int, lane: Lane) -> Made:
        """A row whose sample is read into memory of its own, as any other."""
        if isinstance(piece, HeadraceError):
            shard = self._dataset.pieces.place(rows.pieces[number])[0]
            return Made(f"{self._dataset.shard_name(shard)}:{rows.samples[number]}", None, piece)
        i = rows.samples[number]
        try:
            opened = open_run(piece.file, piece.index, i, i + 1)
            if i in opened.damage:
                return damaged(piece.index.key(i), piece.shard_name, opened.damage[i])
            sample = opened.sample(i)
        except DamagedError as err:
            return damaged(piece.index.key(i), piece.shard_name, str(err))
        row = Row(rows.first + number, rows.epoch, rows.positions[number], sample)
        return make_rows(self._chain, [row], {}, lane)[0]

    def _piece(self, piece: int) -> _Piece | HeadraceError:
        with self._lock:
            found = self._pieces.get(piece)
            if found is not None:
                self._pieces.move_to_end(piece)
                return found
        try:
            found = self._open(piece)
        except HeadraceError as err:
            return err  # not kept: it may pass
        with self._lock:
            self._pieces[piece] = found
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.popitem(last=False)
        return found

    def _open(self, piece: int) -> _Piece:
        shard = self._dataset.pieces.place(piece)[0]
        file, index = self._files.get(shard), self._dataset.piece(piece)
        name, layout = self._dataset.shard_name(shard), index.layout
        if layout is None or layout.fields.keys() != set(self._names):
            return _Piece(index, file, name, None)
        columns = ((field, *layout.fields[field]) for field in self._names)
        fields = tuple((field, starts.data, lengths.data) for field, starts, lengths in columns)
        spans = layout.offsets.data, layout.lengths.data, layout.checksums.data
        return _Piece(index, file, name, spans, fields)


def _length(piece: _Piece | HeadraceError, i: int) -> int:
    """What the sample takes in the slot as it is stored."""
    return 0 if isinstance(piece, HeadraceError) or piece.spans is None else piece.spans[1][i]


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // WORD) * WORD


def _place(piece: _Piece, i: int, view: memoryview, at: int) -> tuple[Made, Stored, float]:
    """Read sample i into the view, which begins at `at` in the slot; comes with the seconds of checking."""
    assert piece.spans is not None
    offsets, _, checksums = piece.spans
    key = piece.index.key(i)
    try:
        piece.file.read_into(offsets[i], view)
    except DamagedError as err:
        return damaged(key, piece.shard_name, str(err)), {}, 0.0
    began = time.perf_counter()
    if sample_checksum(view) != checksums[i]:
        reason = piece.index.open(i, i + 1, view).damage[i]
        return damaged(key, piece.shard_name, reason), {}, time.perf_counter() - began
    places: Stored = {name: Blob(at + starts[i], lengths[i]) for name, starts, lengths in piece.fields}
    return Made(key, {}), places, time.perf_counter() - began


class PagesAhead:
    """Has the page cache read the planned runs ahead, in the order of first need, within a bound on memory."""

    def __init__(self, dataset: Dataset | Joined, plan: Iterator[PlannedRun], memory_bytes: int) -> None:
        self._dataset, self._plan, self._memory = dataset, plan, memory_bytes
        self._files = OpenFiles(dataset)
        self._ends: list[tuple[int, int]] = []
        """(done, bytes) of what was asked for and is still needed."""
        self._held_bytes = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="pages", daemon=True)
        self._thread.start()

    def release(self, upto: int) -> None:
        """No position before `upto` is needed any more."""
        with self._changed:
            while self._ends and self._ends[0][0] <= upto:
                self._held_bytes -= heapq.heappop(self._ends)[1]
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def _work(self) -> None:
        for planned in self._plan:
            with self._changed:
                while self._held_bytes >= self._memory and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
            num_bytes = self._ask(planned.run)
            with self._changed:
                heapq.heappush(self._ends, (planned.done, num_bytes))
                self._held_bytes += num_bytes

    def _ask(self, run: Run) -> int:
        """Have a run read; returns its bytes. What is wrong with it is told by whoever reads it for its samples."""
        try:
            file = self._files.get(self._dataset.pieces.place(run.piece)[0])
            ranges = self._dataset.piece(run.piece).ranges(run.first, run.last)
            for part in ranges:
                file.expect(*part)
        except HeadraceError:
            return 0
        return sum(part.length for part in ranges)
