"""Shards that are compressed as a whole: by which methods, and unpacked to the length that is known beforehand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.errors import DamagedError, DatasetError
from headrace.formats.unpacking import UnpackError, unpack_exactly, unpacked

MAX_SHARD_BYTES = (1 << 32) - 1
"""Offsets in a shard are of 32 bits."""

_CODECS = {"br": "br", "bz2": "bz2", "gz": "gz", "zstd": "zst", "snappy": "snappy"}


def codec_of(compression: str, where: str) -> str:
    """The codec of a compression such as `zstd:3`. Raises DatasetError if there is none."""
    codec = _CODECS.get(compression.partition(":")[0])
    if codec is None:
        raise DatasetError(
            f"{where}: the compression {compression!r} is not known, only {', '.join(_CODECS)}: unpack the shards"
        )
    return codec


def unpack_shard(stored: memoryview, codec: str, num_bytes: int, name: str) -> memoryview:
    """What a shard unpacks to, which has to be so long. Raises DamagedError; `name` is the shard's, for messages."""
    with unpack_errors(name, codec):
        return unpack_exactly(stored, codec, num_bytes)


def open_shard(stored: memoryview, codec: str, num_bytes: int, name: str) -> io.RawIOBase | io.BytesIO:
    """What a shard unpacks to, as it is read; of whatever length. Raises DamagedError."""
    if codec == "snappy":  # it has no parts that could be unpacked on their own
        return io.BytesIO(unpack_shard(stored, codec, num_bytes, name))
    return unpacked(stored, codec)


@contextmanager
def unpack_errors(name: str, codec: str) -> Iterator[None]:
    """Turn an UnpackError inside the block into a DamagedError about this shard."""
    try:
        yield
    except UnpackError as err:
        raise DamagedError(f"{name} is damaged: it does not unpack as {codec} ({err}); restore it") from err
