"""Tar shards as headrace writes them: round trips, values, other readers, and index files that lie."""

import io
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ManifestError, SourceError
from headrace.formats.arrow import Lists, index_to_bytes
from headrace.formats.columns import Strings
from headrace.formats.format import ScanOptions
from headrace.formats.tar import TarWriter, encode_tar
from headrace.formats.tar.index import read_tar_index
from headrace.formats.tar.scan import scan_tar
from headrace.storage import LocalFile

KEYS = st.lists(st.text("abä_ -1", min_size=1, max_size=60), min_size=1, max_size=3).map("/".join)
KEYS = KEYS.filter(lambda key: not key.startswith("__"))  # names like __this__ belong to no sample
FIELDS = st.dictionaries(
    st.sampled_from(["jpg", "cls", "seg.png", "json", "txt.gz", ".odd"]), st.binary(max_size=1200), min_size=1
)
SAMPLES = st.dictionaries(KEYS, FIELDS, max_size=8)


def write(path, samples):
    writer = TarWriter(path, {})
    for key, fields in samples.items():
        writer.add(encode_tar({"__key__": key, **fields}))
    row = writer.finish()
    index = read_tar_index(memoryview((path.parent / (path.name + ".idx")).read_bytes()), "idx", row.bytes)
    return index, row


def scan(path):
    with LocalFile(path) as file:
        return scan_tar(file, {}, ScanOptions())


def read_all(index, content):
    samples = [index.sample(i, memoryview(content), 0) for i in range(index.num_samples)]
    return {sample.pop("__key__"): {name: bytes(value) for name, value in sample.items()} for sample in samples}


@given(SAMPLES)
def test_what_is_written_comes_back(tmp_path_factory, samples):
    """Through the index file, through a scan of the bare tar, through tarfile, and through pickle."""
    path = tmp_path_factory.mktemp("tar") / "shard-000000.tar"
    index, row = write(path, samples)
    content = path.read_bytes()
    scanned, scanned_row = scan(path)
    assert read_all(index, content) == read_all(scanned, content) == samples
    assert read_all(pickle.loads(pickle.dumps(index)), content) == samples
    assert (row.samples, row.bytes, row.xxh3_128) == (scanned_row.samples, scanned_row.bytes, scanned_row.xxh3_128)
    assert scanned.to_file() == index.to_file()
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert members == {f"{key}.{name}": data for key, fields in samples.items() for name, data in fields.items()}


def test_the_same_samples_give_the_same_bytes_whatever_the_order_of_fields(tmp_path):
    first = encode_tar({"__key__": "a", "jpg": b"1", "cls": 3})
    second = encode_tar({"cls": "3", "jpg": bytearray(b"1"), "__key__": "a"})
    assert (first.blob, first.members, first.checksum) == (second.blob, second.members, second.checksum)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("bin", memoryview(b"abc")[1:], b"bc"),
        ("bin", memoryview(b"abcd")[::2], b"ac"),
        ("txt", "grün", "grün".encode()),
        ("cls", 7, b"7"),
        ("cls", np.int32(7), b"7"),
        ("cls", True, b"1"),
        ("score", 0.1, b"0.1"),
        ("score", np.float32(0.5), b"0.5"),
        ("json", {"a": [1, None], "b": np.array([1, 2])}, b'{"a":[1,null],"b":[1,2]}'),
    ],
)
def test_values_are_stored_as_decoding_reads_them(name, value, stored):
    encoded = encode_tar({"__key__": "k", name: value})
    _, offset, length = encoded.members[0]
    assert encoded.blob[offset : offset + length] == stored


def test_arrays_are_stored_as_npy():
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    encoded = encode_tar({"__key__": "k", "depth.npy": array})
    _, offset, length = encoded.members[0]
    np.testing.assert_array_equal(np.load(io.BytesIO(encoded.blob[offset : offset + length])), array, strict=True)


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("jpg", np.zeros(3), "name it 'jpg.npy' to store it, or encode it"),
        ("a.npy", np.array([object()]), "Python objects"),
        ("obj", object(), "convert it in the transform"),
        ("none", None, r"is None, which a tar cannot hold: fill it in \(fill, --fill\)"),
        ("json", {"a": object()}, "cannot be stored as JSON"),
        ("txt", "\udcff", "text that is not UTF-8; give bytes"),
        ("JPG", b"", "in lower case"),
        ("a/b", b"", "without a slash"),
        ("a\nb", b"", "cannot be a field"),
        ("", b"", "cannot be a field"),
    ],
)
def test_what_a_tar_cannot_hold_is_refused_with_advice(field, value, advice):
    with pytest.raises(SourceError, match=f"sample k.*{advice}"):
        encode_tar({"__key__": "k", field: value})


@pytest.mark.parametrize("key", ["a.b", "d/", "/abs", "../up", "d/../up", "__meta__", "__m__/a", "d/.a"])
def test_keys_that_would_not_come_back_are_refused(key):
    with pytest.raises(SourceError, match="cannot be the name of tar members"):
        encode_tar({"__key__": key, "txt": b""})


def test_a_sample_without_fields_is_refused():
    with pytest.raises(SourceError, match="has no fields"):
        encode_tar({"__key__": "a"})


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_our_shards(tmp_path):
    import webdataset

    samples = {f"d/{i:03d}": {"txt": f"text {i}".encode(), "cls": str(i).encode()} for i in range(20)}
    samples["x" * 140 + "/" + "y" * 120] = {"txt": b"long name", "cls": b"1"}
    write(tmp_path / "shard-000000.tar", samples)
    dataset = webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False)
    found = {sample["__key__"]: {"txt": sample["txt"], "cls": sample["cls"]} for sample in dataset}
    assert found == samples


def make_index(**changes):
    columns = {
        "key": Strings.of(["a", "b"]),
        "offset": np.array([0, 1024]),
        "length": np.array([1024, 1024]),
        "checksum": np.array([1, 2], np.uint64),
        "member_field": Lists(np.array([0, 1, 2]), np.array([0, 0])),
        "member_offset": Lists(np.array([0, 1, 2]), np.array([512, 512])),
        "member_length": Lists(np.array([0, 1, 2]), np.array([512, 1])),
    }
    return index_to_bytes("tar", columns | changes, {"fields": orjson.dumps(["jpg"]).decode()})


def read_index(data, shard_bytes=3072):
    return read_tar_index(memoryview(data), "shard-000000.tar.idx", shard_bytes)


def test_an_index_is_read_as_it_was_written():
    index = read_index(make_index())
    assert [index.key(i) for i in range(2)] == ["a", "b"]
    assert index.extent(0, 2) == (0, 2048)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": np.array([0, 2560])},
        {"offset": np.array([-1024, 1024])},
        {"offset": np.array([0, 1000])},
        {"length": np.array([1024, 2**62])},
        {"length": np.array([1024, -1])},
        {"member_field": Lists(np.array([0, 1, 2]), np.array([0, 1]))},
        {"member_field": Lists(np.array([0, 1, 2]), np.array([0, -1]))},
        {"member_offset": Lists(np.array([0, 1, 2]), np.array([512, 1024]))},
        {"member_length": Lists(np.array([0, 1, 2]), np.array([513, 1]))},
        {"member_length": Lists(np.array([0, 2, 2]), np.array([512, 1]))},
        {"checksum": np.array([1, 2], np.int64)},
    ],
)
def test_an_index_that_reaches_outside_or_has_other_columns_is_refused(changes):
    with pytest.raises(ManifestError, match=r"the index shard-000000\.tar\.idx"):
        read_index(make_index(**changes))


@given(st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_a_garbled_index_is_refused_or_stays_within_the_shard(at, garbage):
    """Whatever the bytes say: an error of ours, or views inside the data, never a crash."""
    data = bytearray(make_index())
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    try:
        index = read_index(bytes(data))
    except ManifestError:
        return
    for i in range(index.num_samples):
        offset, length = index.extent(i, i + 1)
        assert 0 <= offset <= offset + length <= 3072
        assert index.sample(i, memoryview(bytes(3072)), 0)["__key__"] == index.key(i)


@pytest.mark.parametrize("cut", [0, 1, 100, 1000])
def test_an_index_cut_short_is_refused(cut):
    with pytest.raises(ManifestError, match="is not a readable Arrow file"):
        read_index(make_index()[:cut])


WITHOUT_PANDAS = """
import sys
from headrace.formats.tar import TarWriter, encode_tar
from headrace.formats.tar.index import read_tar_index
from pathlib import Path
path = Path(sys.argv[1])
writer = TarWriter(path, {})
writer.add(encode_tar({"__key__": "a", "txt": b"text"}))
row = writer.finish()
index = read_tar_index(memoryview(Path(str(path) + ".idx").read_bytes()), "i", row.bytes)
assert index.key(0) == "a"
assert "pandas" not in sys.modules, "pandas was imported"
"""


def test_indexes_are_written_and_read_without_pandas(tmp_path):
    """Arrow imports it for some conversions where it is installed, which takes a second and 60 MB a process."""
    subprocess.run([sys.executable, "-c", WITHOUT_PANDAS, str(tmp_path / "shard-000000.tar")], check=True, timeout=120)
