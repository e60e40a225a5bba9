"""A stream's samples one by one, read in this process: what PyTorch's own DataLoader runs, in each of its workers.

One thread reads ahead (more for a store); the samples are transformed where they are asked for, since the DataLoader's
workers are processes already. The state counts the samples that were given out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from headrace.dataset import Dataset, Joined
from headrace.errors import StateError
from headrace.load.job import num_readers
from headrace.load.marks import Lane
from headrace.load.memory import memory_bytes
from headrace.load.reader import ReadAhead
from headrace.load.rows import Chain, make_rows
from headrace.load.runs import PlannedRun
from headrace.load.state import VERSION, check_same, check_samples_state, partitions_of
from headrace.load.tasks import Source, raw_rows
from headrace.order import MixedOrder, Order, Share, check_world_size
from headrace.rank import local_world_size
from headrace.telemetry import Meter
from headrace.transform import Sample, prepare_worker

if TYPE_CHECKING:
    from headrace.load.stream import Stream

PLANNED_SAMPLES = 1024
RELEASE_EVERY = 32
_NUMBERS = ("first_epoch", "epoch", "taken", "reader", "num_workers", "world_size")


class Samples(Iterator[Sample]):
    """This process's share of one iteration of a stream: an iterator with the state that StatefulDataLoader asks for.

    In a worker of a DataLoader it is that worker's share of the rank's samples, else all of them. Byte strings are
    bytes, arrays numpy's. Raises DamagedError and TransformError, which name the sample.
    """

    def __init__(self, stream: Stream) -> None:
        worker = get_worker_info()
        self._stream = stream
        self._in_worker = worker is not None
        self._worker, self._num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._rank = stream.resolve_rank()
        self._first_epoch = self._epoch = stream.first_epoch
        self._taken = 0
        if self._in_worker:
            prepare_worker()
        start = stream.start
        order = self._order(start.partitions if start else None)
        self._share = self._share_of(order, self._worker)
        if start is not None:
            start.check(self._rank, self._num_workers)
            reader, taken = start.place(self._worker, order, self._rank, stream.epochs)
            self._share = self._share_of(order, reader)
            epochs, self._taken = divmod(taken, max(1, self._share.num_samples))
            self._epoch += epochs
        self._source: Iterator[tuple[int, int, Sample]] | None = None

    def __next__(self) -> Sample:
        """The next sample; what turned out to be filtered is passed over."""
        if self._source is None:
            self._source = self._read()
        self._epoch, self._taken, sample = next(self._source)
        return sample

    def state_dict(self) -> dict[str, Any]:
        """Where this share stands after the samples that were given out: JSON, the same on every rank."""
        return {
            "version": VERSION,
            "first_epoch": self._first_epoch,
            "epoch": self._epoch,
            "taken": self._taken,
            "reader": self._share.reader,
            "num_workers": self._num_workers,
            "world_size": self._rank.world_size,
            "order": self._stream.order_state(self._share.order),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sample that would have come next.

        Raises StateError if what decides the order differs, or the number of workers or ranks.
        """
        order = self._order(partitions_of(state))
        check_samples_state(state, _NUMBERS, self._stream.order_state(order))
        check_same("world size", state["world_size"], self._rank.world_size, f"start {state['world_size']} ranks")
        check_same("workers", state["num_workers"], self._num_workers, f"give num_workers={state['num_workers']}")
        share = self._share_of(order, state["reader"])
        if state["reader"] >= self._num_workers or state["taken"] > share.num_samples:
            raise StateError(f"a state is what state_dict() gives: got {dict(state)}")
        self._share, self._source = share, None
        self._first_epoch, self._epoch, self._taken = state["first_epoch"], state["epoch"], state["taken"]

    def _order(self, partitions: int | None) -> Order | MixedOrder:
        order = self._stream.order(self._rank.world_size, partitions)
        check_world_size(self._rank.world_size, order.partitions)
        return order

    def _share_of(self, order: Order | MixedOrder, reader: int) -> Share:
        return Share(order, self._rank.rank, self._rank.world_size, reader, self._num_workers)

    def _read(self) -> Iterator[tuple[int, int, Sample]]:
        stream, share = self._stream, self._share
        num_peers = self._rank.world_size * self._num_workers
        memory = memory_bytes(
            *(share.order, stream.dataset, share.num_open, num_peers, local_world_size() * self._num_workers)
        )
        last = None if stream.epochs is None else self._first_epoch + stream.epochs
        epochs = range(self._epoch, last) if last is not None else itertools.count(self._epoch)
        # A worker has one thread that transforms and generators of its own, so those can be seeded for each sample.
        chain = Chain(stream.ops, stream.seed, None, keep_samples=True, seeds_globals=self._in_worker)
        return _read(stream.dataset, chain, share, epochs, self._taken, memory)


def _read(
    dataset: Dataset | Joined, chain: Chain, share: Share, epochs: Iterable[int], taken: int, memory: int
) -> Iterator[tuple[int, int, Sample]]:
    """(epoch, samples taken of it with this one, sample) of a share from its sample number `taken` on."""
    if not share.num_samples:
        return
    first, epochs = itertools.tee(epochs)
    lane, *lanes = (Lane.unseen() for _ in range(1 + num_readers(1, dataset.is_remote)))
    meters = {"read": Meter(), "verify": Meter()}
    reader = ReadAhead(dataset, _planned(share, first, taken), memory, lanes, meters)
    try:
        for epoch in epochs:
            for number, source, stop in _sources(reader, share, epoch, taken):
                sample = _made(chain, source, lane)
                if sample is not None:
                    yield epoch, number + 1, sample
                if number % RELEASE_EVERY == 0:
                    reader.release(stop)
            taken = 0
    finally:
        reader.let_go()  # the garbage collector may have come here, in any thread


def _planned(share: Share, epochs: Iterable[int], taken: int) -> Iterator[PlannedRun]:
    for epoch in epochs:
        base = epoch * share.order.num_samples
        for run in share.runs(share.order.epoch(epoch), taken):
            yield PlannedRun((epoch, run.id), run, base + run.need, base + run.done)
        taken = 0


def _sources(reader: ReadAhead, share: Share, epoch: int, taken: int) -> Iterator[tuple[int, Source, int]]:
    """(number in the epoch, where its bytes are, the position after it counted over epochs) of each sample."""
    order, base = share.order.epoch(epoch), epoch * share.order.num_samples
    for first in range(taken, share.num_samples, PLANNED_SAMPLES):
        last = min(first + PLANNED_SAMPLES, share.num_samples)
        positions = share.positions(first, last)
        places = order.locate(positions)
        columns = (positions, places.sample, places.run)
        for number, position, sample, run_id in zip(range(first, last), *(c.tolist() for c in columns), strict=True):
            stop = base + position + 1
            run = reader.get((epoch, run_id), stop)
            assert run is not None, "only the generator itself stops its reader"
            yield number, Source(0, epoch, position, sample, run), stop


def _made(chain: Chain, source: Source, lane: Lane) -> Sample | None:
    """The transformed sample, or None where a filter turned it down. Raises what it failed of."""
    rows, lost = raw_rows([source], {})
    made = make_rows(chain, rows, {}, lane)[0] if rows else lost[0]
    if made.error is not None:
        raise made.error
    values = made.values
    return values and {n: bytes(v) if isinstance(v, memoryview) else v for n, v in values.items()}
