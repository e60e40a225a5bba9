"""The loader: runs a stream in a process of its own and gives the trainer its batches."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.errors import DamagedError, LoaderError, OptionError
from headrace.load.decoded import HeldCache, decoded_options
from headrace.load.healing import Cases, Restart, Restarts
from headrace.load.job import STAGES, Collate, Job, OnError, Skipped, num_readers
from headrace.load.memory import memory_bytes
from headrace.load.options import check_flag, optional_number, optional_seconds, whole_number
from headrace.load.process import ProcessLostError
from headrace.load.state import VERSION, check_state, partitions_of
from headrace.load.stream import Stream
from headrace.load.threads import Threads
from headrace.order import Batches, MixedOrder, Order, check_world_size
from headrace.rank import Rank, check_unchanged, local_world_size, resolve_rank
from headrace.storage import parse_size
from headrace.telemetry import Meter, Reading

if TYPE_CHECKING:
    import torch

    from headrace.load.client import Client
    from headrace.load.job import Delivery
    from headrace.load.tensors import BatchDict
    from headrace.ondevice import BatchStep

HAND_OFF = "hand-off"
MAX_RECORDED = 10_000
"""Skipped samples that are kept by name; all are counted."""


_SHOWN = (
    "batch_size",
    "global_batch_size",
    "processes",
    "threads",
    "prefetch",
    "memory",
    "cache_decoded",
    "drop_last",
    "on_error",
)
"""Options that a run's record has."""


class Loader:
    """Gives the batches of a stream to one data-parallel rank.

    Iterating starts one loader process, which decodes and assembles batches in shared memory ahead of need; it ends
    with `close()`, with the loader, or with this process, however that ends. Not thread-safe; not collective: ranks
    need not call in step.

    Args:
        stream: what to deliver.
        batch_size: samples of one rank's batch; or
        global_batch_size: samples of all ranks' batches together. Exactly one of the two.
        device: where tensors are wanted; None: CPU tensors over shared memory. CUDA batches are copied from pinned
            memory on a side stream, two ahead.
        on_device: steps on whole batches, step(batch) or step(batch, rng) -> batch, such as those of
            `headrace.ondevice`; in turn, on the device: on CUDA on the same stream, as far ahead, on the CPU when the
            batch is asked for. `rng` is keyed by seed, epoch and the batch's first position. A step that fails raises
            TransformError.
        rank, world_size: of the data axes; None: from torch.distributed or the launcher's environment, when first
            needed.
        processes: 1 transforms in threads of the loader process; n > 1 in n worker processes of it, for functions
            that hold the interpreter lock or draw from global generators (which are then seeded for each sample).
            Each then reads by itself, its share of the partitions: n that divides 48 gives them equally much to do.
        threads: threads that transform. None: as many as pay, from 1 up to 4 a usable CPU (divided by the ranks of this
            machine); it begins with 1 a CPU, tries half or twice as many while the trainer waits, and logs what it
            keeps. With several processes each transforms in one thread, and the number says how many read.
        prefetch: batches that are ready ahead of the one in use, at least 1.
        memory: bytes of stored data to hold at most, such as "2GiB"; None: what the open windows need, twice, and
            64 MiB, from a store 512 MiB (or the rank's share of a smaller dataset). Batches in shared memory come on
            top: prefetch + 3.
        cache_decoded: where what `.decode()`, and `Resize` and `CenterCrop` behind it, make of the samples is kept, so
            that from the second epoch on their stored bytes are neither read nor decoded: "ram", in memory that all
            ranks of this machine share and that ends with the loader; a folder on a local disk, kept from run to run;
            None, nowhere; "auto", in memory where that pays and fits: samples come again, decoding takes most of the
            steps' time, and all of them fit a quarter of the free memory. Other steps are done anew each time, and the
            batches are the same. `meters()["cached"]` has what it gives, and why.
        cache_decoded_size: what it may hold, such as "8GiB"; None: a quarter of the memory, or half of the folder's
            disk. Of a larger dataset the samples that came first are kept.
        drop_last: drop the incomplete global batch at an epoch's end; else keep it, shorter, ranks made equal by
            repeats that the batch's `__real__` marks False.
        collate: function(list of samples) -> dict, run in the loader process, batch after batch, instead of the
            batching by fields. It is not asked for a batch that is filtered empty, which has `__key__` alone.
        on_error: "raise", or "skip" to leave damaged samples out and record them in `skipped`.
        max_skipped: with "skip", more than this many on a rank raise, counted over the loader's life and again each
            epoch; None: no limit. Errors that are no sample's (a full disk, say) are never skipped.
        max_restarts: a loader or worker process that ends unasked, runs out of memory or hangs is replaced, and the
            same batches come, at most this often in a row; a batch begins the count anew. Then, LoaderError. Each is in
            `restarts`. A sample that processes end over is named by a TransformError, which `on_error` may skip.
        hang_timeout_sec: a process in which nothing at all went on for so many seconds, at least 1, while the trainer
            waited hangs: no sample, read or batch was done (for a worker process: its one sample). It leaves its
            stacks and is replaced. Reads from a store have a deadline of their own and do not count while the process
            runs. None: never.

    Raises OptionError for values that cannot work.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        device: str | torch.device | None = None,
        on_device: Sequence[BatchStep] = (),
        rank: int | None = None,
        world_size: int | None = None,
        processes: int = 1,
        threads: int | None = None,
        prefetch: int = 2,
        memory: int | str | None = None,
        cache_decoded: str | os.PathLike[str] | None = "auto",
        cache_decoded_size: int | str | None = None,
        drop_last: bool = True,
        collate: Collate | None = None,
        on_error: OnError = "raise",
        max_skipped: int | None = None,
        max_restarts: int = 3,
        hang_timeout_sec: float | None = 300.0,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if (batch_size is None) == (global_batch_size is None):
            raise OptionError(
                "exactly one of batch_size (a rank's) and global_batch_size (all ranks') is given: got "
                f"batch_size={batch_size}, global_batch_size={global_batch_size}"
            )
        if not isinstance(stream, Stream):
            raise OptionError(f"a loader runs a headrace.Stream: got {type(stream).__name__}")
        if stream.start is not None:
            raise OptionError(
                "a loader begins where load_state_dict says: got a stream that was resumed for a DataLoader"
            )
        if collate is not None and not callable(collate):
            raise OptionError(f"collate is a function(list of samples) -> dict: got {collate!r}")
        if on_device != ():
            from headrace.ondevice import Steps  # imports torch

            Steps(on_device)
        check_flag("drop_last", drop_last)
        if on_error not in ("raise", "skip"):
            raise OptionError(f'on_error is "raise" or "skip": got {on_error!r}')
        if on_error == "raise" and max_skipped is not None:
            raise OptionError(f'max_skipped={max_skipped} needs on_error="skip"')
        rank, world_size = optional_number("rank", rank, 0), optional_number("world_size", world_size, 1)
        if rank is not None or world_size is not None:
            resolve_rank(rank, world_size)
        self.stream = stream
        self.skipped: list[Skipped] = []
        """The samples that this rank left out under on_error="skip", with the reason; the first 10,000 of them."""
        self._batch_size = optional_number("batch_size", batch_size, 1)
        self._global_batch_size = optional_number("global_batch_size", global_batch_size, 1)
        self._given_rank = rank, world_size
        self._device = device
        self._on_device = tuple(on_device)
        self._processes = whole_number("processes", processes, 1)
        self._threads = Threads(optional_number("threads", threads, 1), self._processes)
        self._prefetch = whole_number("prefetch", prefetch, 1)
        self._memory = None if memory is None else parse_size(memory, "memory")
        self._decoded = HeldCache(
            decoded_options(cache_decoded, cache_decoded_size),
            stream.dataset,
            stream.ops,
            in_workers=self._processes > 1,
        )
        self._drop_last = drop_last
        self._collate = collate
        self._on_error: OnError = on_error
        self._max_skipped = optional_number("max_skipped", max_skipped, 0)
        self._num_skipped = 0
        self._max_restarts = whole_number("max_restarts", max_restarts, 0)
        self._hang_timeout_sec = optional_seconds("hang_timeout_sec", hang_timeout_sec, 1.0)
        self._restarts = Restarts()
        self._cases = Cases("loader", self._max_restarts)
        self._epoch, self._step, self._first_epoch = stream.first_epoch, 0, stream.first_epoch
        self._resumed = True
        self._iteration = 0
        self._loaded_partitions: int | None = None
        self._client: Client | None = None
        self._client_at: tuple[int, int] | None = None
        self._stages: dict[str, Reading] = dict.fromkeys(STAGES, Reading())
        self._stages_before = self._stages
        """What the stages of former processes counted."""
        self._num_readers = 0
        self._hand_off = Meter()
        self._dropped = self._padded = 0

    # What the world size decides, resolved when first needed, so that a launcher may set it after the loader is made.

    @cached_property
    def _rank(self) -> Rank:
        return resolve_rank(*self._given_rank)

    @cached_property
    def _order(self) -> Order | MixedOrder:
        return self._make_order(self._loaded_partitions)

    def _make_order(self, partitions: int | None) -> Order | MixedOrder:
        order = self.stream.order(self._rank.world_size, partitions, self.global_batch_size, self._drop_last)
        check_world_size(self._rank.world_size, order.partitions, self.global_batch_size)
        return order

    @cached_property
    def _batches(self) -> Batches:
        num_samples, rank = self._order.num_samples, self._rank
        batches = Batches(num_samples, self.global_batch_size, rank.rank, rank.world_size, self._drop_last)
        if batches.num_steps == 0:
            raise OptionError(
                f"an epoch must have a full global batch: got {num_samples} samples for batches of "
                f"{self.global_batch_size}; use smaller batches or drop_last=False"
            )
        return batches

    @property
    def global_batch_size(self) -> int:
        """Samples of one step, over all ranks."""
        return self._global_batch_size or (self._batch_size or 0) * self._rank.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the same on every rank."""
        return self._batches.num_steps

    @property
    def epochs(self) -> int | None:
        """Epochs of one iteration; None is endless."""
        return self.stream.epochs

    @property
    def full_batches(self) -> bool:
        """Whether every batch surely has its equal share of global_batch_size real samples."""
        return self._drop_last and not self.stream.has_filter and self._on_error == "raise"

    @property
    def options(self) -> dict[str, Any]:
        """How it was made, as JSON values; numbers that were left to it are None."""
        found = {name: self._given[name] for name in _SHOWN}
        return {name: str(value) if isinstance(value, os.PathLike) else value for name, value in found.items()}

    def with_options(self, **changes: Any) -> Loader:
        """A loader of the same stream, at its beginning, with some options changed. Raises OptionError."""
        return type(self)(**{**self._given, **changes})

    def __len__(self) -> int:
        """Batches of one iteration. TypeError if it is endless."""
        if self.epochs is None:
            raise TypeError("an endless stream (epochs=None) has no length")
        return self.epochs * self.steps_per_epoch

    def __bool__(self) -> bool:
        return True  # an endless loader has no length to be judged by

    def __iter__(self) -> Iterator[BatchDict]:
        """The batches of the next `epochs` epochs; after loading a state, the rest of the iteration it was taken in."""
        check_unchanged(self._rank, resolve_rank(*self._given_rank))
        endless = self.epochs is None
        ended = not endless and self._epoch >= self._first_epoch + (self.epochs or 0)
        if not (self._resumed or endless) or ended:
            self._epoch += self._step > 0  # left early: the next epoch, not the rest of this one
            self._step = 0
            self._first_epoch = self._epoch
        self._resumed = False
        self._iteration += 1
        return self._iterate(self._iteration)

    def _iterate(self, iteration: int) -> Iterator[BatchDict]:
        while True:
            if iteration != self._iteration:
                raise LoaderError(
                    "this iteration has ended, since another of the same loader began or a state was loaded: use two "
                    "loaders, or iterate again"
                )
            if self.epochs is not None and self._epoch >= self._first_epoch + self.epochs:
                return
            batch, delivery = self._next()
            self._count(delivery)
            self._advance()
            yield batch
            del batch, delivery  # the slot is free as soon as the user's loop lets go of it

    def _next(self) -> tuple[BatchDict, Delivery]:
        """The batch that is due, from a new process where the present one is lost."""
        began = time.perf_counter()
        while True:
            try:
                batch, delivery = self._ask()
                break
            except ProcessLostError as lost:
                self._cases.died(lost)
                self._restarts.note(Restart.of("loader", self._epoch, self._step, lost))
        self._cases.went_on(self._epoch, (self._step + 1) * self.global_batch_size)
        self._hand_off.add(len(delivery.keys), delivery.used_bytes, 0.0, time.perf_counter() - began)
        return batch, delivery

    def _ask(self) -> tuple[BatchDict, Delivery]:
        if self._client is None:
            self._client = self._start_client()
        if self._client_at != (self._epoch, self._step):
            self._client.start(self._epoch, self._step)
        self._client_at = None
        try:
            batch, delivery = self._client.next()
            if (delivery.epoch, delivery.step) != (self._epoch, self._step):
                raise LoaderError(
                    f"the loader process delivered step {delivery.step} of epoch {delivery.epoch} where step "
                    f"{self._step} of epoch {self._epoch} was due: please file a bug"
                )
        finally:
            if not self._client.usable:
                self._end_client()  # a new process goes on here
        return batch, delivery

    def _advance(self) -> None:
        """One more batch is with the trainer; the process goes on into the next epoch by itself."""
        self._step += 1
        if self._step >= self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
            self._dropped += self._batches.num_dropped
        self._client_at = self._epoch, self._step

    def _count(self, delivery: Delivery) -> None:
        self._num_skipped += len(delivery.skipped)
        self.skipped += delivery.skipped[: max(0, MAX_RECORDED - len(self.skipped))]
        if self._max_skipped is not None and self._num_skipped > self._max_skipped:
            raise DamagedError(
                f"at most {self._max_skipped} samples may be skipped on a rank (max_skipped): {self._num_skipped} "
                f"were, the last because {delivery.skipped[-1].reason}"
            )
        if delivery.stages is not None:
            self._stages, self._num_readers = delivery.stages, delivery.num_readers
            self._threads.note(delivery)
        self._decoded.note(delivery.decoded)
        if delivery.real is not None:
            self._padded += int((~delivery.real).sum())

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the batches that were given out: JSON, the same on every rank."""
        position = self._step * self.global_batch_size
        return {
            "version": VERSION,
            "epoch": self._epoch,
            "position": position,
            "first_epoch": self._first_epoch,
            "order": self._order_state(self._order),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, at the next iteration, with the batch that would have come after the state was taken.

        The number of ranks, threads and processes may differ. Raises StateError if what decides the order differs,
        OptionError if this world size does not divide it.
        """
        partitions = partitions_of(state)
        order = self._make_order(partitions)
        check_state(state, self._order_state(order))
        self._end_client()
        self._cases = Cases("loader", self._max_restarts)
        for name in ("_order", "_batches"):
            self.__dict__.pop(name, None)
        self._loaded_partitions = partitions
        self._epoch, self._first_epoch = state["epoch"], state["first_epoch"]
        self._step = state["position"] // self.global_batch_size
        if self._step >= self.steps_per_epoch:  # saved where the last, incomplete batch was kept
            self._epoch, self._step = self._epoch + 1, 0
        self._resumed = True
        self._iteration += 1

    def meters(self) -> dict[str, Any]:
        """What the feed has counted: sums a stage (items, bytes, busy_sec, wait_sec), and samples that did not come.

        A stage's seconds are summed over its `threads`, as many as there are now; "read" and "verify" are the work of
        the same ones. Where samples go from the local disk into batches as they are, these do all of it, and
        "transform" stays at 0.
        `dropped` counts those of incomplete global batches (of all ranks), `padded` this rank's repeats, `skipped`
        the damaged samples it left out, `restarts` the processes that were replaced. `cached` tells of
        `cache_decoded`: `place` ("ram", the folder, or None where nothing is kept), `why`, `hits` and `misses` in
        samples, `damaged` among the misses, and the `bytes` that were taken from it. The stage "hand-off" is the
        trainer's: its wait is the trainer's.
        """
        readers = self._num_readers or num_readers(self._threads.at_first, self.stream.dataset.is_remote)
        transformers = self._processes if self._processes > 1 else self._threads.now
        threads = {"read": readers, "verify": readers, "transform": transformers, "collate": 1, HAND_OFF: 1}
        before = self._stages_before
        stages = {name: before[name] + self._stages[name] for name in STAGES} | {HAND_OFF: self._hand_off.read()}
        return {
            "stages": {name: asdict(reading) | {"threads": threads[name]} for name, reading in stages.items()},
            "threads": self._threads.now,
            "processes": self._processes,
            "dropped": self._dropped,
            "padded": self._padded,
            "skipped": self._num_skipped,
            "restarts": self._restarts.num,
            "cached": self._decoded.meters(),
        }

    @property
    def restarts(self) -> list[Restart]:
        """The processes that ended unasked or hung, and were replaced; the first 1,000 of them."""
        return self._restarts.recorded

    def close(self) -> None:
        """End the loader process. Batches that are held stay valid; iterating again starts a new one."""
        self._end_client()
        self._decoded.close()

    def _end_client(self) -> None:
        if self._client is not None:
            self._client = self._client_at = None  # first, so that an interrupted close leaves no half-closed client
            self._stages_before = {name: self._stages_before[name] + self._stages[name] for name in STAGES}
            self._stages = dict.fromkeys(STAGES, Reading())
            self._decoded.process_ended()
            self._finalizer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _order_state(self, order: Order | MixedOrder) -> dict[str, Any]:
        return {**self.stream.order_state(order), "global_batch_size": self.global_batch_size}

    def _start_client(self) -> Client:
        from headrace.load.client import Client, num_slots_held  # imports torch

        client = Client(self._job(num_slots_held(self._device)), self._device, self._restarts, self._on_device)
        self._finalizer = weakref.finalize(self, client.close)
        self._client_at = None
        return client

    def _job(self, num_held: int) -> Job:
        num_slots = self._prefetch + 1 + num_held
        ahead = num_slots * self.global_batch_size
        return Job(
            dataset=self.stream.dataset,
            order=self._order,
            ops=self.stream.ops,
            batches=self._batches,
            threads=self._threads.at_first,
            processes=self._processes,
            num_slots=num_slots,
            memory_bytes=self._memory_bytes(),
            collate=self._collate,
            on_error=self._on_error,
            max_restarts=self._max_restarts,
            hang_timeout_sec=self._hang_timeout_sec,
            tuned=self._threads.limits,
            decoded=self._decoded.plan(self._epoch, self.epochs, self._order.num_samples, ahead),
            suspects=frozenset(self._cases.suspects),
            condemned=self._cases.condemned,
        )

    def _memory_bytes(self) -> int:
        order, num_ranks = self._order, self._rank.world_size
        num_open = order.partitions // num_ranks if order.shuffle else 1
        dataset = self.stream.dataset
        return memory_bytes(order, dataset, num_open, num_ranks, local_world_size(), self._memory)
