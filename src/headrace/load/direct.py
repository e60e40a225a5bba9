"""Samples that nothing is done to: read from the disk to their places in the batch, without a copy on the way.

The page cache is what reads ahead (`pages.py`). So a large sample passes memory once, where a buffer of ours, filled
early and emptied late, would cost as much again. What is known of samples beforehand is taken as columns; what is left
to be done for each is one read and one look at its checksum (`reads.py`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.dataset import Dataset, Joined, open_run
from headrace.errors import DamagedError, HeadraceError
from headrace.formats import ShardIndex
from headrace.formats.index import Layout
from headrace.load.batch import WORD
from headrace.load.column_batch import ColumnBatch, ColumnRows
from headrace.load.fields import Specs
from headrace.load.files import OpenFiles
from headrace.load.job import Job, unexpected
from headrace.load.marks import Lane
from headrace.load.plan import can_share
from headrace.load.reads import Bad, Reads, read_samples
from headrace.load.rows import Chain, Made, Row, damaged, make_rows
from headrace.load.slots import Slot
from headrace.storage import File
from headrace.telemetry import Meter

I64 = NDArray[np.int64]

LEAST_SAMPLE_BYTES = 16 << 10
"""Smaller ones cost less where many are read by one call."""

_MOST_PIECES = 128


class Wanted(NamedTuple):
    """Rows of a batch that are to be read; arrays of one length."""

    epoch: int
    rows: I64
    """Their numbers in the batch."""
    positions: I64
    pieces: I64
    samples: I64


class ReadRows(NamedTuple):
    """What became of them."""

    rows: I64
    """Those that lie in the slot."""
    columns: ColumnRows
    others: dict[int, Made]


@dataclass(slots=True)
class Rows:
    """Some rows of a batch, and whom to tell when they are done: `done(True)` after the batch's last."""

    batch: ColumnBatch
    wanted: Wanted
    done: Callable[[bool], None]

    def finish(self, read: ReadRows) -> None:
        """Tell the batch."""
        self.done(self.batch.add_read(read.rows, read.columns, read.others))

    def fail(self, err: BaseException) -> None:
        """None of the rows can be had."""
        error = err if isinstance(err, HeadraceError) else unexpected(err)
        self.done(self.batch.fail(self.wanted.rows.tolist(), error))


def reads_directly(job: Job, specs: Specs | None) -> bool:
    """Whether a job's samples go into batches as they are stored, from the local disk."""
    if specs is None or any(spec is not None for spec in specs.values()):
        return False
    if job.ops or job.collate is not None or job.suspects or job.condemned:
        return False
    if job.processes > 1 and not can_share(job):
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
    """What reading a piece's samples takes."""

    index: ShardIndex
    file: File
    shard: int
    shard_name: str
    layout: Layout | None
    """None where its fields have no places known beforehand."""


class _Planned(NamedTuple):
    """The rows that can be read to their places, and what there is of the others."""

    at: I64
    """Which of the wanted rows."""
    keys: list[str]
    reads: Reads
    fields: dict[str, tuple[I64, I64]]
    """Field -> where it begins in each sample, and its length."""
    others: dict[int, _Piece | HeadraceError]
    """By which of the wanted rows."""


class DirectReader:
    """Reads rows. Thread-safe."""

    def __init__(self, dataset: Dataset | Joined, chain: Chain, meters: Mapping[str, Meter]) -> None:
        self._dataset, self._chain, self._meters = dataset, chain, meters
        self._names = tuple(chain.specs or ())
        self._files = OpenFiles(dataset)
        self._pieces: OrderedDict[int, _Piece] = OrderedDict()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Open shards anew from here on: one may have been restored since. For when nothing is being read."""
        self._pieces.clear()
        self._files.close()

    def read(self, wanted: Wanted, slot: Slot) -> ReadRows:
        """Read, check and place the rows in the batch's slot, in this thread."""
        planned = self._plan(wanted, slot)
        reads = planned.reads
        done = read_samples(self._files, reads, slot.view().data)
        num_bytes = int(reads.lengths.sum())
        self._meters["read"].add(items=len(planned.at), num_bytes=num_bytes, busy_sec=done.read_sec)
        self._meters["verify"].add(items=len(planned.at), num_bytes=num_bytes, busy_sec=done.verify_sec)
        others = {number: self._made(piece, wanted, number) for number, piece in planned.others.items()}
        others |= {int(planned.at[bad.number]): self._damaged(wanted, planned, bad, slot) for bad in done.bad}
        good = np.array([number not in others for number in planned.at.tolist()], np.bool_) if others else slice(None)
        keys = [key for key, number in zip(planned.keys, planned.at.tolist(), strict=True) if number not in others]
        spans = {
            name: ((reads.places + starts)[good], lengths[good]) for name, (starts, lengths) in planned.fields.items()
        }
        made = {int(wanted.rows[number]): one for number, one in others.items()}
        return ReadRows(wanted.rows[planned.at[good]], ColumnRows(keys, spans, {}), made)

    def _plan(self, wanted: Wanted, slot: Slot) -> _Planned:
        """Where the rows' samples lie, and where each goes."""
        num_rows = len(wanted.pieces)
        columns = np.zeros((3, num_rows), np.int64)
        checksums = np.zeros(num_rows, np.uint64)
        fields = {name: np.zeros((2, num_rows), np.int64) for name in self._names}
        keys: list[str] = [""] * num_rows
        others: dict[int, _Piece | HeadraceError] = {}
        for number, at in _groups(wanted.pieces):
            piece = self._piece(number)
            if isinstance(piece, HeadraceError) or piece.layout is None:
                others |= dict.fromkeys(at.tolist(), piece)
                continue
            samples, layout = wanted.samples[at], piece.layout
            columns[0, at], columns[1, at] = piece.shard, layout.offsets[samples]
            columns[2, at] = layout.lengths[samples]
            checksums[at] = layout.checksums[samples]
            for name, field in fields.items():
                field[:, at] = [column[samples] for column in layout.fields[name]]
            for row, sample in zip(at.tolist(), samples.tolist(), strict=True):
                keys[row] = piece.index.key(sample)
        ends = np.cumsum(-(-columns[2] // WORD) * WORD)
        kept = np.array([row for row in range(num_rows) if row not in others], np.int64)
        places = slot.allocate(int(ends[-1]))[0] + np.concatenate([[0], ends[:-1]])
        reads = Reads(*(column[kept] for column in (*columns, checksums, places)))
        spans = {name: (field[0, kept], field[1, kept]) for name, field in fields.items()}
        return _Planned(kept, [keys[row] for row in kept.tolist()], reads, spans, others)

    def _made(self, piece: _Piece | HeadraceError, wanted: Wanted, number: int) -> Made:
        """A row whose sample is read into memory of its own, as any other."""
        i = int(wanted.samples[number])
        if isinstance(piece, HeadraceError):
            shard = self._dataset.pieces.place(int(wanted.pieces[number]))[0]
            return Made(f"{self._dataset.shard_name(shard)}:{i}", None, piece)
        try:
            opened = open_run(piece.file, piece.index, i, i + 1)
            if i in opened.damage:
                return damaged(piece.index.key(i), piece.shard_name, opened.damage[i])
            sample = opened.sample(i)
        except DamagedError as err:
            return damaged(piece.index.key(i), piece.shard_name, str(err))
        row = Row(int(wanted.rows[number]), wanted.epoch, int(wanted.positions[number]), sample)
        return make_rows(self._chain, [row], {}, Lane.unseen())[0]

    def _damaged(self, wanted: Wanted, planned: _Planned, bad: Bad, slot: Slot) -> Made:
        """What there is of a sample that was not read as it was written. Raises what says that nothing can be read."""
        if bad.error is not None and not isinstance(bad.error, DamagedError):
            raise bad.error
        number, reads = int(planned.at[bad.number]), planned.reads
        piece, i = self._piece(int(wanted.pieces[number])), int(wanted.samples[number])
        if isinstance(piece, HeadraceError):
            raise piece
        place, length = int(reads.places[bad.number]), int(reads.lengths[bad.number])
        data = slot.view().data[place : place + length]
        reason = str(bad.error) if bad.error else piece.index.open(i, i + 1, data).damage[i]
        return damaged(planned.keys[bad.number], piece.shard_name, reason)

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
        layout = index.layout
        if layout is not None and layout.fields.keys() != set(self._names):
            layout = None
        return _Piece(index, file, shard, self._dataset.shard_name(shard), layout)


def _groups(numbers: I64) -> Iterator[tuple[int, I64]]:
    """Each number, and where it stands."""
    order = np.argsort(numbers, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        yield int(numbers[at[0]]), at
