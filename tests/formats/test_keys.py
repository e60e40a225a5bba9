"""The index of keys: every key is found where it is, by little reading, and damage is never a wrong answer."""

import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DamagedError, DatasetError, ManifestError, StorageError
from headrace.formats import key_hash, key_runs
from headrace.formats.keys import KeyTable, write_keys
from headrace.storage import LocalFile

SOURCE = bytes(range(16))
PAGE_BYTES = 4096


def write(path, *chunks):
    """A file of these hashes, chunk by chunk; returns its table."""
    number = write_keys(path, SOURCE, [np.array(chunk, np.uint64) for chunk in chunks])
    with LocalFile(path) as file:
        table = KeyTable.read(file)
        assert len(table) == number == sum(map(len, chunks))
        assert (table.source, list(table.damage(file))) == (SOURCE, [])
    return table


def numbers_by_hash(hashes):
    found = {}
    for number, one in enumerate(np.asarray(hashes, np.uint64).tolist()):
        found.setdefault(one, []).append(number)
    return found


def check_finds(path, table, hashes, others=()):
    with LocalFile(path) as file:
        for one, numbers in numbers_by_hash(hashes).items():
            assert table.find(file, one) == numbers
        for one in others:
            assert table.find(file, one) == []


HASHES = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3), st.sampled_from([2**64 - 1, 2**63, 2**52]))


@given(st.lists(st.lists(HASHES, max_size=60), max_size=5), st.lists(st.integers(2**33, 2**64 - 2), max_size=5))
def test_every_key_is_found_and_no_other(tmp_path_factory, chunks, others):
    path = tmp_path_factory.mktemp("keys") / "headrace.keys"
    hashes = [one for chunk in chunks for one in chunk]
    check_finds(path, write(path, *chunks), hashes, set(others) - set(hashes))


@pytest.mark.parametrize("size", [0, 1, 339, 340, 341, 680, 100_000])
def test_keys_that_fill_pages_are_found(tmp_path, size):
    hashes = np.random.default_rng(size).integers(0, 2**64, size, np.uint64, endpoint=False)
    path = tmp_path / "k"
    table = write(path, hashes)
    check_finds(path, table, hashes[:2000], [0, 1, 2**64 - 1])
    with LocalFile(path) as file:
        assert all(table.find(file, int(hashes[i])) == [i] for i in range(max(0, size - 400), size))
    again = pickle.loads(pickle.dumps(table))
    check_finds(path, again, hashes[:5])
    assert path.stat().st_size <= 12.1 * size + PAGE_BYTES + 100
    assert table.nbytes <= 8 * (size / 340 + 1)


def test_equal_hashes_over_several_pages_are_all_found(tmp_path):
    hashes = np.sort(np.concatenate([np.full(1000, 7), np.full(400, 9), np.arange(10, 500)]).astype(np.uint64))[::-1]
    path = tmp_path / "k"
    check_finds(path, write(path, hashes), hashes, [0, 6, 8, 501])


def test_a_key_costs_one_read_of_a_page_or_two(tmp_path):
    reads = []

    class Counting(LocalFile):
        def read(self, offset, length):
            reads.append(length)
            return super().read(offset, length)

    hashes = np.array([key_hash(f"key {i}") for i in range(50_000)], np.uint64)
    table = write(tmp_path / "k", hashes)
    with Counting(tmp_path / "k") as file:
        for i in range(0, 50_000, 50):
            assert table.find(file, key_hash(f"key {i}")) == [i]
        assert len(reads) == 1000
        assert set(reads) <= {PAGE_BYTES, 2 * PAGE_BYTES}
        assert reads.count(2 * PAGE_BYTES) < 20


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(0, 2**32))
def test_runs_that_are_spilled_and_merged_give_the_same_file(tmp_path_factory, sizes, seed):
    """With runs so small that almost everything goes through the unnamed file."""
    folder = tmp_path_factory.mktemp("spill")
    values = np.random.default_rng(seed).integers(0, 2**64, sum(sizes), np.uint64) >> np.uint64(seed % 64)
    chunks = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    write(folder / "in-memory", *chunks)
    normal, key_runs.RUN_KEYS = key_runs.RUN_KEYS, 100
    try:
        write(folder / "spilled", *chunks)
    finally:
        key_runs.RUN_KEYS = normal
    assert (folder / "in-memory").read_bytes() == (folder / "spilled").read_bytes()
    assert sorted(os.listdir(folder)) == ["in-memory", "spilled"]


@given(st.lists(st.lists(st.integers(0, 99), max_size=60), max_size=5), st.integers(1, 200))
def test_hashes_that_several_samples_have_are_all_found(tmp_path_factory, chunks, run_keys):
    """In order of the hashes, through the unnamed file too; writing the index meets the same."""
    folder = tmp_path_factory.mktemp("shared")
    spread = [np.array(chunk, np.uint64) << np.uint64(57) for chunk in chunks]  # over all ranges
    expected = [n for _, n in sorted(numbers_by_hash(np.concatenate([*spread, []])).items()) if len(n) > 1]
    normal, key_runs.RUN_KEYS = key_runs.RUN_KEYS, run_keys
    try:
        met = []
        write_keys(folder / "k", SOURCE, spread, lambda numbers: met.append(numbers.tolist()))
        assert [numbers.tolist() for numbers in key_runs.shared_hashes(spread, folder)] == met == expected
    finally:
        key_runs.RUN_KEYS = normal


def test_numbers_beyond_32_bits_are_kept(tmp_path, monkeypatch):
    hashes = np.arange(1000, dtype=np.uint64) * np.uint64(2**50)
    real = key_runs.KeyRuns.__init__

    def far(self, folder):
        real(self, folder)
        self.num_keys = 2**32 + 5

    monkeypatch.setattr(key_runs.KeyRuns, "__init__", far)
    write_keys(tmp_path / "k", SOURCE, [hashes])
    with LocalFile(tmp_path / "k") as file:
        table = KeyTable.read(file)
        assert [table.find(file, int(one)) for one in hashes[:3]] == [[2**32 + 5], [2**32 + 6], [2**32 + 7]]


def test_many_threads_may_find_at_once(tmp_path):
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    table, wrong = write(tmp_path / "k", hashes), []

    def find(part):
        wrong.extend(i for i in part if table.find(file, int(hashes[i])) != [i])

    with LocalFile(tmp_path / "k") as file:
        threads = [threading.Thread(target=find, args=(range(k, 20_000, 8),)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


SIZE = 2000
SPREAD = np.random.default_rng(1).integers(0, 2**64, SIZE, np.uint64)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "k"
    write(path, SPREAD)
    return path.read_bytes()


def find_all(path):
    """What each hash is found as; None where that raised."""
    with LocalFile(path) as file:
        table, found = KeyTable.read(file), []
        for one in SPREAD.tolist():
            try:
                found.append(table.find(file, one))
            except DamagedError:
                found.append(None)
        return found, list(table.damage(file))


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_is_never_a_wrong_answer(tmp_path_factory, content, at, change):
    path, data = tmp_path_factory.mktemp("flip") / "k", bytearray(content)
    data[int(at * len(data))] ^= change
    path.write_bytes(data)
    try:
        found, damage = find_all(path)
    except DatasetError as err:
        assert "delete it: keys are then looked up in all indexes" in str(err)  # noqa: PT017
        return
    assert all(numbers in ([i], None) for i, numbers in enumerate(found))
    assert len(damage) == 1
    assert "page" in damage[0]


@given(st.floats(0, 1, exclude_max=True), st.binary(max_size=9))
def test_a_file_cut_or_continued_is_refused(tmp_path_factory, content, at, junk):
    path = tmp_path_factory.mktemp("cut") / "k"
    path.write_bytes(content[: int(at * len(content))] + junk)
    with pytest.raises((ManifestError, DamagedError)), LocalFile(path) as file:
        KeyTable.read(file)
    path.write_bytes(content + b"x" + junk)
    with pytest.raises((ManifestError, DamagedError)), LocalFile(path) as file:
        KeyTable.read(file)


def test_pages_that_change_places_are_noticed(tmp_path, content):
    pages = [content[at : at + PAGE_BYTES] for at in range(0, PAGE_BYTES * 6, PAGE_BYTES)]
    (tmp_path / "k").write_bytes(b"".join([pages[1], pages[0], *pages[2:]]) + content[6 * PAGE_BYTES :])
    found, damage = find_all(tmp_path / "k")
    assert len(damage) == 2
    assert found.count(None) in (680, 681)  # the first key of the page behind them may also lie in them


def test_another_version_is_refused(tmp_path, content):
    (tmp_path / "k").write_bytes(content.replace(b"HRKEYS\0\1", b"HRKEYS\0\2"))
    with pytest.raises(ManifestError, match="is of another kind or version"), LocalFile(tmp_path / "k") as file:
        KeyTable.read(file)


def test_a_disk_that_takes_no_more_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write_keys(tmp_path / "missing" / "k", SOURCE, [SPREAD])
