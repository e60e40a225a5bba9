"""The soak's trainer, a process of its own: `python soak_trainer.py '{"url": ...}'`; the last line printed is JSON.

It streams from a store through a cache, compares each batch with what has to come, and does to its loader processes,
its cache and its files what the seed says. The second half is calm: one loader process is left alone there, while the
store and the cache's blocks go on failing, so that what leaks from batch to batch adds up.
"""

import gc
import json
import os
import random
import sys
from collections import Counter, deque
from pathlib import Path

from soak_data import GLOBAL_BATCH, STEPS, WORLD_SIZES, Expected, stream_of
from soak_faults import Faults

import headrace as hr
from waiting import family, wait_for, wait_own_gone

HANG_SEC = 3.0
BLOCK_FAULTS = ("delete_blocks", "flip_blocks", "cut_blocks")
PROCESS_FAULTS = ("kill", "kill", "kill_worker", "stop", "pause", "refuse_writes", "refuse_opening", "remove_cache")
CONSUMER_FAULTS = ("resume", "resume", "rewind", "hold")
STORMY = BLOCK_FAULTS + PROCESS_FAULTS + CONSUMER_FAULTS
NUM_GAUGES = 400
HELD_FOR = 40
UNDISTURBED = 500


class Feed:
    """The ranks of one world, in one process: each global batch is put together from theirs."""

    def __init__(self, stream, world_size, **options):
        self.loaders = [
            hr.Loader(stream, global_batch_size=GLOBAL_BATCH, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        self._batches = [iter(loader) for loader in self.loaders]

    def next(self):
        return [next(batches) for batches in self._batches]

    def state(self):
        states = {json.dumps(loader.state_dict()) for loader in self.loaders}
        assert len(states) == 1, f"ranks have different states: {states}"
        return states.pop()

    def load(self, state):
        for loader in self.loaders:
            loader.load_state_dict(json.loads(state))
        self._batches = [iter(loader) for loader in self.loaders]

    def close(self):
        self._batches = []  # each holds the batch that it gave last
        for loader in self.loaders:
            loader.close()


def content(parts):
    """(keys, numbers, checksums) of a global batch, from the ranks' parts of it, in the order of positions."""
    whole = []
    for name in ("__key__", "number", "sum"):
        columns = [part[name] if name == "__key__" else part[name].tolist() for part in parts]
        whole.append([value for row in zip(*columns, strict=True) for value in row])
    return tuple(whole)


class Soak:
    """Streams until the loaders have delivered so many batches. `at` global batches of the sequence are past."""

    def __init__(self, stream, cache, num_batches, num_faults, seed):
        self._stream, self._expected = stream, Expected(stream)
        self._total, self._calm_from = num_batches, num_batches // 2
        self._gap = num_batches / num_faults
        self._rng = random.Random(seed)
        self._faults, self._decks = Faults(self._rng, cache), {}
        self._feed = Feed(stream, 1, **self._options())
        self._saved = self._feed.state()
        self._held = deque()
        self.at = self.delivered = 0
        self.log, self.gauges = [], []
        self.counts, self.restarts, self.worlds = Counter(), Counter(), Counter()

    def run(self):
        next_fault, next_gauge, kinds = self._gap, 0.0, STORMY
        while self.delivered < self._total:
            if self.delivered >= next_fault:
                self._fail(self._draw(kinds))
                next_fault = self.delivered + self._gap * self._rng.uniform(0.5, 1.5)
            self._step()
            if self.delivered >= next_gauge:
                self.gauges.append(self._gauge() | {"calm": kinds is BLOCK_FAULTS})
                next_gauge += self._total / NUM_GAUGES
            if self.delivered >= self._calm_from and kinds is STORMY:
                self._replace(1)
                kinds = BLOCK_FAULTS
        self._end_feed()
        while self._held:
            self._check(*self._held.popleft())

    def _step(self, hold=False):
        parts = self._feed.next()
        self._check(self.at, parts)
        if hold:
            self._held.append((self.at, parts))
        elif self._held and abs(self.at - self._held[0][0]) > HELD_FOR:
            self._check(*self._held.popleft())  # it is what it was
        self.at += 1
        self.delivered += len(parts)
        self.worlds[len(parts)] += len(parts)

    def _check(self, number, parts):
        epoch, step = divmod(number, STEPS)
        wanted, found = self._expected.batch(epoch, step), content(parts)
        where = f"global batch {number} (step {step} of epoch {epoch}) of {len(parts)} ranks"
        assert found == wanted, f"{where}: {wanted} expected, {found} found"

    def _draw(self, kinds):
        """Each kind as often as any other."""
        deck = self._decks.setdefault(kinds, [])
        if not deck:
            deck += self._rng.sample(kinds, len(kinds))
        return deck.pop()

    def _fail(self, kind):
        self.counts[kind] += 1
        self.log.append(f"{kind} at global batch {self.at}, {len(self._feed.loaders)} ranks")
        if kind == "resume":
            self._replace(self._rng.choice(WORLD_SIZES))
        elif kind == "rewind":
            self._saved, state = self._feed.state(), self._saved
            self._feed.load(state)
            self.at = json.loads(state)["epoch"] * STEPS + json.loads(state)["position"] // GLOBAL_BATCH
        elif kind == "hold":
            self._step(hold=True)
        else:
            if kind == "stop" and len(self._feed.loaders) > 1:
                self._replace(1)  # others would wait for the blocks that a stopped one has claimed
                self._step()
            self._faults.do(kind, self._rng.choice(self._feed.loaders))

    def _replace(self, world_size):
        """Close everything, and go on from the state with another world and other options."""
        self._saved = state = self._feed.state()
        self._end_feed()
        self._feed = Feed(self._stream, world_size, **self._options())
        self._feed.load(state)

    def _options(self):
        return {
            "threads": self._rng.choice([1, 2, 3]),
            "processes": self._rng.choice([1, 1, 1, 1, 2]),
            "prefetch": self._rng.choice([1, 2, 4]),
            "hang_timeout_sec": HANG_SEC,
        }

    def _end_feed(self):
        self._faults.settle()
        self._feed.close()
        for loader in self._feed.loaders:
            self.restarts.update(f"{one.process} {one.reason}" for one in loader.restarts)

    def _gauge(self):
        client = self._feed.loaders[0]._client
        loader = {} if client is None else {"loader": memory_kib(client.pid), "files": num_files(client.pid)}
        return {"trainer": memory_kib(os.getpid())} | {name: value for name, value in loader.items() if value}


def memory_kib(pid):
    """What a process holds for itself, and in slots; pages of files come and go with the machine's need of memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def num_files(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def possessions():
    gc.collect()
    return {"files": num_files(os.getpid()), "threads": len(os.listdir("/proc/self/task"))}


def wait_as_before(before, own):
    """Wait until this process has no more open files, threads and children than it had."""
    wait_own_gone(own)
    wait_for(lambda: all(count <= before[name] for name, count in possessions().items()), f"no more than {before}")


def check_undisturbed(folder):
    """That a stream that nothing disturbs gives what the arithmetic says."""
    stream = stream_of(hr.open(folder))
    expected = Expected(stream)
    with hr.Loader(stream, batch_size=GLOBAL_BATCH) as loader:
        for step, batch in zip(range(UNDISTURBED), loader, strict=False):
            assert content([batch]) == expected.batch(0, step), f"an undisturbed stream differs at step {step}"


def main(url, folder, cache, cache_bytes, batches, faults, seed):
    check_undisturbed(folder)
    stream = stream_of(hr.open(url, cache=cache, cache_size=cache_bytes))
    before, own = possessions(), family(os.getpid())
    soak = Soak(stream, Path(cache), batches, faults, seed)
    try:
        soak.run()
    except BaseException:
        print("the last faults were", *soak.log[-20:], sep="\n  ", file=sys.stderr)
        raise
    wait_as_before(before, own)
    names = ("delivered", "at", "counts", "restarts", "worlds", "gauges")
    print(json.dumps({name: getattr(soak, name) for name in names} | {"possessions": [before, possessions()]}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
