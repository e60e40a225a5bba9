"""Token shards: documents, windows, checksums of blocks, and what cannot be a token."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.dataset.listing import FolderListing
from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError, SourceError
from headrace.formats.format import ScanOptions
from headrace.formats.tokens import TokensWriter, encode_tokens
from headrace.formats.tokens.index import COARSE_BYTES, FINE_BYTES, TokensIndex, checked_bytes, num_windows
from headrace.formats.tokens.scan import BlockSums, find_tokens, scan_tokens
from headrace.storage import LocalFile, locate


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


SIZES = {  # tokens of two bytes: the last block is whole but for two bytes
    FINE_BYTES: [2000, 3000, 1, 1142],
    COARSE_BYTES: [20_000, 8_500_000, 1, 32_768 * 261 - 1 - 8_520_001],
}


@pytest.fixture(scope="module", params=SIZES)
def shard(request, tmp_path_factory):
    """Block size, documents' sizes, index and content of a small shard and of a large one."""
    sizes = SIZES[request.param]
    documents = [np.full(size, 7, np.uint16) for size in sizes]
    index, content = write(tmp_path_factory.mktemp("tokens"), documents)
    assert checked_bytes(len(content)) == request.param
    return request.param, sizes, index, content


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_damages_the_samples_of_its_block(shard, at, change):
    block_bytes, sizes, index, content = shard
    flipped = bytearray(content)
    at = int(at * len(flipped))
    flipped[at] ^= change
    start = at // block_bytes * block_bytes
    end = start + block_bytes
    ends = np.cumsum(sizes) * 2
    touched = [i for i in range(4) if ends[i] > start and ends[i] - sizes[i] * 2 < end]
    view = memoryview(flipped)
    for i in range(4):
        base, length = index.extent(i, i + 1)
        damage = index.damage(i, i + 1, view[base : base + length])
        assert list(damage) == ([i] if i in touched else [])
    assert [i for i, _ in index.all_damage(lambda base, length: view[base : base + length], len(view))] == touched


@given(st.lists(st.integers(0, 20_000), max_size=12))
def test_sums_do_not_depend_on_how_bytes_come(cuts):
    data = np.random.default_rng(0).bytes(sum(cuts))
    pieces, whole = BlockSums(), BlockSums()
    whole.add(data)
    for start, length in zip(np.cumsum([0, *cuts]).tolist(), cuts, strict=False):
        pieces.add(memoryview(data)[start : start + length])
    blocks = pieces.blocks()
    assert blocks.checksums.tolist() == whole.blocks().checksums.tolist()
    assert len(blocks.checksums) == -(-len(data) // FINE_BYTES)
    assert blocks.damaged(0, memoryview(data)) == []


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


def headed(tokens, magic=20240520, version=1, num_tokens=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if num_tokens is None else num_tokens
    return header.tobytes() + tokens.tobytes()


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "uint16"), (20240801, 7, "uint32")])
def test_a_file_with_the_header_of_llm_c_says_its_type(tmp_path, magic, version, dtype):
    tokens = np.arange(5000, dtype=dtype)
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(headed(tokens, magic, version))
    assert list(find_tokens(FolderListing(locate(tmp_path)), ScanOptions()).files) == [path.name]
    index, row = scan(path)
    assert (row.samples, row.bytes, row.header_bytes) == (1, path.stat().st_size, 1024)
    again = TokensIndex.from_file(memoryview(index.to_file()), "idx", row.bytes)
    content = memoryview(path.read_bytes())
    for one in (index, again, pickle.loads(pickle.dumps(index))):
        np.testing.assert_array_equal(read(one, content, 0)["tokens"], tokens, strict=True)
        windows = one.windows("w", 100, 50)
        assert windows.num_samples == 99
        np.testing.assert_array_equal(read(windows, content, 98)["tokens"], tokens[4900:])
    with pytest.raises(OptionError, match=f"says that its tokens are {dtype}"):
        scan(path, {"uint16": "uint32", "uint32": "uint16"}[dtype])


def test_bare_files_as_nano_gpt_makes_them_need_their_type_once(tmp_path):
    for name in ("train.bin", "val.bin"):
        np.arange(1000, dtype="<u2").tofile(tmp_path / name)
    for refused in (lambda: hr.index(tmp_path), lambda: hr.open(tmp_path / "train.bin")):
        with pytest.raises(DatasetError, match=r"if they are bare tokens, say of which type \(headrace index --dtype"):
            refused()
    hr.index(tmp_path / "train.bin", dtype="uint16", target=tmp_path / "train")
    ds = hr.open(tmp_path / "train")
    assert [sample["tokens"].tolist() for sample in ds] == [list(range(1000))]
    assert len(ds.windows(100)) == 10
    hr.index(tmp_path, dtype="uint16")
    assert len(hr.open(tmp_path).windows(100)) == 20


def test_a_header_that_does_not_fit_its_file_is_damage(tmp_path):
    path, tokens = tmp_path / "a.bin", np.arange(500, dtype=np.uint16)
    for content in (headed(tokens)[:-2], headed(tokens) + b"xx", headed(tokens, num_tokens=-1)):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"a.bin holds \d+ tokens, and its header says"):
            scan(path)
    path.write_bytes(headed(tokens)[:-1])
    with pytest.raises(DamagedError, match="no whole number of uint16 tokens"):
        scan(path)


def test_another_version_or_magic_is_no_header(tmp_path):
    for number, content in enumerate(
        [headed(np.zeros(9, np.uint16), version=2), headed(np.zeros(9, np.uint16), 7), b""]
    ):
        (tmp_path / f"{number}.bin").write_bytes(content)
    assert find_tokens(FolderListing(locate(tmp_path)), ScanOptions()) is None
    assert len(find_tokens(FolderListing(locate(tmp_path)), ScanOptions(dtype="uint16")).files) == 3


def test_a_dataset_with_headers_opens_streams_windows_and_notices_a_wrong_manifest(tmp_path):
    """The manifest alone says how many windows there are, and where they are."""
    arrays = [np.arange(k * 1000, k * 1000 + 777, dtype=np.uint16) for k in range(3)]
    for k, tokens in enumerate(arrays):
        (tmp_path / f"train_{k}.bin").write_bytes(headed(tokens))
    bare = hr.open(tmp_path).windows(100)
    hr.index(tmp_path)
    ds = hr.open(tmp_path)
    assert [sample["tokens"].tolist() for sample in ds] == [tokens.tolist() for tokens in arrays]
    windows = ds.windows(100)
    expected = [tokens[at : at + 100].tolist() for tokens in arrays for at in range(0, 700, 100)]
    assert [sample["tokens"].tolist() for sample in windows] == expected
    assert [sample["tokens"].tolist() for sample in bare] == expected
    assert ds.verify() == []
    path = tmp_path / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b"1024,1024,1024", b"1024,1026,1024"))
    with pytest.raises(DamagedError, match=r"a header of 1,024 bytes, the manifest says 1,026"):
        hr.open(tmp_path)[1]


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_a_garbled_index_is_refused_or_stays_within_the_shard(tmp_path_factory, at, garbage):
    tokens = np.arange(3000, dtype=np.uint16)
    path = tmp_path_factory.mktemp("garbled") / "a.bin"
    path.write_bytes(headed(tokens))
    data = bytearray(scan(path)[0].to_file())
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    content = memoryview(path.read_bytes())
    try:
        index = TokensIndex.from_file(memoryview(bytes(data)), "idx", len(content))
    except ManifestError:
        return
    base, length = index.extent(0, index.num_samples)
    assert 0 <= base <= base + length <= len(content)
    index.open(0, index.num_samples, content[base : base + length]).sample(0)
