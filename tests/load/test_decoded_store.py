"""Stores of decoded samples by themselves: what comes back is what was put in, from any number of writers at a time."""

import os
import subprocess
import sys
import threading
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.load.decoded.encoding import decode, encode
from headrace.load.decoded.folder import FolderStore
from headrace.load.decoded.ram import RamStore
from headrace.load.decoded.store import base_bytes

NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none() | st.text(max_size=9)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # what a file of JSON in UTF-8 can hold
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
ARRAYS = arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
VALUES = NUMBERS | JSON | ARRAYS | st.binary(max_size=99) | st.binary(max_size=99).map(memoryview)


@given(values=st.lists(VALUES, max_size=5), copies=st.booleans())
def test_a_sample_comes_back_to_the_type_and_the_bit(values, copies):
    sample = {"__key__": "a", **{f"f{i}": value for i, value in enumerate(values)}}
    blob = encode(sample)
    if blob is None:
        assert any(is_odd(value) for value in values)
        return
    found = decode(blob.data.toreadonly(), copies=copies)
    assert list(found) == list(sample)
    for name, value in sample.items():
        assert_same(found[name], value)
        if isinstance(value, np.ndarray):
            assert found[name].flags.writeable == copies


def is_odd(value):
    """A text that is no Unicode, or an array of what has no bytes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.itemsize == 0 or value.dtype.kind not in "biufcSUmM"
    return isinstance(value, str) and not value.isascii() and max(value) >= "\ud800"


def assert_same(found, value):
    assert type(found) is type(value)
    if isinstance(value, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
    elif isinstance(value, float):
        assert np.float64(found).tobytes() == np.float64(value).tobytes() or (found != found and value != value)
    else:
        assert repr(found) == repr(value) if not isinstance(value, memoryview) else found == value


@pytest.mark.parametrize(
    "value",
    [np.array([{}], object), (1, 2), {"day": date(2026, 1, 1)}, {1: 2}, [float("nan")], object(), bytearray(b"x")],
)
def test_what_would_come_back_as_something_else_is_not_kept(value):
    assert encode({"__key__": "a", "x": value}) is None


def blob_of(number):
    return encode({"__key__": str(number), "x": np.full(100 + 37 * number, number, np.int32)})


def writes_all(store, numbers):
    for number in numbers:
        assert store.put(number, blob_of(number))


def assert_has_all(store, num_samples):
    assert store.has_all(0, num_samples)
    for number in range(num_samples):
        assert bytes(store.get(number)) == blob_of(number).tobytes()


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_threads_put_side_by_side(place, tmp_path):
    store = make_store(place, tmp_path, 200)
    threads = [threading.Thread(target=writes_all, args=(store, range(k, 200, 4))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_has_all(store, 200)


WRITER = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from test_decoded_store import make_store, writes_all
store = make_store(sys.argv[2], sys.argv[3], 300)
print("ready", flush=True)
sys.stdin.readline()
writes_all(store, range(int(sys.argv[4]), 300, 2))
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_processes_put_side_by_side(place, tmp_path):
    """They find the same store, and none writes where another one does: nor over what was put twice."""
    command = [sys.executable, "-c", WRITER, ":".join(p for p in sys.path if p), place, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(k)], **pipes) for k in (0, 1, 1)]
    for word in ("ready\n", "done\n"):
        assert [writer.stdout.readline() for writer in writers] == [word] * 3
        if word == "done\n":
            assert_has_all(make_store(place, tmp_path, 300), 300)
        for writer in writers:
            writer.stdin.write("\n")
            writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0


def make_store(place, folder, num_samples):
    name = f"{os.path.realpath(folder).encode().hex()[-24:]:0>32}"
    if place == "ram":
        return RamStore(name, num_samples, 1 << 30, is_modest=False)
    return FolderStore(str(folder), name, num_samples, 1 << 30)


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_a_store_takes_what_its_quota_says_to_the_sample(place, tmp_path):
    blob = np.full(1000, 7, np.uint8)
    name = f"{os.getpid():032x}"
    quota = base_bytes(9) + 3 * 1024
    if place == "ram":
        store = RamStore(name, 9, quota, is_modest=False)
    else:
        store = FolderStore(str(tmp_path), name, 9, quota)
    assert [store.put(number, blob) for number in range(5)] == [True] * 3 + [False] * 2
    assert [store.get(number) is not None for number in range(5)] == [True] * 3 + [False] * 2
    assert not store.takes_more


def test_a_sample_that_is_not_one_is_forgotten(tmp_path):
    """A record that points anywhere, of a file that others wrote into."""
    store = make_store("folder", tmp_path, 4)
    writes_all(store, range(4))
    (path,) = tmp_path.glob("*/*.decoded")
    with open(path, "r+b") as file:
        file.seek(4096)
        record = file.read(32)
        file.seek(4096 + 32)  # sample 1 is said to lie where sample 0 does: a record of another sample
        file.write(record[:5] + b"\x01" + record[6:])
    assert store.get(1) is None
    assert bytes(store.get(0)) == blob_of(0).tobytes()
