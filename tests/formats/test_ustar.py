"""Tar headers, against Python's own tarfile."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.tar.ustar import END, TarError, make_header, padded, parse_header

_NAMES = st.lists(st.text("abc.äß 日", min_size=1, max_size=90), min_size=1, max_size=4).map("/".join)


@given(_NAMES, st.integers(0, 3000))
def test_tarfile_reads_what_is_written(name, size):
    data = make_header(name, size) + bytes(padded(size)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (member,) = tar.getmembers()
    assert (member.name, member.size, member.mtime, member.mode, member.uid) == (name.rstrip("/"), size, 0, 0o644, 0)


@given(st.text("abc/", min_size=1, max_size=100).filter(lambda name: name.strip("/")), st.integers(0, 8**11 - 1))
def test_what_fits_ustar_is_one_block(name, size):
    header = make_header(name, size)
    assert len(header) == 512
    assert parse_header(header).name == name
    assert parse_header(header).size == size


def test_a_long_name_is_split_at_a_slash():
    name = "d" * 155 + "/" + "f" * 100
    assert len(make_header(name, 1)) == 512
    assert parse_header(make_header(name, 1)).name == name


@pytest.mark.parametrize("name", ["f" * 101, "d" * 156 + "/f", "d/" + "f" * 101, "ä" * 51])
def test_a_name_that_fits_nowhere_has_a_pax_header(name):
    data = make_header(name, 0)
    assert len(data) == 3 * 512
    with tarfile.open(fileobj=io.BytesIO(data + END)) as tar:
        assert tar.getnames() == [name]


def test_a_size_over_8_gib_has_a_pax_header():
    header = make_header("a.bin", 8**11)
    info = tarfile.TarInfo.frombuf(header[:512], "utf-8", "strict")
    assert info.type == tarfile.XHDTYPE
    assert b"19 size=8589934592\n" in header


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_flipped_byte_in_a_header_is_noticed(at, change):
    header = bytearray(make_header("some/name.jpg", 12345))
    header[at] ^= change
    try:
        parsed = parse_header(header)
    except TarError:
        return
    # The checksum field itself has bytes that do not count: its ending, and a space or zero for a leading zero.
    assert 148 <= at < 156
    assert (parsed.name, parsed.size) == ("some/name.jpg", 12345)


def test_sizes_in_base_256_are_read():
    info = tarfile.TarInfo("a.bin")
    info.size = 2**40
    assert parse_header(info.tobuf(tarfile.GNU_FORMAT)).size == 2**40
