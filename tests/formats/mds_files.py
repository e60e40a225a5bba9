"""MDS by the format alone, as the rooms above use it: found, scanned, indexed, opened; and shards that lie."""

import json
import pickle
import struct

import numpy as np
import orjson

from headrace.errors import HeadraceError
from headrace.formats.format import Listing, ScanOptions
from headrace.formats.mds import MDS, MdsWriter, encode_mds, make_index
from headrace.storage import LocalFile, locate

SAMPLES = [
    {"__key__": f"key {i}", "n": i, "t": "text " * i, "a": np.arange(i + 1, dtype=np.int16), "o": {"i": [i]}}
    for i in range(12)
]
"""Of every kind that is written."""


class LocalListing(Listing):
    """The files of a folder, or those named."""

    def __init__(self, folder, names=None):
        self.folder = folder
        self.names = sorted(path.name for path in folder.iterdir() if path.is_file()) if names is None else names

    def head(self, name, num_bytes=512):
        return (self.folder / name).read_bytes()[:num_bytes]

    def read(self, name):
        return (self.folder / name).read_bytes()

    def size(self, name):
        return (self.folder / name).stat().st_size


def scan(folder, names=None, **options):
    """(path, index, row) of every shard that is found in a folder."""
    found = MDS.find(LocalListing(folder, names), ScanOptions())
    hints = found.hints or [{}] * len(found.files)
    shards = []
    for name, hint in zip(found.files, hints, strict=True):
        with LocalFile(folder / name) as file:
            shards.append((folder / name, *MDS.scan(file, {**hint, "file": name}, ScanOptions(**options))))
    return shards


def scan_alone(path):
    """Index and row of a single shard, by what it says of itself."""
    with LocalFile(path) as file:
        return MDS.scan(file, {"file": path.name}, ScanOptions())


def read_or_error(folder):
    """All samples of a folder, or what is raised for it."""
    try:
        return read(folder)
    except HeadraceError as err:
        return err


def samples_of(path, index):
    """All samples of a shard, as views of one buffer."""
    first, last = 0, index.num_samples
    offset, length = index.extent(first, last)
    opened = index.open(first, last, memoryview(path.read_bytes())[offset : offset + length])
    assert not opened.damage, opened.damage
    return [opened.sample(i) for i in range(first, last)]


def read(folder, names=None):
    """All samples of a folder; by the index of the scan, by its file, and by its pickle, which must agree."""
    samples = []
    for path, index, row in scan(folder, names):
        stored = MDS.read_index(memoryview(index.to_file()), "idx", row.bytes)
        copied = pickle.loads(pickle.dumps(stored))
        ways = [plain(samples_of(path, one)) for one in (index, stored, copied)]
        assert same(ways[0], ways[1])
        assert same(ways[0], ways[2])
        assert row.samples == index.num_samples == len(ways[0])
        assert (row.bytes, row.unpacked_bytes) == (path.stat().st_size, index.unpacked_bytes)
        samples += ways[0]
    return samples


def write(folder, samples, shard_size=1 << 20):
    """Pack samples into shards of MDS with their index.json; returns the manifest's rows."""
    rows, fields, writer = [], {}, None
    folder.mkdir(parents=True, exist_ok=True)
    for encoded in map(encode_mds, samples):
        if writer is not None and writer.size_with(encoded) > shard_size:
            rows.append(writer.finish())
            writer = None
        if writer is None:
            writer = MdsWriter(folder / f"shard-{len(rows):06}.mds", fields)
        writer.add(encoded)
        fields = fields | encoded.fields
    if writer is not None:
        rows.append(writer.finish())
    for name, content in make_index(locate(folder), rows).items():
        (folder / name).write_bytes(content)
    return rows


def flipped(content, bit):
    """The bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def config(names=("n",), encodings=("int",), sizes=(8,), version=2):
    """What a shard says of its columns."""
    columns = {"column_names": names, "column_encodings": encodings, "column_sizes": sizes}
    return json.dumps({"version": version, "format": "mds"} | columns).encode()


def shard(num_samples=2, offsets=(0, 8, 16), config=config(), body=b"12345678abcdefgh"):  # noqa: B008
    """The bytes of a shard with a column of eight bytes a sample, or what is said instead."""
    begin = 4 * (len(offsets) + 1) + len(config)
    absolute = [begin + at for at in offsets]
    return struct.pack(f"<{len(offsets) + 1}I", num_samples, *absolute) + config + body


def listed(data, zip_data=None, compression=None, **changes):
    """An `index.json` that lists one such shard."""
    raw = {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}}
    if zip_data is not None:
        zip_data = {"basename": f"shard.00000.mds.{compression}", "bytes": len(zip_data), "hashes": {}}
    row = {"version": 2, "format": "mds", "compression": compression, "hashes": [], "raw_data": raw, "samples": 2}
    row |= {"column_names": ["n"], "column_encodings": ["int"], "column_sizes": [8], "zip_data": zip_data}
    return orjson.dumps({"version": 2, "shards": [row | changes]})


def put(folder, data, index=None, name="shard.00000.mds"):
    """A folder with this file, and this `index.json` if one is given."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    if index is not None:
        (folder / "index.json").write_bytes(index)
    return folder


def plain(value):
    """A value without views, so that two can be compared."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def same(one, other):
    """Whether two values are equal, in type too; arrays element by element."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))
