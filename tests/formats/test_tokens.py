"""Token shards: documents, windows, checksums of blocks, and what cannot be a token."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DamagedError, OptionError, SourceError
from headrace.formats.format import ScanOptions
from headrace.formats.tokens import CHECKED_BYTES, TokensIndex, TokensWriter, encode_tokens, num_windows, scan_tokens
from headrace.storage import LocalFile


def scan(path, dtype=None):
    with LocalFile(path) as file:
        return scan_tokens(file, {"file": path.name}, ScanOptions(dtype=dtype))


def write(folder, documents):
    """A shard of these arrays; returns its index as read back from its file, and its bytes."""
    writer, fields = TokensWriter(folder / "shard-000000.bin", {}), {}
    for number, tokens in enumerate(documents):
        encoded = encode_tokens({"__key__": f"d{number}", "tokens": tokens})
        fields.update(encoded.fields)
        writer.add(encoded)
    row = writer.finish()
    content = memoryview((folder / row.file).read_bytes())
    index = TokensIndex.from_file(memoryview((folder / (row.file + ".idx")).read_bytes()), "idx", len(content))
    return index, content


def read(index, content, i):
    base, length = index.extent(i, i + 1)
    data = content[base : base + length]
    assert index.damage(i, i + 1, data) == {}
    return index.sample(i, data, base)


@given(st.lists(st.integers(0, 90_000), max_size=6), st.sampled_from(["uint16", "uint32"]), st.integers(0, 2**32))
def test_documents_come_back_as_they_were(tmp_path_factory, lengths, dtype, seed):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, np.iinfo(dtype).max, length, dtype, endpoint=True) for length in lengths]
    index, content = write(tmp_path_factory.mktemp("tokens"), documents)
    assert bytes(content) == b"".join(document.tobytes() for document in documents)
    assert index.num_samples == len(documents)
    for i, document in enumerate(documents):
        sample = read(index, content, i)
        assert sample["__key__"] == f"d{i}"
        np.testing.assert_array_equal(sample["tokens"], document, strict=True)


@given(st.integers(1, 200_000), st.integers(1, 70_000), st.integers(1, 70_000))
def test_windows_are_runs_of_the_flat_array(tmp_path_factory, num_tokens, length, stride):
    tokens = np.arange(num_tokens, dtype=np.uint32)
    index, content = write(tmp_path_factory.mktemp("tokens"), [tokens[: num_tokens // 3], tokens[num_tokens // 3 :]])
    windows = pickle.loads(pickle.dumps(index.windows("shard-000000", length, stride)))
    starts = [start for start in range(0, num_tokens, stride) if start + length <= num_tokens]
    assert windows.num_samples == len(starts) == num_windows(num_tokens, length, stride)
    for i in {0, len(starts) // 2, len(starts) - 1} if starts else ():
        sample = read(windows, content, i)
        assert sample["__key__"] == f"shard-000000:{starts[i]}"
        np.testing.assert_array_equal(sample["tokens"], tokens[starts[i] : starts[i] + length])


@given(st.integers(0, 3 * CHECKED_BYTES - 1), st.integers(1, 255))
def test_a_flipped_byte_damages_the_samples_of_its_block(tmp_path_factory, at, change):
    sizes = [20_000, 30_000, 1, 48_303]  # tokens of two bytes: 3 blocks, the last one 64 KiB long but two bytes
    index, content = write(tmp_path_factory.mktemp("tokens"), [np.full(size, 7, np.uint16) for size in sizes])
    flipped = bytearray(content)
    at = min(at, len(flipped) - 1)
    flipped[at] ^= change
    block = at // CHECKED_BYTES
    start, end = block * CHECKED_BYTES, (block + 1) * CHECKED_BYTES
    ends = np.cumsum(sizes) * 2
    touched = [i for i in range(4) if ends[i] > start and ends[i] - sizes[i] * 2 < end]
    view = memoryview(bytes(flipped))
    for i in range(4):
        base, length = index.extent(i, i + 1)
        damage = index.damage(i, i + 1, view[base : base + length])
        assert list(damage) == ([i] if i in touched else [])
    assert [i for i, _ in index.all_damage(lambda base, length: view[base : base + length], len(view))] == touched


def test_a_uint16_dataset_takes_wider_arrays_that_fit(tmp_path):
    index, content = write(tmp_path, [np.array([1], np.uint16), np.array([65_535], np.int64), [7, 8], []])
    assert [read(index, content, i)["tokens"].tolist() for i in range(4)] == [[1], [65_535], [7, 8], []]
    assert index.dtype == np.uint16


def test_bytes_as_tokens_take_two_bytes_each(tmp_path):
    index, content = write(tmp_path, [np.frombuffer(b"hello", np.uint8)])
    assert read(index, content, 0)["tokens"].tolist() == list(b"hello")
    assert index.dtype == np.uint16


def test_a_token_too_large_for_the_dataset_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"sample d1 has the token 65536, but .* uint16; give .* uint32"):
        write(tmp_path, [np.array([1], np.uint16), np.array([65_536], np.uint32)])


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"tokens": np.array([[1]])}, "must be a flat array of whole numbers"),
        ({"tokens": [[1, 2], [3]]}, "must be a flat array of whole numbers"),
        ({"tokens": np.array([1.5])}, "must be a flat array of whole numbers"),
        ({"tokens": np.array([True])}, "must be a flat array of whole numbers"),
        ({"tokens": np.array([-1])}, "from 0 to 4294967295, got -1"),
        ({"tokens": np.array([2**32])}, "from 0 to 4294967295"),
        ({"tokens": b"ab"}, "numpy.frombuffer"),
        ({"tokens": "ab"}, "are str"),
        ({"tokens": np.array([1]), "cls": 1}, "holds the field 'tokens' alone"),
        ({"txt": b"a"}, "holds the field 'tokens' alone"),
        ({}, "holds the field 'tokens' alone"),
    ],
)
def test_what_cannot_be_tokens_is_refused(sample, reason):
    with pytest.raises(SourceError, match=f"sample k.*{reason}"):
        encode_tokens({"__key__": "k", **sample})


def test_a_bare_file_is_one_document_of_the_type_in_its_name(tmp_path):
    tokens = np.arange(100_000, dtype="<u4")
    tokens.tofile(tmp_path / "a.uint32.bin")
    index, row = scan(tmp_path / "a.uint32.bin")
    assert (row.samples, row.bytes) == (1, 400_000)
    sample = read(index, memoryview(tokens.tobytes()), 0)
    assert sample["__key__"] == "a"
    np.testing.assert_array_equal(sample["tokens"], tokens)


def test_a_bare_file_whose_type_is_unknown_or_does_not_fit_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(6))
    with pytest.raises(OptionError, match="must be known, uint16 or uint32, got None"):
        scan(tmp_path / "a.bin")
    with pytest.raises(OptionError, match="got 'int8'"):
        scan(tmp_path / "a.bin", "int8")
    with pytest.raises(DamagedError, match="6 bytes, which is no whole number of uint32 tokens"):
        scan(tmp_path / "a.bin", "uint32")
