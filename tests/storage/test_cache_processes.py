"""The cache between processes: each byte is downloaded once, whoever dies, and the count of bytes is true after it."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cache_store import CountingStore, content
from test_cache import Store as MemoryStore
from test_cache import own, reading, used_bytes

from headrace.storage.cache import CacheOptions, open_cache
from headrace.storage.cache import file as file_module
from headrace.storage.cache.block import BLOCK_BYTES as BLOCK
from headrace.storage.cache.block import stored_bytes
from headrace.storage.cache.ledger import _RECORD
from headrace.storage.cache.memory import RamCache
from waiting import DEADLINE_SEC, running, wait_for

READER = Path(__file__).with_name("cache_reader.py")
SIZE = 8 * BLOCK + 4321
QUOTA = 100 * stored_bytes(BLOCK)
SMALL = 1000


@contextmanager
def readers(count, options, store, reads="all", **more):
    """So many processes that are ready to read."""
    told = {"folder": options.folder, "max_bytes": options.max_bytes, "num_bytes": store.num_bytes, "reads": reads}
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                running(
                    [sys.executable, READER, json.dumps({"url": store.url(), **told, "seed": seed, **more})],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for seed in range(count)
        ]
        for process in started:
            word, process.memory = process.stdout.readline().split()
            assert word == "ready"
        yield started


def check_count(options):
    """What the cache believes to hold is what it holds."""
    magic, _, used, is_open = _RECORD.unpack_from((own(options) / "state").read_bytes())
    assert (magic, is_open, used) == (b"hrcount1", 0, used_bytes(options))
    assert used <= options.max_bytes


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def said(process):
    watchdog = threading.Timer(DEADLINE_SEC, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline().strip()
    finally:
        watchdog.cancel()


@pytest.fixture(params=["folder", "ram"])
def options(request, tmp_path):
    return CacheOptions("ram" if request.param == "ram" else str(tmp_path / "cache"), QUOTA + os.getpid())


def test_each_byte_is_downloaded_once_whoever_wants_it_at_the_same_time(options):
    with CountingStore(SIZE) as store, readers(4, options, store, threads=3) as processes:
        for process in processes:
            go(process)
        assert [said(process) for process in processes] == ["right"] * 4
        assert store.sent_bytes == SIZE


def test_a_second_epoch_needs_no_store(options):
    with ExitStack() as stack:
        with CountingStore(SIZE) as store:
            first, second = stack.enter_context(readers(2, options, store))
            go(first)
            assert said(first) == "right"
        go(second)  # another process, in another order, and the store is gone
        assert said(second) == "right"


def test_a_dead_downloaders_blocks_are_downloaded_by_those_who_wait(options):
    with CountingStore(SIZE) as store, readers(3, options, store, threads=2) as (dying, *waiting):
        store.is_open.clear()
        go(dying)
        wait_for(lambda: store.requests, "the first request")
        for process in waiting:
            go(process)
        dying.kill()
        dying.wait()
        before = store.sent_bytes  # asked for, never answered
        store.is_open.set()
        assert [said(process) for process in waiting] == ["right"] * 2
        asked = sum(end - first for _, first, end in store.requests)
        assert asked - before <= SIZE


def test_a_stopped_downloader_is_not_waited_for_for_ever(options, monkeypatch):
    monkeypatch.setattr(file_module, "PATIENCE_SEC", 0.1)
    store = MemoryStore(content(SIZE))
    file = reading(store, options)
    with open_cache(options).locks() as others:
        for number in range(9):
            assert others.try_take(file._key(number).claim)
        assert file.read(5, SIZE - 5) == store.data[5:]
        assert store.requests == [(5, SIZE)]
    assert file.read(5, SIZE - 5) == store.data[5:]
    assert file.read(0, SIZE) == store.data
    assert store.requests[1:] == [(0, 8 * BLOCK), (8 * BLOCK, SIZE)]


def test_a_forked_child_holds_no_claim(options):
    cache = open_cache(options)
    store = MemoryStore(content(BLOCK))
    file = reading(store, options)
    ready, done = os.pipe(), os.pipe()
    with cache.locks() as claims:
        assert claims.try_take(1)
        child = os.fork()
        if child == 0:
            try:
                os.write(ready[1], b"r" if file.read(0, BLOCK) == store.data else b"w")
                os.read(done[0], 1)
            finally:
                os._exit(0)
        try:
            assert os.read(ready[0], 1) == b"r"  # reading works there, past a claim of the parent's
            os.close(claims.fd)  # as if this process were killed: nothing is unlocked
            with cache.locks() as others:
                assert others.try_take(1)
            claims.fd = -1
        finally:
            os.write(done[1], b"x")
            os.waitpid(child, 0)
            for fd in ready + done:
                os.close(fd)


def test_processes_that_start_together_share_one_memory():
    options = CacheOptions("ram", QUOTA + os.getpid())
    with CountingStore(BLOCK) as store, readers(5, options, store) as processes:
        inodes = {os.stat(f"/proc/{process.pid}/fd/{process.memory}").st_ino for process in processes}
        assert len(inodes) == 1


def test_memory_is_gone_with_its_last_process_however_it_ends():
    options = CacheOptions("ram", QUOTA + os.getpid())
    with CountingStore(SIZE) as store, readers(2, options, store) as processes:
        go(processes[0])
        assert said(processes[0]) == "right"
        inode = os.stat(f"/proc/{processes[1].pid}/fd/{processes[1].memory}").st_ino
        processes[0].kill()
        go(processes[1])
        assert said(processes[1]) == "right"
        assert store.sent_bytes == SIZE  # the other's death took nothing away
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        cache = RamCache(options.max_bytes)
        assert os.fstat(cache._fd).st_ino != inode
        assert not cache._top[0]
    assert not [name for name in os.listdir("/dev/shm") if "headrace" in name]


def test_processes_that_publish_together_keep_the_quota(tmp_path):
    options = CacheOptions(str(tmp_path / "cache"), 5 * stored_bytes(BLOCK))
    parts = own(options) / "parts"
    with CountingStore(SIZE) as store, readers(4, options, store, reads=25, longest=BLOCK) as processes:
        for process in processes:
            go(process)
        results = []
        collecting = threading.Thread(target=lambda: results.extend(said(process) for process in processes))
        collecting.start()
        while collecting.is_alive():
            assert used_bytes(options) <= options.max_bytes
            assert len(list(parts.iterdir())) <= len(processes)
        assert results == ["right"] * 4
    check_count(options)
    assert list(parts.iterdir()) == []
