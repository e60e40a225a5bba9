"""Parquet that is broken, cut or lies: named and refused, never read as something else, never without bound."""

import base64
import json
import subprocess
import sys
from contextlib import suppress

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parquet_files import (
    ROOT,
    by_hand,
    crc_of,
    data_page,
    dictionary_page,
    element,
    footer,
    integers,
    levels,
    list_of_integers,
    opened,
    put,
    read,
    run_of,
    scan,
    varint,
    write,
)

from headrace.errors import DamagedError, DatasetError, HeadraceError, ManifestError
from headrace.formats.arrow import index_to_bytes
from headrace.formats.columns import Strings
from headrace.formats.parquet import ParquetIndex

NUM_ROWS = 24
SAMPLES = [
    {"__key__": f"key {i}", "n": i, "s": f"s{i % 3}", "b": bytes([i]) * i, "o": {"l": [i, None]}, "a": np.arange(i % 5)}
    for i in range(NUM_ROWS)
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(content of a shard, its index, its samples), written once: every write waits for the disk."""
    path = tmp_path_factory.mktemp("damage") / "shard-000000.parquet"
    index, _, _ = write(path, SAMPLES)
    return path.read_bytes(), index, read(index, path)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    """The content of an ordinary file of several row groups with page checksums."""
    columns = {
        "n": [None if i % 5 == 0 else i for i in range(NUM_ROWS)],
        "s": [f"s{i % 3}" for i in range(NUM_ROWS)],
        "l": [[0.5] * (i % 4) for i in range(NUM_ROWS)],
        "o": [{"a": i, "b": [str(i)] * (i % 3)} if i % 4 else None for i in range(NUM_ROWS)],
        "f": pa.array([[i, i + 1] for i in range(NUM_ROWS)], pa.list_(pa.int32(), 2)),
    }
    folder = tmp_path_factory.mktemp("damage")
    return put(folder, columns, row_group_size=10, write_page_checksum=True).read_bytes()


def read_or_errors(index, content):
    """Each sample that is found in some content, or None where it cannot be had."""
    path = PathLike(content)
    found = []
    for piece in index.pieces:
        try:
            offset, length = piece.extent(0, piece.num_samples)
            found += path.samples(piece, offset, length)
        except DatasetError:
            found += [None] * piece.num_samples
    return found


class PathLike:
    """Bytes to read a piece from."""

    def __init__(self, content):
        self.content = memoryview(content)

    def samples(self, piece, offset, length):
        if offset + length > len(self.content):
            raise DamagedError("cut short")
        found = piece.open(0, piece.num_samples, self.content[offset : offset + length])
        return [None if i in found.damage else found.sample(i) for i in range(piece.num_samples)]
