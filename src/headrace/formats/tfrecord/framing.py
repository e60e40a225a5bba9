"""The frame around each record of a TFRecord file: its length, and a checksum before and behind the data.

    u64 length | u32 masked crc32c of the length | data | u32 masked crc32c of the data          little-endian

A checksum is masked by turning it right by 15 bits and adding 0xa282ead8, so that data which holds checksums itself is
checked well too. Where a length is wrong nothing behind it can be found, unless a file as DALI's tfrecord2idx writes it
(`OFFSET LENGTH` a line) says where records lie.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats.records.lines import check_length
from headrace.formats.records.stream import ShardStream

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # of crc32c, its bits reversed
_OUR_INDEX = b"ARROW1"  # an index of headrace has the same name as DALI's
_WRONG_LENGTH = "its length differs from the checksum of it"

Place = tuple[int, int]
"""(offset, length) of a record in the file, with its frame."""
Record = tuple[int, bytes, str | None]
"""Where a record lies, its bytes with the frame, and what is wrong with it or None."""


def framed(data: bytes) -> bytes:
    """A record with its frame. Raises OptionError if google-crc32c is not installed."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), data, _CHECKSUM.pack(_masked(data))))


def header_length(header: bytes) -> int | None:
    """The length that the first 12 bytes of a record say; None if their checksum differs. Needs no package."""
    if len(header) < HEADER_BYTES:
        return None
    length, checksum = _LENGTH.unpack_from(header)[0], _CHECKSUM.unpack_from(header, 8)[0]
    return int(length) if _mask(_small_crc32c(header[:8])) == checksum else None


def read_records(stream: ShardStream, max_sample_bytes: int, places: Sequence[Place] | None) -> Iterator[Record]:
    """Each record of a shard. `places` say where all of them lie, if that is known from elsewhere.

    Raises DamagedError where the file is cut off, a record is too long to be one, or a length is wrong and nothing says
    where the next record is; OptionError if google-crc32c is not installed.
    """
    if places is not None:
        for _, size in places:
            header = stream.read(HEADER_BYTES)
            offset, record, reason = _rest(stream, header, size - FRAME_BYTES, max_sample_bytes)
            yield offset, record, reason if _length(header) == size - FRAME_BYTES else _WRONG_LENGTH
        return
    while header := stream.read(HEADER_BYTES):
        length = _length(header)
        if length is None:
            raise DamagedError(
                f"{stream.name} is damaged: of the record at byte {stream.at - len(header):,}, {_WRONG_LENGTH}, so "
                "that nothing behind it can be found; restore it"
            )
        yield _rest(stream, header, length, max_sample_bytes)


def places_in(text: bytes, name: str, file_bytes: int) -> list[Place] | None:
    """The records that an index as of DALI's tfrecord2idx lists; None if it is something else of that name: ours.

    Raises DatasetError if it is malformed, or the records do not fill a file of `file_bytes`.
    """
    if text.startswith(_OUR_INDEX):
        return None
    places, at = list[Place](), 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) != 2 or not all(word.isdigit() and len(word) < 20 for word in words):
            raise _stale(name, f"line {number} must be an offset and a length")
        offset, length = map(int, words)
        if offset != at or length < FRAME_BYTES:
            raise _stale(name, f"line {number} must be about the record at byte {at:,}")
        places.append((offset, length))
        at += length
    if at != file_bytes:
        raise _stale(name, f"it ends at byte {at:,} of {file_bytes:,}")
    return places


def _length(header: bytes) -> int | None:
    """The length that a header says; None if it differs from its checksum."""
    if len(header) < HEADER_BYTES or _masked(header[:8]) != _CHECKSUM.unpack_from(header, 8)[0]:
        return None
    return int(_LENGTH.unpack_from(header)[0])


def _rest(stream: ShardStream, header: bytes, length: int, max_sample_bytes: int) -> Record:
    """The record whose header has been read."""
    offset = stream.at - len(header)
    check_length(stream.name, offset, length, max_sample_bytes)
    data, footer = stream.read(length), stream.read(FOOTER_BYTES)
    if len(header) + len(data) + len(footer) < length + FRAME_BYTES:
        raise DamagedError(f"{stream.name} is cut short: it ends inside the record at byte {offset:,}; restore it")
    is_right = _masked(data) == _CHECKSUM.unpack(footer)[0]
    return offset, b"".join((header, data, footer)), None if is_right else "its data differs from its crc32c"


def _masked(data: bytes) -> int:
    return _mask(_crc32c()(data))


def _mask(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _crc32c() -> Callable[[bytes], int]:
    try:
        import google_crc32c
    except ImportError as err:
        raise OptionError(
            "the checksums of TFRecord files need the package google-crc32c: pip install 'headrace[tfrecord]'"
        ) from err
    value: Callable[[bytes], int] = google_crc32c.value
    return value


def _small_crc32c(data: bytes) -> int:
    """The crc32c of a few bytes, so that a file can be recognised without the package."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ _table()[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


def _stale(name: str, what: str) -> DatasetError:
    return DatasetError(
        f"{name} is not the index of its TFRecord file: {what}; delete it, or make it again (tfrecord2idx)"
    )
