"""What goes wrong around a cache is no error of the reader's: bytes stay right, and one warning says what it was."""

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from cache_store import content
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_cache import Store, own, reading, stored, used_bytes

from headrace.storage.cache import CacheOptions, open_cache
from headrace.storage.cache import cache as cache_module
from headrace.storage.cache import folder as folder_module
from headrace.storage.cache import memory as memory_module
from headrace.storage.cache.block import BLOCK_BYTES as BLOCK
from headrace.storage.cache.block import HEADER_BYTES, stored_bytes

QUOTA = 20 * stored_bytes(BLOCK)


@pytest.fixture
def options(tmp_path):
    return CacheOptions(str(tmp_path / "cache"), QUOTA)


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The warnings so far; none was given before."""
    monkeypatch.setattr(cache_module, "_warned", set())
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@contextmanager
def small_disk(path, num_bytes):
    """A disk of so many bytes, mounted at `path`."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("spare", [True, False], ids=["as good as full", "full"])
def test_a_full_disk_means_reading_on_with_one_warning(tmp_path, monkeypatch, warnings, spare):
    monkeypatch.setattr(cache_module, "REST_SEC", 0.0)  # it tries again and again
    if not spare:
        monkeypatch.setattr(folder_module, "SPARE_BYTES", 0)
    with small_disk(tmp_path / "disk", 5 * BLOCK):
        options = CacheOptions(str(tmp_path / "disk"), QUOTA)
        store = Store(content(12 * BLOCK))
        file = reading(store, options)
        for _ in range(2):
            for number in range(12):
                assert file.read(number * BLOCK + 7, BLOCK - 7) == store.data[number * BLOCK + 7 : (number + 1) * BLOCK]
        assert len(warnings()) == 1
        assert "can take no more" in warnings()[0]
        assert "reading goes on without it" in warnings()[0]
        kept = stored(options)
        assert 2 <= len(kept) <= 4
        assert len(store.requests) == 24 - len(kept)  # what was kept before stays useful
        assert list((own(options) / "parts").iterdir()) == []
        for path in kept[:2]:
            path.unlink()
        file.read(11 * BLOCK, 1)
        assert len(stored(options)) == len(kept) - 1  # with room again, it goes on
        del file


def test_a_full_disk_makes_reads_no_larger(options, monkeypatch, warnings):
    """While a cache rests, only the wanted bytes are fetched."""
    store = Store(content(3 * BLOCK))
    file = reading(store, options)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module, "write_block", full)
    file.read(0, 1)
    file.read(BLOCK - 5, 10)
    assert store.requests == [(0, BLOCK), (BLOCK - 5, BLOCK + 5)]
    assert len(warnings()) == 1


def test_no_memory_means_reading_on_with_one_warning(monkeypatch, warnings):
    options = CacheOptions("ram", QUOTA + os.getpid() % 4096)
    monkeypatch.setattr(cache_module, "REST_SEC", 0.0)
    cache = open_cache(options)
    store = Store(content(3 * BLOCK))
    file = reading(store, options)
    with monkeypatch.context() as failing:

        def full(fd, base, key, data):
            os.pwrite(fd, b"half", base)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        failing.setattr(memory_module, "write_block", full)
        for _ in range(2):
            assert file.read(0, 3 * BLOCK) == store.data
    assert len(store.requests) == 2
    assert len(warnings()) == 1
    assert int(cache._sizes.sum()) == 0
    assert file.read(0, 3 * BLOCK) == file.read(0, 3 * BLOCK) == store.data
    assert len(store.requests) == 3


def test_a_folder_removed_while_in_use(options, warnings):
    store = Store(content(3 * BLOCK))
    file = reading(store, options)
    file.read(0, BLOCK)
    shutil.rmtree(own(options))
    assert file.read(0, 3 * BLOCK) == file.read(0, 3 * BLOCK) == store.data
    assert len(warnings()) == 1
    assert "cannot be used for now (No such file or directory)" in warnings()[0]
    del file
    assert reading(store, options).read(0, 3 * BLOCK) == store.data
    assert len(stored(options)) == 3


def test_what_is_not_a_folder_is_refused_at_once(tmp_path):
    from headrace.errors import StorageError

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot use the cache .*file.*: "):
        open_cache(CacheOptions(str(tmp_path / "file"), QUOTA))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, 3),
        lambda path: flip(path, 60),
        lambda path: flip(path, HEADER_BYTES + 100),
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, HEADER_BYTES + 10),
        lambda path: path.write_bytes(bytes(BLOCK + HEADER_BYTES)),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["name", "checksum", "byte", "empty", "cut", "zeros", "link", "pipe"],
)
def test_a_block_damaged_on_the_disk_is_fetched_again_once(options, damage, warnings):
    store = Store(content(BLOCK))
    reading(store, options).read(0, 1)
    damage(stored(options)[0] if stored(options) else None)
    for _ in range(3):
        assert reading(store, options).read(50, 1000) == store.data[50:1050]
    assert store.requests == [(0, BLOCK)] * 2
    assert warnings() == []
    assert used_bytes(options) == stored_bytes(BLOCK)


def test_a_folder_in_place_of_a_block_is_not_removed(options, warnings):
    store = Store(content(BLOCK))
    reading(store, options).read(0, 1)
    path = stored(options)[0]
    path.unlink()
    path.mkdir()
    assert reading(store, options).read(50, 1000) == store.data[50:1050]
    assert path.is_dir()
    assert len(warnings()) == 1


def test_parts_of_the_dead_are_removed_and_of_the_living_kept(options):
    store = Store(content(2 * BLOCK))
    file = reading(store, options)
    cache = open_cache(options)
    dead, living = (own(options) / "parts" / file._key(number).name for number in range(2))
    with cache.locks() as claims:
        assert claims.try_take(file._key(1).claim)
        dead.write_bytes(b"half")
        living.write_bytes(b"half")
        del file, cache
        open_cache(CacheOptions(options.folder, QUOTA + 1))
        assert not dead.exists()
        assert living.exists()
    assert reading(store, options).read(0, 2 * BLOCK) == store.data
    assert not living.exists()


@pytest.mark.parametrize("record", [b"", b"\0" * 48, b"garbage" * 20], ids=["empty", "zeros", "garbage"])
def test_a_lost_count_is_made_anew_from_the_files(options, record):
    first = Store(content(19 * BLOCK))
    reading(first, options).read(0, 19 * BLOCK)
    (own(options) / "state").write_bytes(record)
    second = Store(content(4 * BLOCK, 1))
    reading(second, options, "b").read(0, 4 * BLOCK)
    assert used_bytes(options) <= QUOTA


def test_after_a_restart_of_the_machine_the_files_are_counted_again(options, monkeypatch, tmp_path):
    """What was written last may be lost then: the count must not go on from an old record."""
    first = Store(content(19 * BLOCK))
    reading(first, options).read(0, 19 * BLOCK)
    stale = (own(options) / "state").read_bytes()
    reading(Store(content(1, 2)), options, "one").read(0, 1)
    for path in stored(options)[:10]:
        path.unlink()
    (own(options) / "state").write_bytes(stale)
    (tmp_path / "boot_id").write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    monkeypatch.setattr("headrace.storage.cache.ledger._BOOT_ID", tmp_path / "boot_id")
    cache = open_cache(CacheOptions(options.folder, QUOTA + 1))
    with cache._ledger.opened() as account:
        assert account.used_bytes == used_bytes(options)


class Machine(RuleBasedStateMachine):
    """Two caches on one folder, of different quotas, and a disk and a user that interfere."""

    def __init__(self):
        super().__init__()
        self.folder = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
        self.quotas = [4 * stored_bytes(BLOCK), 7 * stored_bytes(BLOCK)]
        self.stores = [Store(content(5 * BLOCK // 2 + seed, seed)) for seed in range(3)]
        self.files = [
            [reading(store, CacheOptions(self.folder, quota), store.data[:9].hex()) for store in self.stores]
            for quota in self.quotas
        ]
        self.last = 1

    def teardown(self):
        shutil.rmtree(self.folder)

    def blocks(self):
        return stored(CacheOptions(self.folder, self.quotas[0]))

    @rule(cache=st.integers(0, 1), store=st.integers(0, 2), first=st.floats(0, 1), length=st.integers(1, 3 * BLOCK))
    def read(self, cache, store, first, length):
        file, right = self.files[cache][store], self.stores[store].data
        at = int(first * (len(right) - 1))
        length = min(length, len(right) - at)
        before = used_bytes(CacheOptions(self.folder, self.quotas[0]))
        assert file.read(at, length) == right[at : at + length]
        if used_bytes(CacheOptions(self.folder, self.quotas[0])) != before:
            self.last = cache

    @rule(cache=st.integers(0, 1), store=st.integers(0, 2), first=st.integers(0, 5 * BLOCK // 2 - 1))
    def forget(self, cache, store, first):
        self.files[cache][store].forget(first, 1)

    @precondition(lambda self: self.blocks())
    @rule(which=st.floats(0, 1), at=st.floats(0, 1))
    def damage(self, which, at):
        blocks = self.blocks()
        path = blocks[int(which * (len(blocks) - 1))]
        flip(path, int(at * (path.stat().st_size - 1)))

    @precondition(lambda self: self.blocks())
    @rule(which=st.floats(0, 1))
    def remove(self, which):
        blocks = self.blocks()
        blocks[int(which * (len(blocks) - 1))].unlink()

    @invariant()
    def keeps_the_quota(self):
        assert used_bytes(CacheOptions(self.folder, self.quotas[0])) <= self.quotas[1]

    @invariant()
    def counts_at_least_what_is_there(self):
        with open_cache(CacheOptions(self.folder, self.quotas[0]))._ledger.opened() as account:
            assert account.used_bytes >= used_bytes(CacheOptions(self.folder, self.quotas[0]))


Machine.TestCase.settings = settings(max_examples=12, stateful_step_count=15)
TestMachine = Machine.TestCase
