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
    plain,
    put,
    read,
    run_of,
    scan,
    varint,
    write,
)

from headrace.errors import DamagedError, DatasetError, HeadraceError, ManifestError
from headrace.formats.arrow import Lists, index_to_bytes
from headrace.formats.columns import Strings
from headrace.formats.parquet import ParquetIndex
from headrace.formats.parquet.pages import pages
from headrace.formats.parquet.thrift import Reader

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


def pieces_in(index, content):
    """The samples of each row group that are found in a file's content; None for each that cannot be had."""
    for piece in index.pieces:
        offset, length = piece.extent(0, piece.num_samples)
        try:
            found = piece.open(0, piece.num_samples, memoryview(content)[offset : offset + length])
            yield [None if i in found.damage else plain(found.sample(i)) for i in range(piece.num_samples)]
        except DatasetError:
            yield [None] * piece.num_samples


def read_ordinary(folder, content):
    """All that an ordinary file of this content gives, without an index."""
    path = folder / "rows.parquet"
    path.write_bytes(content)
    return [sample for samples in pieces_in(scan(path)[0], content) for sample in samples]


def named_damage(index, content):
    """What verification says, sample by sample."""
    data = memoryview(content)
    return dict(index.all_damage(lambda offset, length: data[offset : offset + length], len(data)))


@given(st.integers(0, 2**40), st.integers(1, 255))
def test_a_flipped_byte_is_noticed_or_matters_to_nobody(packed, at, change):
    content, index, samples = bytearray(packed[0]), *packed[1:]
    content[at % len(content)] ^= change
    [found] = pieces_in(index, content)
    assert found in (samples, [None] * NUM_ROWS)
    assert list(named_damage(index, content)) == ([] if found == samples else list(range(NUM_ROWS)))


@given(st.integers(0, 2**40))
def test_a_shard_cut_anywhere_is_noticed(packed, length):
    content, index, samples = packed
    cut = content[: length % len(content)]
    [found] = pieces_in(index, cut)
    is_whole = sum(index.pieces[0].extent(0, NUM_ROWS)) <= len(cut)
    assert found == (samples if is_whole else [None] * NUM_ROWS)
    assert bool(named_damage(index, cut)) == (not is_whole)


def test_damage_names_row_group_and_column(packed):
    content, index, _ = bytearray(packed[0]), *packed[1:]
    piece = index.pieces[0].with_fields({"s"})
    content[piece.extent(0, 1)[0]] ^= 1
    assert set(named_damage(index, content).values()) == {named_damage(index, content)[0]}
    assert "the checksum of column 's' in row group 0 is " in named_damage(index, content)[0]
    others = index.pieces[0].with_fields({"n", "b"})
    offset, length = others.extent(0, NUM_ROWS)
    assert others.open(0, NUM_ROWS, memoryview(content)[offset : offset + length]).sample(7)["n"] == 7


@pytest.fixture(scope="module")
def page_bytes(ordinary, tmp_path_factory):
    """Where the bytes of pages lie in the ordinary file, their headers aside."""
    path = tmp_path_factory.mktemp("pages") / "rows.parquet"
    path.write_bytes(ordinary)
    schema, groups = (content := scan(path)[0].content).schema, content.groups
    chunks = [(chunk, leaf.path) for group in groups for leaf, chunk in zip(schema.leaves, group.chunks, strict=True)]
    return [
        chunk.offset + page.start + number
        for chunk, name in chunks
        for page in pages(memoryview(ordinary)[chunk.offset : chunk.end], name)
        for number in range(page.packed_bytes)
    ]


@given(st.integers(0, 2**40), st.integers(1, 255))
def test_a_flipped_byte_in_a_page_of_an_ordinary_file_is_noticed(ordinary, page_bytes, tmp_path_factory, at, change):
    """Parquet's checksums are of pages, not of their headers or the footer: those only an index of ours covers."""
    content = bytearray(ordinary)
    content[page_bytes[at % len(page_bytes)]] ^= change
    with pytest.raises(DamagedError, match=r"the page at byte [\d,]+ of column '.*' has the checksum"):
        read_ordinary(tmp_path_factory.mktemp("flip"), bytes(content))


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 255)), min_size=1, max_size=4), st.booleans())
def test_whatever_is_wrong_with_an_ordinary_file_is_an_error_of_ours_or_none(
    ordinary, tmp_path_factory, changes, is_in_footer
):
    """pyarrow ends the process on some footers: none of them may reach it."""
    content = bytearray(ordinary)
    length = 8 + int.from_bytes(ordinary[-8:-4], "little") if is_in_footer else len(content)
    for at, change in changes:
        content[-1 - at % length] ^= change
    with suppress(HeadraceError):
        read_ordinary(tmp_path_factory.mktemp("flip"), bytes(content))


@given(st.integers(0, 2**40), st.binary(max_size=40))
def test_an_ordinary_file_that_is_cut_or_followed_by_junk_is_refused(ordinary, tmp_path_factory, length, junk):
    folder = tmp_path_factory.mktemp("cut")
    for content in (ordinary[: length % len(ordinary)], ordinary + b"\0" + junk):
        with pytest.raises(DamagedError, match=r"it does not end as Parquet files do|its footer is malformed"):
            read_ordinary(folder, content)


def noted(name, value):
    return (name.encode(), base64.b64encode(value))


EMPTY = element(b"schema", children=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (integers(10, num_rows=11), "row group 0 has 11 rows, and in column 'n' 10"),
        (integers(10, chunk_facts={5: (6, 9)}), "row group 0 has 10 rows, and in column 'n' 9"),
        (integers(10, data_page(9, bytes(36))), "the pages of column 'n' hold 9 values, the footer says 10"),
        (integers(10, chunk_facts={7: (6, 2**50)}), "row group 0 lies outside of the file"),
        (integers(10, chunk_facts={9: (6, 2**62)}), "row group 0 lies outside of the file"),
        (integers(10, chunk_facts={9: (6, -5)}), "row group 0 lies outside of the file"),
        (integers(10, chunk_facts={1: (5, 2)}), "columns of other types than the schema says"),
        (integers(10, chunk_facts={4: (5, 3)}), "packed by codec 3; write it again with zstd"),
        (integers(10, chunk_facts={9: (6, 5), 7: (6, 40)}), "no page where one begins|reaches .* bytes behind its end"),
        (integers(-1, b""), "row group 0 has -1 rows"),
        (integers(10, data_page(10, bytes(39))), "row group 0 does not unpack"),
        (integers(10, data_page(10, bytes(40), crc=1)), "page at byte .* has the checksum .*, not 00000001"),
        (integers(10, data_page(10, bytes(40), crc=crc_of(bytes(40)))[:-1]), "reaches 1 bytes behind its end"),
        (b"PAR1" + footer([ROOT], [], 0), "its footer is malformed"),
        (b"PAR1" + footer([EMPTY], [], 5), "speaks of 5 rows"),
        (b"PAR1" + footer([element(b"s", children=2**31)] * 70, [], 0), "columns more than 64 deep"),
        (b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1", "does not end as Parquet files do"),
        (b"PAR1" + b"\x19\xf9" * 5000 + (10000).to_bytes(4, "little") + b"PAR1", "its footer is malformed"),
        (b"PAR1PAR1", "does not end as Parquet files do"),
        (b"", "does not end as Parquet files do"),
    ],
    ids=str,
)
def test_what_a_file_says_of_itself_is_checked(tmp_path, content, said):
    with pytest.raises(DatasetError, match=said):
        read_all_strictly(tmp_path, content)


def read_all_strictly(folder, content):
    path = folder / "rows.parquet"
    path.write_bytes(content)
    return read(scan(path)[0], path)


def test_a_file_by_hand_is_read(tmp_path):
    """Or the tests with such files would prove nothing."""
    assert [sample["n"] for sample in read_all_strictly(tmp_path, integers())] == list(range(10))
    pages = data_page(3, levels(0, 3, 1) + levels(3, 3, 2) + np.arange(3, dtype="<i4").tobytes())
    content = by_hand(*list_of_integers(3, pages), 3)
    assert [sample["l"] for sample in read_all_strictly(tmp_path, content)] == [
        ("int32", (1,), [number]) for number in range(3)
    ]


def shared_prefixes(count, length):
    """Strings that each repeat all of the one before, in DELTA_BYTE_ARRAY: a few bytes a string of any length."""

    def deltas(first, step, block):
        out = varint(128) + varint(4) + varint(count) + varint(first << 1)
        out += varint((-step << 1) - 1 if step < 0 else 0) + bytes(block[0]) + block[1]
        return out + (varint(0) + bytes(4)) * -(-(count - 1 - 128) // 128)

    prefixes = deltas(0, 0, ((32, 0, 0, 0), length.to_bytes(4, "little") + bytes(124)))
    suffixes = deltas(length, -length, ((32, 32, 32, 32), bytes(4) + length.to_bytes(4, "little") * 127))
    return data_page(count, prefixes + suffixes + b"a" * length, encoding=7)


def strings(count, pages):
    return by_hand([ROOT, element(b"s", 6, 0, converted=0)], [(6, [b"s"], count, 0, pages)], count)


ENTRY = (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
HUGE_LISTS = [("l", pa.list_(pa.int32(), 2**30))]


def bombs():
    """Small files that unpack to gigabytes, or ask for them."""
    for count in (10**9, 2**31 - 1):
        one_entry = dictionary_page(1, ENTRY) + data_page(count, b"\x01" + run_of(0, count, 1), encoding=8)
        yield strings(count, one_entry)
        nulls = data_page(count, levels(0, count, 1) + levels(0, count, 2))
        yield by_hand(*list_of_integers(count, nulls), count)
        yield by_hand(*list_of_integers(count, nulls), 1)
    yield integers(10, data_page(10, bytes(40), unpacked=2**31 - 1))
    for length in (2**30, 2**31 - 1):
        column = (7, [b"f"], 10, 0, data_page(10, levels(0, 10, 1)))
        yield by_hand([ROOT, element(b"f", 7, 1, length=length)], [column], 10)
    zeros = pa.compress(bytes(300 << 20), codec="zstd", asbytes=True)
    for said in (300 << 20, 100):
        pages = data_page(1, zeros, unpacked=said)
        yield by_hand([ROOT, element(b"s", 6, 0)], [(6, [b"s"], 1, 6, pages)], 1)
    yield strings(3000, shared_prefixes(3000, 1 << 20))


def harmless():
    """Small files that look alike, and unpack to little."""
    count = 10**6
    one_entry = dictionary_page(1, ENTRY) + data_page(count, b"\x01" + run_of(0, count, 1), encoding=8)
    yield strings(count, one_entry)
    yield strings(200, shared_prefixes(200, 1 << 10))
    nulls = data_page(100, levels(0, 100, 1) + levels(0, 100, 2))
    sizes = noted("ARROW:schema", pa.schema(HUGE_LISTS).serialize().to_pybytes())
    yield by_hand(*list_of_integers(100, nulls), 100, facts=[sizes])


UNPACK_ALL = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from parquet_files import opened, scan
from headrace.errors import DatasetError
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        index, row = scan(path, max_unpacked_bytes=128 << 20)
        for count, piece in opened(index, path):
            assert not piece.damage
            piece.sample(0), piece.sample(count - 1)
        print(path.name, "read")
    except DatasetError as err:
        print(path.name, "refused", err)
# Not ru_maxrss, which a process takes over from the one that started it.
print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


def test_memory_is_bounded_whatever_small_files_unpack_to(tmp_path):
    """In a process of its own, whose memory can be measured."""
    files = tmp_path / "files"
    files.mkdir()
    for name, contents in (("bomb", bombs()), ("harmless", harmless())):
        for number, content in enumerate(contents):
            (files / f"{name}-{number:02d}").write_bytes(content)
    folder = __file__.rpartition("/")[0]
    command = [sys.executable, "-c", UNPACK_ALL, folder, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    *lines, most_kib = done.stdout.splitlines()
    assert len(lines) == len(list(files.iterdir()))
    for line in lines:
        assert line.split()[1] == ("refused" if line.startswith("bomb") else "read"), line
    assert int(most_kib) < 700 << 10


def test_row_groups_that_take_too_much_are_refused_with_advice(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(next(bombs()))
    advice = r"may take [\d,]+ bytes, more than 2,147,483,647: write the file again with smaller row groups"
    with pytest.raises(DatasetError, match=advice):
        scan(path)


def test_row_groups_that_overlap_are_refused(tmp_path):
    content = integers()
    schema = [ROOT, element(b"n", 1)]
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    group = group_in(content)
    with pytest.raises(DamagedError, match="its row group 1 begins within another"):
        read_all_strictly(tmp_path, content[:start] + footer(schema, [group, group], 20))


def group_in(content):
    """The one row group in the footer of a file, as it lies there."""
    length = int.from_bytes(content[-8:-4], "little")
    reader = Reader(memoryview(content)[-8 - length : -8], 1000)
    reader.struct()
    start, end = reader.spans[4]
    return bytes(memoryview(content)[-8 - length : -8][start + 1 : end])


@given(st.integers(0, 2**40), st.integers(1, 255))
def test_an_index_that_is_flipped_is_refused_or_does_no_harm(packed, at, change):
    """Its own checksum is in the manifest; without it there must be no crash, and no sample of another length."""
    content, index, _ = packed
    data = bytearray(index.to_file())
    data[at % len(data)] ^= change
    with suppress(ManifestError):
        found = ParquetIndex.from_file(memoryview(data), "x.idx", len(content))
        assert [len(group) for group in pieces_in(found, content)] == [piece.num_samples for piece in found.pieces]


def changed_index(index, **changes):
    """The content of an index file with other columns or facts."""
    groups, keys = index.content.groups, index.content.keys
    leaves = len(index.content.schema.leaves)
    starts = np.arange(len(groups) + 1, dtype=np.int64)
    columns = {
        "samples": groups.samples,
        "memory": groups.memory,
        "chunk": Lists(starts * leaves * 4, groups.chunks.ravel()),
        "checksum": Lists(starts * leaves, groups.checksums.ravel().view(np.int64)),
        "key": Strings(keys.starts[groups.starts], keys.text),
        "key_length": Lists(groups.starts, np.diff(keys.starts)),
    }
    schema = index.content.schema
    facts = {
        "stem": index.content.stem,
        "schema": base64.b64encode(schema.data).decode(),
        "arrow": base64.b64encode(schema.arrow).decode(),
        "created_by": base64.b64encode(schema.created_by).decode(),
        "fields": orjson.dumps({name: field.to_json() for name, field in index.fields.items()}).decode(),
        "classes": "{}",
        "keys": "stored",
    }
    known = {name: value for name, value in changes.items() if name in columns}
    told = {name: value for name, value in changes.items() if name not in columns}
    return index_to_bytes("parquet", columns | known, facts | told)


def far(index, fact, value):
    """The chunks of an index, of which the first says something else."""
    chunks = index.content.groups.chunks.copy()
    chunks[0, 0, fact] = value
    return Lists(np.array([0, chunks[0].size], np.int64), chunks.ravel())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda index: {"samples": np.array([NUM_ROWS + 1])}, "schema or row groups that are wrong"),
        (lambda index: {"samples": np.array([-1])}, "schema or row groups that are wrong"),
        (lambda index: {"memory": np.array([2**40])}, "unpack to more than"),
        (lambda index: {"memory": np.array([-1])}, "schema or row groups that are wrong"),
        (lambda index: {"chunk": far(index, 0, 2**40)}, "lies outside of the file"),
        (lambda index: {"chunk": far(index, 1, -1)}, "lies outside of the file"),
        (lambda index: {"chunk": far(index, 3, 9)}, "packed by codec 9"),
        (lambda index: {"chunk": Lists(np.array([0, 1]), np.zeros(1, np.int64))}, "has a chunk and a checksum"),
        (lambda index: {"key_length": Lists(np.array([0, NUM_ROWS]), np.full(NUM_ROWS, 9))}, "keys of its rows"),
        (lambda index: {"key": Strings.of(["ä" * 75])}, "keys that are no text|keys of its rows"),
        (lambda index: {"schema": "????"}, "schema or row groups that are wrong"),
        (lambda index: {"schema": base64.b64encode(b"\x1c").decode()}, "schema or row groups that are wrong"),
        (lambda index: {"arrow": base64.b64encode(b"nonsense").decode()}, "schema or row groups that are wrong"),
        (lambda index: {"fields": "{}"}, "lists other fields than its schema"),
        (lambda index: {"fields": "["}, "does not list its fields"),
        (lambda index: {"classes": json.dumps({"n": [1]})}, "does not list its classes"),
    ],
)
def test_an_index_that_lies_is_refused(packed, changes, said):
    content, index, _ = packed
    assert changed_index(index) == index.to_file()
    with pytest.raises(ManifestError, match=said):
        ParquetIndex.from_file(memoryview(changed_index(index, **changes(index))), "x.idx", len(content))


def test_a_row_group_that_takes_more_than_its_index_says_is_refused(packed):
    content, index, _ = packed
    data = changed_index(index, memory=np.array([100]))
    found = ParquetIndex.from_file(memoryview(data), "x.idx", len(content))
    with pytest.raises(DamagedError, match=r"may unpack to [\d,]+ bytes, its index says 100"):
        found.pieces[0].open(0, NUM_ROWS, memoryview(content)[slice(*extent_of(found.pieces[0]))])


def extent_of(piece):
    offset, length = piece.extent(0, piece.num_samples)
    return offset, offset + length
