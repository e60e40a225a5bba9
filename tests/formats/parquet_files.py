"""Parquet by the format alone, as the rooms above use it: found, scanned, indexed, opened; and files made by hand."""

import pickle
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.formats.format import ScanOptions
from headrace.formats.index import joined
from headrace.formats.parquet import ParquetIndex, ParquetWriter, encode_parquet, scan_parquet
from headrace.formats.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, list_bytes, struct_bytes
from headrace.storage import LocalFile


def put(folder, columns, name="rows.parquet", **options):
    """A file of these columns, or of a table, as pyarrow writes it."""
    path = folder / name
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def scan(path, **options):
    with LocalFile(path) as file:
        return scan_parquet(file, {"file": path.name}, ScanOptions(**options))


def opened(index, path):
    """Each piece that has samples, opened, with its number of them."""
    for piece in index.pieces:
        yield piece.num_samples, opened_piece(piece, path)


def opened_piece(piece, path):
    with LocalFile(path) as file:
        return piece.open(0, piece.num_samples, joined(piece.ranges(0, piece.num_samples), file.read))


def read(index, path):
    """All samples, with plain values; `opened` says what is damaged."""
    return [sample for piece in index.pieces for sample in read_piece(piece, path)]


def read_piece(piece, path):
    """All samples of a piece, with plain values."""
    rows = opened_piece(piece, path)
    assert rows.damage == {}
    return [plain(rows.sample(i)) for i in range(piece.num_samples)]


def read_file(path, **options):
    """All samples of an ordinary file: through a scan, its index file and a pickle of it, which agree."""
    index, row = scan(path, **options)
    assert (row.samples, row.bytes) == (index.num_samples, path.stat().st_size)
    assert row.pieces == tuple(piece.num_samples for piece in index.pieces)
    stored = ParquetIndex.from_file(memoryview(index.to_file()), "rows.idx", row.bytes)
    assert stored.to_file() == index.to_file()
    found = read(index, path)
    assert repr(read(pickle.loads(pickle.dumps(stored)), path)) == repr(found)  # by text: NaN is not itself
    return found


def plain(value):
    """A value as it can be compared: bytes for views, dtype, shape and numbers for arrays."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return (value.dtype.name, value.shape, value.tolist())
    return bytes(value) if isinstance(value, memoryview) else value


def write(path, samples, fields=None):
    """(index, row, fields) of a shard of these samples."""
    writer = ParquetWriter(path, fields or {})
    try:
        for sample in samples:
            writer.add(encode_parquet(sample))
        row = writer.finish()
    finally:
        writer.abandon()
    content = path.with_name(path.name + ".idx").read_bytes()
    return ParquetIndex.from_file(memoryview(content), path.name + ".idx", row.bytes), row, writer.fields


def element(name, kind=None, repetition=0, children=None, converted=None, length=None):
    """An element of a schema: `kind` is its physical type, `repetition` 1 for optional, 2 for repeated."""
    facts = {1: (I32, kind), 2: (I32, length), 3: (I32, repetition), 4: (BINARY, name)}
    facts |= {5: (I32, children), 6: (I32, converted)}
    return struct_bytes({number: fact for number, fact in facts.items() if fact[1] is not None})


def page(kind, body, details, unpacked=None, crc=None):
    """A page: `kind` is 0 for data, 2 for a dictionary."""
    facts = {1: (I32, kind), 2: (I32, len(body) if unpacked is None else unpacked), 3: (I32, len(body))}
    if crc is not None:
        facts[4] = (I32, crc)
    return struct_bytes({**facts, {0: 5, 2: 7}[kind]: (STRUCT, struct_bytes(details))}) + body


def data_page(num_values, body, encoding=0, **options):
    return page(0, body, {1: (I32, num_values), 2: (I32, encoding), 3: (I32, 3), 4: (I32, 3)}, **options)


def dictionary_page(num_values, body):
    return page(2, body, {1: (I32, num_values), 2: (I32, 0)})


def crc_of(body):
    """A page's checksum as Thrift has it: signed."""
    return struct.unpack("<i", struct.pack("<I", zlib.crc32(body)))[0]


def footer(elements, groups, num_rows, facts=()):
    """A footer with its length and magic; `groups` are row groups, `facts` pairs of bytes."""
    fields = {
        1: (I32, 2),
        2: (LIST, list_bytes(STRUCT, elements)),
        3: (I64, num_rows),
        4: (LIST, list_bytes(STRUCT, groups)),
    }
    if facts:
        noted = [struct_bytes({1: (BINARY, name), 2: (BINARY, value)}) for name, value in facts]
        fields[5] = (LIST, list_bytes(STRUCT, noted))
    data = struct_bytes(fields)
    return data + struct.pack("<I", len(data)) + b"PAR1"


def by_hand(elements, columns, num_rows, facts=(), chunk_facts=None):
    """A file of one row group. `columns`: (physical type, names, number of values, codec, pages).

    `chunk_facts` say of each chunk something else than what is so.
    """
    content, chunks = b"PAR1", []
    for kind, names, num_values, codec, pages in columns:
        meta = {
            1: (I32, kind),
            2: (LIST, list_bytes(I32, [0])),
            3: (LIST, list_bytes(BINARY, names)),
            4: (I32, codec),
            5: (I64, num_values),
            6: (I64, len(pages)),
            7: (I64, len(pages)),
            9: (I64, len(content)),
            **(chunk_facts or {}),
        }
        chunks.append(struct_bytes({2: (I64, len(content)), 3: (STRUCT, struct_bytes(meta))}))
        content += pages
    group = struct_bytes({1: (LIST, list_bytes(STRUCT, chunks)), 2: (I64, 0), 3: (I64, num_rows)})
    return content + footer(elements, [group], num_rows, facts)


ROOT = element(b"schema", children=1)
"""Of a schema of one column."""


def integers(num_values=10, pages=None, num_rows=None, **lies):
    """A file of one column of 32-bit integers, from 0 on."""
    if pages is None:
        pages = data_page(num_values, np.arange(num_values, dtype="<i4").tobytes())
    column = (1, [b"n"], num_values, 0, pages)
    return by_hand([ROOT, element(b"n", 1)], [column], num_values if num_rows is None else num_rows, **lies)


def list_of_integers(num_values, pages):
    """The schema and columns of a file of one column of lists of 32-bit integers, all of which may be None."""
    elements = [
        ROOT,
        element(b"l", None, 1, 1, converted=3),
        element(b"list", None, 2, 1),
        element(b"element", 1, 1),
    ]
    return elements, [(1, [b"l", b"list", b"element"], num_values, 0, pages)]


def run_of(value, count, width):
    """A run in Parquet's run-length encoding."""
    return varint(count << 1) + value.to_bytes((width + 7) // 8, "little")


def levels(value, count, width):
    """Levels that are all the same."""
    run = run_of(value, count, width)
    return struct.pack("<I", len(run)) + run


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
