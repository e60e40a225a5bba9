"""The cache in one process: what is read, what the store is asked for, who goes first, and what is left alone."""

import errno
import fcntl
import gc
import os
import pickle
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cache_store import content

from headrace.errors import DamagedError, OptionError, StorageError
from headrace.storage import File, locate
from headrace.storage.cache import CacheOptions, cache_options, cached, cached_bytes, open_cache
from headrace.storage.cache import folder as folder_module
from headrace.storage.cache.block import BLOCK_BYTES as BLOCK
from headrace.storage.cache.block import stored_bytes

MIB = 1 << 20
PLACE = locate("http://127.0.0.1/file")


class Store(File):
    """Files in memory that count what is asked of them, and can be damaged or gone."""

    is_remote = True

    def __init__(self, data):
        self.place, self.name, self.data = PLACE, str(PLACE), bytearray(data)
        self.requests, self.opened, self.closed, self.is_gone = [], 0, 0, False

    def open(self):
        self.opened += 1
        return self

    @property
    def size(self):
        return len(self.data)

    def read_into(self, offset, buffer):
        if self.is_gone:
            raise StorageError("cannot read: the store is gone")
        self.requests.append((offset, offset + len(buffer)))
        if offset + len(buffer) > len(self.data):
            raise DamagedError("cut short")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def read(self, offset, length):
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return memoryview(buffer)

    def close(self):
        self.closed += 1


@pytest.fixture(params=["folder", "ram"])
def options(request, tmp_path):
    """A cache that holds 20 blocks and a little more."""
    num_bytes = 20 * stored_bytes(BLOCK) * 32 // 31
    made = cache_options("ram" if request.param == "ram" else tmp_path / "cache", num_bytes + os.getpid() % 4096)
    cache = open_cache(made)
    yield made
    del cache
    gc.collect()


@pytest.fixture
def folder(tmp_path):
    """A cache in a folder that holds 20 blocks and a little more."""
    return cache_options(tmp_path / "cache", 20 * stored_bytes(BLOCK) * 32 // 31)


def reading(store, options, identity="a", num_bytes=None):
    return cached(store.open, options, identity, len(store.data) if num_bytes is None else num_bytes, place=PLACE)


def is_readable(file, offset):
    try:
        file.read(offset, 1)
    except StorageError:
        return False
    return True


def own(options):
    return Path(options.folder) / f"headrace-cache-{os.geteuid()}"


def stored(options):
    """The files of published blocks."""
    return sorted(path for path in own(options).rglob("blocks/*/*") if path.is_file())


def used_bytes(options):
    """What the published blocks take. All are listed before one is looked at, so it is true of one moment."""
    total = 0
    for path in stored(options):
        with suppress(FileNotFoundError):
            total += -(-path.stat().st_size // 4096) * 4096
    return total


def test_what_was_read_once_is_read_again_without_the_store(options):
    store = Store(content(3 * BLOCK + 12345))
    file = reading(store, options)
    assert file.read(0, file.size) == store.data
    store.is_gone = True
    assert file.read(0, file.size) == store.data
    again = reading(store, options)
    for first, last in [(0, 1), (BLOCK - 1, BLOCK + 1), (5, 3 * BLOCK + 7), (3 * BLOCK, file.size), (70000, 70001)]:
        assert again.read(first, last - first) == store.data[first:last]
    assert store.opened == 1


def test_a_store_is_not_even_opened_for_what_is_there(options):
    store = Store(content(BLOCK))
    reading(store, options).read(0, 10)
    reading(store, options).read(BLOCK - 10, 10)
    assert (store.opened, store.requests) == (1, [(0, BLOCK)])


def test_only_missing_blocks_are_fetched_and_neighbours_by_one_request(options):
    store = Store(content(10 * BLOCK - 99))
    file = reading(store, options)
    file.read(4 * BLOCK + 1, 5)
    assert file.read(BLOCK + 7, 8 * BLOCK) == store.data[BLOCK + 7 : 9 * BLOCK + 7]
    last = 10 * BLOCK - 99
    assert store.requests == [(4 * BLOCK, 5 * BLOCK), (BLOCK, 4 * BLOCK), (5 * BLOCK, last)]


def test_a_long_read_is_split_into_requests_of_bounded_size(options):
    store = Store(content(19 * BLOCK))
    assert reading(store, options).read(0, 19 * BLOCK) == store.data
    assert [end - first for first, end in store.requests] == [8 * BLOCK, 8 * BLOCK, 3 * BLOCK]


def test_the_bytes_in_order_come_as_a_stream(options):
    store = Store(content(9 * BLOCK + 5))
    with reading(store, options).stream() as stream:
        parts = [stream.read(100)]
        while part := stream.read(MIB - 1):
            parts.append(part)
    assert b"".join(parts) == store.data
    # Several requests are under way at once, in any order; no byte is asked for twice.
    asked = sorted(store.requests)
    assert [first for first, _ in asked] == [0, *(end for _, end in asked[:-1])]
    assert asked[-1][1] == len(store.data)


def test_another_identity_or_length_is_another_file(options):
    one, two = Store(content(BLOCK, 1)), Store(content(BLOCK, 2))
    assert reading(one, options, "one").read(0, BLOCK) == one.data
    assert reading(two, options, "two").read(0, BLOCK) == two.data
    shorter = Store(content(BLOCK - 1, 3))
    assert reading(shorter, options, "one").read(0, BLOCK - 1) == shorter.data
    assert reading(one, options, "one").read(0, BLOCK) == one.data
    assert len(one.requests) == 1


def test_what_was_forgotten_is_fetched_again(options):
    store = Store(content(4 * BLOCK))
    good = bytes(store.data)
    store.data[BLOCK + 5] ^= 1  # garbled on its way
    file = reading(store, options)
    assert file.read(0, 4 * BLOCK) != good
    store.data[:] = good
    file.forget(BLOCK + 5, 1)
    assert file.read(0, 4 * BLOCK) == good
    assert store.requests == [(0, 4 * BLOCK), (BLOCK, 2 * BLOCK)]
    file.forget(0, 0)
    file.forget(2 * BLOCK - 1, 2)
    file.forget(2 * BLOCK - 1, 2)
    assert file.read(0, 4 * BLOCK) == good
    assert store.requests[2:] == [(BLOCK, 3 * BLOCK)]


def test_ranges_beyond_the_end_and_closed_files_are_refused(options):
    store = Store(content(100))
    file = reading(store, options)
    assert file.read(100, 0) == b""
    with pytest.raises(DamagedError, match="cut short: at least 101 bytes expected, 100 found"):
        file.read(1, 100)
    with pytest.raises(DamagedError, match="cut short"):
        file.read(0, 1 << 60)
    file.read(0, 1)
    file.close()
    file.close()
    assert store.closed == 1
    with pytest.raises(StorageError, match="it has been closed"):
        file.read(0, 1)


def test_a_file_shorter_than_was_said_is_damaged_and_nothing_is_kept(options):
    store = Store(content(BLOCK + 10))
    file = reading(store, options, num_bytes=BLOCK + 20)
    for _ in range(2):
        with pytest.raises(DamagedError, match="cut short"):
            file.read(BLOCK, 5)
    assert len(store.requests) == 2
    assert file.read(0, 5) == store.data[:5]


def test_an_error_of_the_store_lets_go_of_the_claim(options):
    store = Store(content(BLOCK))
    store.is_gone = True
    file = reading(store, options)
    with pytest.raises(StorageError, match="the store is gone"):
        file.read(0, 5)
    store.is_gone = False
    assert file.read(0, 5) == store.data[:5]
    assert store.requests == [(0, BLOCK)]


def test_an_open_file_is_not_pickled_but_its_options_are(options):
    assert pickle.loads(pickle.dumps(options)) == options
    with pytest.raises(TypeError, match="not passed to another process"):
        pickle.dumps(reading(Store(b"x"), options))


def test_whole_contents_of_unknown_length(options):
    calls = []

    def fetch(data):
        calls.append(len(data))
        return data

    for data in (b"", b"x", content(BLOCK), content(2 * BLOCK + 1)):
        for _ in range(3):
            assert cached_bytes(lambda data=data: fetch(data), options, f"{len(data)}", place=PLACE) == data
    assert calls == [0, 1, BLOCK, 2 * BLOCK + 1]


def test_nothing_is_kept_of_contents_that_fetch_refuses(options):
    def damaged():
        raise DamagedError("its checksum is another")

    for _ in range(2):
        with pytest.raises(DamagedError, match="another"):
            cached_bytes(damaged, options, "idx", place=PLACE)
    assert cached_bytes(lambda: b"sound", options, "idx", place=PLACE) == b"sound"


def test_least_recently_used_blocks_go_first(options, monkeypatch):
    monkeypatch.setattr(folder_module, "TOUCH_SEC", -1.0)
    store = Store(content(20 * BLOCK))
    file = reading(store, options)
    for number in range(20):
        file.read(number * BLOCK, 1)
        time.sleep(0.01)  # file systems tell times apart by some milliseconds
    for number in (0, 7, 1):
        file.read(number * BLOCK, 1)
        time.sleep(0.01)
    more = Store(content(4 * BLOCK, 1))
    reading(more, options, "more").read(0, 4 * BLOCK)
    store.is_gone = True
    gone = [number for number in range(20) if not is_readable(file, number * BLOCK)]
    by_last_use = [2, 3, 4, 5, 6, *range(8, 20), 0, 7, 1]
    assert gone == by_last_use[: len(gone)]
    assert 4 <= len(gone) <= 6  # a little more than was needed, so that not every block looks for room


def test_a_cache_is_never_fuller_than_its_quota(folder):
    for seed in range(12):
        store = Store(content(4 * BLOCK, seed))
        reading(store, folder, str(seed)).read(0, 4 * BLOCK)
        assert used_bytes(folder) <= folder.max_bytes
    assert used_bytes(folder) > folder.max_bytes // 2
    assert list((own(folder) / "parts").iterdir()) == []


def test_memory_is_given_back(tmp_path):
    options = CacheOptions("ram", 5 * stored_bytes(BLOCK) + os.getpid() % 4096)
    cache = open_cache(options)
    for seed in range(5):
        store = Store(content(3 * BLOCK, seed))
        reading(store, options, str(seed)).read(0, 3 * BLOCK)
        table = 4096 * 8
        assert os.fstat(cache._fd).st_blocks * 512 <= options.max_bytes + table


def test_each_process_keeps_the_quota_it_was_given(folder):
    store = Store(content(20 * BLOCK))
    reading(store, folder).read(0, 20 * BLOCK)
    smaller = CacheOptions(folder.folder, 5 * stored_bytes(BLOCK))
    reading(Store(content(BLOCK, 1)), smaller, "other").read(0, 1)
    assert used_bytes(folder) <= smaller.max_bytes


def test_a_file_larger_than_the_quota_is_read_all_the_same(options):
    store = Store(content(50 * BLOCK))
    assert reading(store, options).read(0, 50 * BLOCK) == store.data


def test_what_others_put_there_is_left_alone(folder):
    reading(Store(content(BLOCK)), folder).read(0, 1)
    block = stored(folder)[0]
    foreign = {
        own(folder).parent / "thesis.tex": b"a year's work",
        own(folder) / "notes.txt": b"mine",
        block.parent / "picture.jpg": b"jpeg",
        own(folder) / "blocks" / "photos" / block.name: b"in another folder",
        own(folder) / "blocks" / "zz": b"not a folder",
        own(folder) / "parts" / "draft": b"not a part",
    }
    for path, data in foreign.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data * BLOCK)
    (block.parent / (block.name[:-1] + "77")).symlink_to(own(folder).parent / "thesis.tex")
    for seed in range(1, 12):
        reading(Store(content(4 * BLOCK, seed)), folder, str(seed)).read(0, 4 * BLOCK)
    assert not block.exists()
    for path, data in foreign.items():
        assert path.read_bytes() == data * BLOCK
    assert (block.parent / (block.name[:-1] + "77")).is_symlink()


def test_the_folder_is_this_users_alone_and_marked(folder):
    reading(Store(content(BLOCK)), folder).read(0, 1)
    assert own(folder).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in own(folder).rglob("*") if path.is_file()} == {0o600}
    assert (own(folder) / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


def test_a_folder_of_that_name_that_is_no_cache_is_refused(folder):
    own(folder).mkdir(parents=True)
    (own(folder) / "photos").mkdir()
    with pytest.raises(StorageError, match="is not a cache of headrace"):
        open_cache(folder)


def test_a_link_in_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    own(folder).parent.mkdir()
    own(folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot use the cache"):
        open_cache(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder that belongs to another user")
def test_a_folder_of_another_user_is_refused(folder):
    own(folder).mkdir(parents=True)
    os.chown(own(folder), 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        open_cache(folder)


def test_links_in_place_of_blocks_are_not_followed(folder, tmp_path):
    store = Store(content(BLOCK))
    reading(store, folder).read(0, 1)
    block = stored(folder)[0]
    block.rename(tmp_path / "copy")
    block.symlink_to(tmp_path / "copy")
    assert reading(store, folder).read(0, BLOCK) == store.data
    assert len(store.requests) == 2


def test_a_link_in_place_of_a_part_is_not_written_through(folder, tmp_path):
    (tmp_path / "thesis.tex").write_bytes(b"a year's work")
    store = Store(content(BLOCK))
    file = reading(store, folder)
    (own(folder) / "parts" / file._key(0).name).symlink_to(tmp_path / "thesis.tex")
    assert file.read(0, BLOCK) == store.data
    assert (tmp_path / "thesis.tex").read_bytes() == b"a year's work"


def test_a_file_system_without_locks_is_refused_at_once(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(StorageError, match=r"cannot use the cache .*: No locks available"):
        open_cache(folder)


def test_one_cache_for_equal_options(folder):
    one = open_cache(folder)
    assert open_cache(CacheOptions(folder.folder, folder.max_bytes)) is one


def test_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_options(None) is None
    assert cache_options("here", "4MiB") == CacheOptions(str(tmp_path / "here"), 4 * MIB)
    assert cache_options("file:///x/y", 4 * MIB).folder == "/x/y"
    assert cache_options("./ram", "4MiB").folder == str(tmp_path / "ram")
    assert cache_options("ram", "4MiB") == CacheOptions("ram", 4 * MIB)
    assert cache_options("ram").max_bytes > 4 * MIB
    disk = os.statvfs(tmp_path)
    assert cache_options(tmp_path / "not" / "yet").max_bytes == disk.f_blocks * disk.f_frsize // 2


@pytest.mark.parametrize(
    ("cache", "size", "message"),
    [
        (None, "1GiB", "cache_size goes with cache"),
        ("c", "1MiB", r"at least one block, 2,101,248 bytes: got 1,048,576"),
        ("ram", 1, "at least one block"),
        ("ram", "7000TB", "must fit the memory"),
        ("s3://bucket/cache", "1GiB", "must be a path on a local disk"),
        ("c", "many", "cache_size must be a number of bytes"),
        ("", "1GiB", "not empty"),
    ],
)
def test_options_that_cannot_work_are_refused(cache, size, message):
    with pytest.raises(OptionError, match=message):
        cache_options(cache, size)


def test_a_relative_folder_is_no_cache_options():
    with pytest.raises(OptionError, match="absolute path"):
        CacheOptions("c", 1 << 30)
