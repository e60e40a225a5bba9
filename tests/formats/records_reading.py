"""What the tests of record formats share: a file scanned, its samples read through an index, damage done to it."""

import pickle

import numpy as np

from headrace.dataset.listing import FolderListing
from headrace.errors import DamagedError, HeadraceError
from headrace.formats import ScanOptions
from headrace.storage import LocalFile, locate

NAME = "idx"


def scan(format_, path, hints=None, **options):
    with LocalFile(path) as file:
        return format_.scan(file, {"file": path.name, **(hints or {})}, ScanOptions(**options))


def find(format_, folder):
    found = format_.find(FolderListing(locate(folder)), ScanOptions())
    return None if found is None else list(found.files)


def plain(value):
    """A value as it can be compared: bytes for views, (dtype, shape, list) for arrays."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def samples_of(index, content):
    """Every sample, read piece by piece; None for those that are known to be damaged."""
    found = []
    for piece in index.pieces:
        offset, length = piece.extent(0, piece.num_samples)
        opened = piece.open(0, piece.num_samples, memoryview(content)[offset : offset + length])
        for i in range(piece.num_samples):
            found.append(None if i in opened.damage else opened.sample(i))
    return [one and {name: plain(value) for name, value in one.items()} for one in found]


def reread(format_, index, shard_bytes):
    return format_.read_index(memoryview(index.to_file()), NAME, shard_bytes)


def check_reading(format_, index, content):
    """The index, its file and a pickle of it give the same; returns the samples. One at a time gives them too."""
    samples = samples_of(index, content)
    kept = reread(format_, index, len(content))
    assert samples_of(kept, content) == samples
    assert samples_of(pickle.loads(pickle.dumps(kept)), content) == samples
    assert kept.to_file() == index.to_file()
    assert (kept.fields, kept.unpacked_bytes) == (index.fields, index.unpacked_bytes)
    for i in range(0, index.num_samples, max(1, index.num_samples // 7)):
        offset, length = index.extent(i, i + 1)
        one = index.open(i, i + 1, memoryview(content)[offset : offset + length])
        assert i in one.damage or {name: plain(value) for name, value in one.sample(i).items()} == samples[i]
    return samples


def check_never_silent(index, samples, damaged):
    """Through the index of the whole file, whatever is read of a damaged one is right or an error."""
    for piece_start, piece in zip(starts(index), index.pieces, strict=True):
        for i in range(piece.num_samples):
            offset, length = piece.extent(i, i + 1)
            data = memoryview(damaged)[offset : offset + length]
            if len(data) < length:
                continue  # reading behind the end of a file is an error before anything is opened
            try:
                opened = piece.open(i, i + 1, data)
            except DamagedError:
                continue
            if i not in opened.damage:
                found = {name: plain(value) for name, value in opened.sample(i).items()}
                assert found == samples[piece_start + i]


def starts(index):
    at = 0
    for piece in index.pieces:
        yield at
        at += piece.num_samples


def scan_or_error(format_, path, content, hints=None):
    """The samples of a file that may be damaged, or None where that is noticed at once."""
    path.write_bytes(content)
    try:
        index, row = scan(format_, path, hints)
    except HeadraceError:
        return None
    assert (row.samples, row.bytes) == (index.num_samples, len(content))
    return samples_of(index, content)


def flipped(content, at, change):
    data = bytearray(content)
    data[at % len(data)] ^= change
    return bytes(data)
