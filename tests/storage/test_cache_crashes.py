"""Processes killed while they use a cache, at random and at every instant: what is left is sound, and counted."""

import itertools
import os
import random
import signal

from cache_store import CountingStore, content
from test_cache import Store as MemoryStore
from test_cache import own, used_bytes
from test_cache_processes import QUOTA, SIZE, check_count, go, readers, said

from headrace.storage import locate
from headrace.storage.cache import CacheOptions
from headrace.storage.cache.block import BLOCK_BYTES as BLOCK
from headrace.storage.cache.block import BlockKey, stored_bytes
from headrace.storage.cache.file import CachedFile
from headrace.storage.cache.folder import FolderCache
from headrace.storage.cache.memory import LEAST_BYTES, RamCache
from waiting import wait_for

SMALL = 1000


def test_processes_killed_at_random_leave_a_true_count(tmp_path):
    options = CacheOptions(str(tmp_path / "cache"), 6 * stored_bytes(BLOCK))
    rng = random.Random(5)
    with CountingStore(SIZE) as store:
        for killing in range(2):
            with readers(3, options, store, reads=30, threads=2, seed=killing, forever=True) as processes:
                before = len(store.requests)
                for process in processes:
                    go(process)
                wanted = before + rng.randrange(5, 30)
                wait_for(lambda wanted=wanted: len(store.requests) > wanted, "requests")
                for process in processes:
                    process.kill()
                    process.wait()
            assert used_bytes(options) <= options.max_bytes
        with readers(1, options, store) as (last,):
            go(last)
            assert said(last) == "right"
    check_count(options)
    assert list((own(options) / "parts").iterdir()) == []


CALLS = ("open", "pwritev", "pwrite", "rename", "unlink", "mkdir", "close")


def die_at(instant):
    """From now on, kill this process right before or after its n-th system call that changes files."""
    left = itertools.count(instant, -1)

    def deadly(call):
        def made(*args, **named):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **named)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return made

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))


def child_survives(instant, work):
    """Whether a child that dies at that instant of its work was done before."""
    child = os.fork()
    if child == 0:
        try:
            die_at(instant)
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def read_small(cache, name, count):
    """Read some small files of content that is new under this name."""
    for number in range(count):
        store = MemoryStore(content(SMALL, number))
        file = CachedFile(store.open, cache, f"{name} {number}", SMALL, locate("/"))
        assert file.read(0, SMALL) == store.data


def test_killed_at_any_instant_a_folder_stays_sound(tmp_path):
    """Every instant between two system calls of downloads that make the folder, fill it and evict from it."""

    def work(options):
        cache = FolderCache(options.folder, 2 * stored_bytes(SMALL))
        read_small(cache, "a", 3)
        return cache

    for instant in itertools.count():
        options = CacheOptions(str(tmp_path / str(instant)), QUOTA)
        done = child_survives(instant, lambda options=options: work(options))
        assert used_bytes(options) <= 2 * stored_bytes(SMALL)
        cache = work(options)  # the next user finds what it needs, or fetches it
        cache.drop(BlockKey(bytes(16), 0, 1))  # a change, so that a count left open is made anew
        check_count(options)
        assert list((own(options) / "parts").iterdir()) == []
        if done:
            break
    assert instant > 100, "the instants were not found"


def test_killed_at_any_instant_memory_stays_sound():
    cache = RamCache(10 * stored_bytes(SMALL) + LEAST_BYTES * 3 + os.getpid() % 4096)
    cache._max = 3 * stored_bytes(SMALL)
    for instant in itertools.count():
        done = child_survives(instant, lambda instant=instant: read_small(cache, instant, 2))
        read_small(cache, instant, 2)
        cache.drop(BlockKey(bytes(16), 0, 1))
        live = cache._sizes[: cache._top[0]]
        assert int(live.sum()) <= cache._max
        assert not (live[cache._key_high[: cache._top[0]] == 0]).any()
        assert os.fstat(cache._fd).st_blocks * 512 <= int(live.sum()) + cache._base
        if done:
            break
    assert instant > 10, "the instants were not found"
