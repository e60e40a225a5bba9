"""What all ranks of a run see together, from loaders in one process; and loaders that need no process of their own."""

import json
import os
import queue
import weakref
from dataclasses import dataclass
from itertools import zip_longest
from types import SimpleNamespace

import headrace as hr
from headrace.load.channel import Frame, Kind
from headrace.load.child import Feed
from headrace.load.job import num_lanes
from headrace.load.marks import Lane
from headrace.load.tensors import batch_over


def pack_numbers(folder, num_samples, shard_size="4KiB"):
    """A dataset whose sample i has the key i and i bytes that say i."""
    samples = ({"__key__": f"{i:05d}", "cls": i, "bin": bytes([i % 251]) * (50 + i % 90)} for i in range(num_samples))
    hr.pack(samples, folder, shard_size=shard_size, shuffle=False)
    return hr.open(folder)


@dataclass
class World:
    """What the ranks of one run got."""

    steps: list
    """Each global batch in the order of its positions, repeats aside: keys, or pairs of a key and its `noise`."""
    states: list
    """`states[k]` is the state after k batches."""


def run_world(stream, world_size, global_batch_size, *, state=None, limit=None, make_loader=hr.Loader, **options):
    """The `World` of one iteration, or of its first `limit` batches, from a state on where one is given."""
    steps, states = [], []
    for rank in range(world_size):
        where = {"rank": rank, "world_size": world_size, "threads": 1}
        with make_loader(stream, global_batch_size=global_batch_size, **where, **options) as loader:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            taken, after = [], [loader.state_dict()]
            for batch in loader:
                taken.append(_real(batch))
                after.append(loader.state_dict())
                if len(taken) == limit:
                    break
            steps.append(taken)
            states.append(after)
    assert len({len(taken) for taken in steps}) == 1, "law 3: every rank has the same number of batches"
    assert all(s == states[0] for s in states), "law 4: the state is the same on every rank"
    return World([_interleaved(parts) for parts in zip(*steps, strict=True)], states[0])


def _real(batch):
    """A batch's keys, with the random number that a sample was given where it was; without repeats."""
    keys = batch["__key__"]
    seen = list(zip(keys, batch["noise"].tolist(), strict=True)) if "noise" in batch else keys
    real = batch["__real__"].tolist() if "__real__" in batch else [True] * len(keys)
    return [one for one, mark in zip(seen, real, strict=True) if mark]


def _interleaved(parts):
    """A global batch from the ranks' shares: position i is number i div W of rank i mod W."""
    return [one for turn in zip_longest(*parts) for one in turn if one is not None]


class LoaderHere(hr.Loader):
    """A loader whose feed runs in this process: order, reading, transforms, batches and state are those of a loader
    process, and only the way between two processes is left out. It starts in milliseconds."""

    def _start_client(self):
        client = _FeedHere(self._job(num_held=1))
        self._finalizer = weakref.finalize(self, client.close)
        self._client_at = None
        return client


class _FeedHere:
    """Stands for the client of a loader process, and for the channel by which that one sends."""

    usable = True

    def __init__(self, job):
        self._job = job
        self._sent = queue.SimpleQueue()
        self._feed = Feed(job, self, SimpleNamespace(lanes=[Lane.unseen() for _ in range(num_lanes(job))]))
        self._generation = 0

    def send(self, delivery, _fds):
        self._sent.put(delivery)

    def start(self, epoch, step):
        self._generation += 1
        self._feed.obey(Frame(Kind.START, self._generation, epoch, step))

    def next(self):
        while (delivery := self._sent.get()).generation != self._generation:
            self._release(delivery)
        if delivery.error is not None:
            self._release(delivery)
            raise delivery.error
        slot = self._feed._slots._slots[delivery.slot]
        batch = batch_over(slot._view[: delivery.used_bytes].copy(), delivery)
        self._release(delivery)
        return batch, delivery

    def close(self):
        self._feed._pipeline.stop()
        for _ in range(self._job.threads):
            self._feed._workers.submit(None)
        for slot in self._feed._slots._slots:
            os.close(slot.fd)

    def _release(self, delivery):
        if delivery.slot >= 0:
            self._feed.obey(Frame(Kind.RELEASE, delivery.slot))
