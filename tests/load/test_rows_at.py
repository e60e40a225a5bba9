"""Rows taken out of many arrays by their addresses are those that indexing each array gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.columns import numbered
from headrace.load.keys import joined, strings
from headrace.load.rows_at import RowsAt, copy_rows

SHAPES = st.lists(st.integers(1, 5), max_size=2).map(tuple)
DTYPES = st.sampled_from(["u1", "<i2", "<f4", "<f8", "V3", "V17"])


def array(rng, num_rows, shape, dtype, gap):
    """An array whose rows lie in one piece each, with a gap behind each of them."""
    width = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int))
    data = rng.integers(0, 100, num_rows * (width + gap) + 1, np.uint8)
    inner = np.empty(shape, dtype).strides
    return np.ndarray((num_rows, *shape), dtype, data.data, 0, (width + gap, *inner))


def expected(arrays, which, at):
    return np.stack([arrays[run][row] for run, row in zip(which, at, strict=True)])


@given(st.integers(0, 2**32 - 1), SHAPES, DTYPES, st.integers(1, 6), st.booleans(), st.sampled_from([1, 2**63]))
def test_rows_are_taken_wherever_they_lie(seed, shape, dtype, num_arrays, to_some, most_bytes):
    """Also where they lie too far apart for one array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.load.rows_at._MOST_BYTES", most_bytes)
        check_taken(seed, shape, dtype, num_arrays, to_some)


def check_taken(seed, shape, dtype, num_arrays, to_some):
    rng = np.random.default_rng(seed)
    arrays = [array(rng, int(rng.integers(1, 9)), shape, dtype, int(rng.integers(0, 9))) for _ in range(num_arrays)]
    which = rng.integers(0, num_arrays, 20)
    at = np.array([rng.integers(0, len(arrays[run])) for run in which])
    target = np.zeros((40, *shape), dtype)
    rows = np.sort(rng.permutation(40)[:20]) if to_some else slice(20)
    copy_rows([RowsAt(one) for one in arrays], which, at, target, rows)
    assert target[rows].tobytes() == expected(arrays, which, at).tobytes()
    assert not target[np.setdiff1d(np.arange(40), np.arange(40)[rows])].tobytes().strip(b"\0")


def test_more_than_is_copied_at_once_becomes_another_type():
    arrays = [np.arange(300_000, dtype=np.uint16).reshape(100, 3000) + n for n in range(3)]
    which, at = np.arange(300) % 3, np.arange(300) // 3
    target = np.zeros((300, 3000), np.int64)
    copy_rows([RowsAt(one) for one in arrays], which, at, target, slice(None))
    assert np.array_equal(target, expected(arrays, which, at))


def test_wide_rows_in_memory_far_apart_are_taken():
    """Of overlapping rows from one to the other numpy would make no array: it would have more than 2^63 bytes."""
    wide = np.arange(2 << 20, dtype=np.uint8).reshape(2, 1 << 20)

    class Far(RowsAt):
        """As if it lay at the other end of the address space, where nothing may be looked at."""

        def __init__(self, array):
            super().__init__(array)
            self.address += 1 << 46

    target = np.zeros((3, 1 << 20), np.uint8)
    copy_rows([RowsAt(wide), Far(wide + 1)], np.array([0, 1, 0]), np.array([1, 0, 0]), target, slice(None))
    assert np.array_equal(target, np.stack([wide[1], wide[0] + 1, wide[0]]))


def test_rows_without_a_byte_are_nothing_to_copy():
    copy_rows([RowsAt(np.zeros((3, 0), np.int32))], np.array([0]), np.array([2]), np.zeros((1, 0), np.int32), slice(1))


def test_rows_that_are_not_in_one_piece_are_copied_first():
    columns = np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::2]
    stored = RowsAt(columns)
    target = np.zeros((2, 3), np.int32)
    copy_rows([stored], np.array([0, 0]), np.array([3, 1]), target, slice(None))
    assert np.array_equal(target, columns[[3, 1]])
    assert bytes(stored[1]) == columns[1].tobytes()


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_an_array_does_not_have_are_refused(row):
    stored = RowsAt(np.zeros((4, 2), np.int32))
    with pytest.raises(IndexError, match="rows must lie in their arrays"):
        copy_rows([stored], np.array([0]), np.array([row]), np.zeros((1, 2), np.int32), slice(None))


@given(st.lists(st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=3), min_size=1), min_size=1))
def test_keys_are_the_same_however_they_came(parts):
    def sent(keys):
        """As characters, where they may come so."""
        lengths = {len(key) for key in keys}
        return np.frombuffer("".join(keys).encode(), f"V{lengths.pop()}") if len(lengths) == 1 else keys

    all_keys = [key for keys in parts for key in keys]
    rows = np.random.default_rng(len(all_keys)).permutation(len(all_keys))
    ends = np.cumsum([len(keys) for keys in parts])
    places = [rows[end - len(keys) : end] for keys, end in zip(parts, ends, strict=True)]
    found = strings(joined([(at, sent(keys)) for at, keys in zip(places, parts, strict=True)], len(all_keys)))
    assert [found[row] for row in rows] == all_keys


@given(st.text(min_size=1, max_size=4), st.integers(0, 10**7), st.integers(0, 30), st.integers(1, 50))
def test_numbered_keys_are_stem_and_number(stem, first, count, stride):
    numbers = np.arange(first, first + count * stride, stride, dtype=np.int64)
    assert strings(numbered(stem, numbers)) == [f"{stem}:{number}" for number in numbers]
