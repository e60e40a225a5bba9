"""The stored form of a block: any range of it comes back right, and nothing that was changed is ever returned."""

import os

import pytest
from cache_store import content
from hypothesis import given
from hypothesis import strategies as st

from headrace.storage.cache.block import (
    BLOCK_BYTES,
    HEADER_BYTES,
    PAGE_BYTES,
    BlockFile,
    BlockKey,
    content_id,
    parse_name,
    read_block,
    stored_bytes,
    write_block,
)

DATA = content(BLOCK_BYTES)
LENGTHS = st.one_of(
    st.integers(1, BLOCK_BYTES),
    st.builds(lambda pages, more: max(1, pages * PAGE_BYTES + more), st.integers(0, 31), st.integers(-2, 2)),
)


@pytest.fixture(scope="module")
def fd():
    made = os.memfd_create("block")
    yield made
    os.close(made)


def write(fd, length, number=7):
    key = BlockKey(content_id("x", 1 << 40), number, length)
    os.ftruncate(fd, 0)
    write_block(fd, 0, key, memoryview(DATA)[:length])
    return key


def read(fd, key, start, length):
    view = memoryview(bytearray(length))
    return bytes(view) if read_block(BlockFile(fd), key, start, view) else None


@given(length=LENGTHS, draw=st.data())
def test_any_range_comes_back(fd, length, draw):
    key = write(fd, length)
    first = draw.draw(st.integers(0, length - 1))
    last = draw.draw(st.integers(first + 1, length))
    assert read(fd, key, first, last - first) == DATA[first:last]
    assert os.fstat(fd).st_size == HEADER_BYTES + length
    assert stored_bytes(length) - 4096 < HEADER_BYTES + length <= stored_bytes(length)


@given(length=LENGTHS, draw=st.data())
def test_a_changed_byte_is_noticed_or_not_read(fd, length, draw):
    key = write(fd, length)
    first = draw.draw(st.integers(0, length - 1))
    last = draw.draw(st.integers(first + 1, length))
    in_pages = st.integers(HEADER_BYTES + first // PAGE_BYTES * PAGE_BYTES, HEADER_BYTES + last - 1)
    at = draw.draw(st.one_of(st.integers(0, 40 + 8 * -(-length // PAGE_BYTES) + 7), in_pages))
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ (1 << draw.draw(st.integers(0, 7)))]), at)
    assert read(fd, key, first, last - first) is None


@given(length=LENGTHS, draw=st.data())
def test_a_block_cut_short_is_not_read_beyond_its_end(fd, length, draw):
    key = write(fd, length)
    end = draw.draw(st.integers(0, HEADER_BYTES + length - 1))
    os.ftruncate(fd, end)
    first = draw.draw(st.integers(0, length - 1))
    assert read(fd, key, first, length - first) is None


def test_another_blocks_bytes_are_not_taken_for_it(fd):
    key = write(fd, 1000)
    for other in (key._replace(number=8), key._replace(length=999), key._replace(content=content_id("y", 1 << 40))):
        assert read(fd, other, 0, 1) is None
    os.ftruncate(fd, 0)
    assert read(fd, key, 0, 1) is None


def test_content_has_one_id_for_identity_and_length():
    assert len({content_id(identity, size) for identity in ("a", "b", "a 1") for size in (1, 2, 11)}) == 9


@given(st.text(max_size=60))
def test_only_names_that_the_cache_gives_are_its_own(name):
    assert parse_name(name) is None


@given(st.binary(min_size=16, max_size=16), st.integers(0, 10**17))
def test_names_tell_block_and_claim(stuff, number):
    key = BlockKey(stuff, number, 5)
    assert parse_name(key.name) == (stuff, number)
    assert 0 < key.claim < 2**62
    assert parse_name(key.name + "\n") is parse_name("../" + key.name) is parse_name(key.name.upper() + "x") is None
