"""MDS beside the real mosaicml-streaming: we read all that it writes, and it reads all that we write."""

import io
import shutil
from decimal import Decimal

import numpy as np
import orjson
import pytest
from mds_files import plain, read, same, scan, write
from PIL import Image
from real_streaming import needs_streaming, real_streaming  # noqa: F401

from headrace.errors import DamagedError, DatasetError
from headrace.formats.fields import Field
from headrace.formats.mds.compression import codec_of
from headrace.formats.mds.hashes import HASHES

pytestmark = needs_streaming


def image(mode, size=(5, 3)):
    pixels = np.random.default_rng(len(mode)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(quality=90):
    file = io.BytesIO()
    image("RGB", (16, 8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def numbers(dtype):
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return [np.dtype(dtype).type(value) for value in (limits.min, 0, 1, limits.max)]


def arrays(dtype, *shapes):
    return [(np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype) for shape in shapes]


DTYPES = ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"]
IMAGES = [image("RGB"), image("L"), image("CMYK")]
VALUES = {
    "bytes": [b"", b"\0abc"],
    "str": ["", "plain", "\0 ü 漢"],
    "int": [0, -1, 2**63 - 1, -(2**63)],
    **{dtype: numbers(dtype) for dtype in DTYPES},
    "str_int": [0, -(10**40)],
    "str_float": [0.1, -1e300, float("inf"), float("nan")],
    "str_decimal": [Decimal("1.10"), Decimal("-1E+400")],
    "json": [{"a": [1, None, float("nan"), 10**30, "ü"]}, [], "text", 3.5],
    "ndarray": [array for dtype in DTYPES for array in arrays(dtype, (1,), (300, 2), (2, 1, 3))],
    "ndarray:float32": arrays("float32", (4,), (1, 70_000)),
    "ndarray:int16:2,3": arrays("int16", (2, 3), (2, 3)),
    "pil": [image(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "LA")],
    "jpeg": IMAGES,
    "png": [image("RGB"), image("L"), image("RGBA")],
    "jpeg_array": [[jpeg(90)], [jpeg(50), jpeg(10)]],
    "jpegarray": [[jpeg(90)], [jpeg(50), jpeg(10)]],
    "list[jpeg]": [[], IMAGES],
    "list[png]": [[], [image("RGB")]],
    "list[pil]": [[], IMAGES, [image("1")]],
}


def as_ours(theirs, ours):
    """What the package reads, in the terms of what we read: `ours` says only whether bytes stand for an image."""
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [as_ours(*pair) for pair in zip(theirs, ours, strict=True)]
    if isinstance(theirs, tuple):
        mode, pixels = theirs
        if isinstance(ours, bytes):
            decoded = Image.open(io.BytesIO(ours))
            return ours if decoded.mode == mode and same(np.asarray(decoded), pixels) else None
        return pixels.reshape(*pixels.shape[:2], -1)
    if isinstance(theirs, np.generic):
        return theirs.item()
    return str(theirs) if isinstance(theirs, Decimal) else theirs


@pytest.mark.parametrize("encoding", VALUES)
def test_every_encoding_is_read(tmp_path, real_streaming, encoding):  # noqa: F811
    samples = [{"x": value, "number": i} for i, value in enumerate(VALUES[encoding])]
    real_streaming.write(tmp_path / "d", {"x": encoding, "number": "int"}, samples)
    theirs, ours = real_streaming.read(tmp_path / "d"), read(tmp_path / "d")
    assert [sample["number"] for sample in ours] == list(range(len(samples)))
    assert [sample["__key__"] for sample in ours] == [f"shard-00000:{i}" for i in range(len(samples))]
    for their, our in zip(theirs, ours, strict=True):
        assert same(as_ours(their["x"], our["x"]), our["x"])


def test_nothing_that_the_package_knows_is_left_out(real_streaming):  # noqa: F811
    encodings, compressions, hashes = real_streaming.names()
    assert {name.partition(":")[0] for name in VALUES} == encodings - {"pkl"}
    assert hashes <= HASHES
    for compression in compressions:
        codec_of(compression, "it")


def test_numbers_keep_their_type_in_the_schema(tmp_path, real_streaming):  # noqa: F811
    columns = {"a": "uint8", "b": "float16", "c": "int", "d": "ndarray:int16:2,3", "e": "jpeg", "f": "str_decimal"}
    sample = {"a": 1, "b": 2.5, "c": 3, "d": np.zeros((2, 3), np.int16), "e": IMAGES[0], "f": Decimal(1)}
    real_streaming.write(tmp_path / "d", columns, [sample])
    [(_, index, _)] = scan(tmp_path / "d")
    assert index.fields == {
        "a": Field("int", "uint8"),
        "b": Field("float", "float16"),
        "c": Field("int", "int64"),
        "d": Field("array", "int16", (2, 3)),
        "e": Field("image"),
        "f": Field("str"),
    }


def test_a_column_of_keys_gives_the_keys(tmp_path, real_streaming):  # noqa: F811
    for encoding, keys in (("str", ["ü", "b/c"]), ("int", [7, 9])):
        folder = tmp_path / encoding
        samples = [{"Z": b"1" * 9, "__key__": key, "a": b"2"} for key in keys]
        real_streaming.write(folder, {"Z": "bytes", "__key__": encoding, "a": "bytes"}, samples)
        [(path, index, _)] = scan(folder)
        assert [index.key(i) for i in range(2)] == [str(key) for key in keys]
        assert read(folder)[1] == {"__key__": str(keys[1]), "Z": b"1" * 9, "a": b"2"}
        assert list(index.fields) == ["Z", "a"]
        assert path.name == "shard.00000.mds"
    real_streaming.write(tmp_path / "j", {"__key__": "json", "a": "int"}, [{"__key__": [1], "a": 1}])
    with pytest.raises(DatasetError, match="the column __key__ is of the encoding json, not str"):
        scan(tmp_path / "j")


def test_pickles_are_refused_by_name(tmp_path, real_streaming):  # noqa: F811
    real_streaming.write(tmp_path / "d", {"a": "int", "b": "pkl"}, [{"a": 1, "b": {1, 2}}])
    with pytest.raises(DatasetError, match=r"the column b holds pickles .* write the dataset again with json"):
        scan(tmp_path / "d")


SAMPLES = [{"a": i, "b": f"text {i} " * 20, "c": np.arange(i + 1, dtype=np.int32)} for i in range(60)]
COLUMNS = {"a": "int", "b": "str", "c": "ndarray"}


@pytest.mark.parametrize("family", ["br", "bz2", "gz", "snappy", "zstd"])
def test_every_compression_and_level_is_read(tmp_path, real_streaming, family):  # noqa: F811
    _, compressions, _ = real_streaming.names()
    chosen = [name for name in compressions if name.partition(":")[0] == family]
    assert chosen
    for name in chosen:
        folder = tmp_path / name.replace(":", "-")
        real_streaming.write(folder, COLUMNS, SAMPLES, compression=name, hashes=["sha1", "xxh64"], size_limit=6000)
        shards = scan(folder)
        assert len(shards) == 4
        assert all(path.name.endswith(f".mds.{family}") and not index.is_ranged for path, index, _ in shards)
        ours = read(folder)
        keys = [sample.pop("__key__") for sample in ours]
        assert (keys[0], len(set(keys))) == ("shard-00000:0", len(SAMPLES))
        assert same(ours, SAMPLES)


def test_every_hash_is_checked(tmp_path, real_streaming):  # noqa: F811
    _, _, hashes = real_streaming.names()
    for name in sorted(hashes):
        for compression, which in ((None, "raw_data"), ("gz", "raw_data"), ("gz", "zip_data")):
            folder = tmp_path / f"{name}-{compression}-{which}"
            real_streaming.write(folder, COLUMNS, SAMPLES[:3], compression=compression, hashes=[name])
            assert len(read(folder)) == 3
            index = orjson.loads((folder / "index.json").read_bytes())
            digest = index["shards"][0][which]["hashes"][name]
            index["shards"][0][which]["hashes"][name] = ("0" if digest[0] != "0" else "1") + digest[1:]
            (folder / "index.json").write_bytes(orjson.dumps(index))
            with pytest.raises(DamagedError, match=rf"is damaged: its {name} is {digest}, not .* as index.json says"):
                scan(folder)


def test_a_merged_index_names_shards_in_folders_below(tmp_path, real_streaming):  # noqa: F811
    for part in range(3):
        samples = SAMPLES[20 * part : 20 * part + 20]
        options = {"compression": "zstd", "hashes": ["md5"]} if part == 1 else {}
        real_streaming.write(tmp_path / "d" / f"part-{part}", COLUMNS, samples, **options)
    real_streaming.merge(tmp_path / "d")
    ours = read(tmp_path / "d")
    assert [sample.pop("__key__") for sample in ours][19:22] == [
        "part-0/shard-00000:19",
        "part-1/shard-00000:0",
        "part-1/shard-00000:1",
    ]
    assert same(ours, SAMPLES)


def test_a_plain_copy_of_a_compressed_shard_is_preferred(tmp_path, real_streaming):  # noqa: F811
    real_streaming.write(tmp_path / "plain", COLUMNS, SAMPLES)
    real_streaming.write(tmp_path / "d", COLUMNS, SAMPLES, compression="br:1", hashes=["sha256"])
    assert not scan(tmp_path / "d")[0][1].is_ranged
    # The package's own plain shard says of itself that it is not compressed; all else is the same.
    real_streaming.stream(tmp_path / "d", tmp_path / "unpacked", validate_hash="sha256")
    shutil.copy(tmp_path / "unpacked" / "shard.00000.mds", tmp_path / "d")
    [(path, index, row)] = scan(tmp_path / "d")
    assert (path.name, index.is_ranged, row.unpacked_bytes) == ("shard.00000.mds", True, 0)
    assert same(read(tmp_path / "d"), read(tmp_path / "plain"))


OURS = [
    {
        "__key__": f"dir/{i}",
        "int": i - 2,
        "float": i / 3,
        "text": "ü" * i,
        "raw": bytes(range(i)),
        "flag": i % 2 == 0,
        "nothing": None,
        "object": {"list": [1, {"deep": None}], "nan": float("nan"), "i": i},
        "array": np.arange(6 * i, dtype=np.float32).reshape(i, 2, 3),
        "token.npy": np.full(3, i, np.uint16),
        "jpg": jpeg(10 + i),
    }
    for i in range(40)
]


def test_the_package_reads_what_we_write(tmp_path, real_streaming):  # noqa: F811
    rows = write(tmp_path / "d", OURS, shard_size=20_000)
    assert len(rows) > 2
    assert same(read(tmp_path / "d"), plain(OURS))
    ways = (
        real_streaming.read(tmp_path / "d"),
        real_streaming.stream(tmp_path / "d", tmp_path / "local", validate_hash="xxh3_128"),
    )
    for theirs in ways:
        for their, our in zip(theirs, OURS, strict=True):
            mode, pixels = their.pop("jpg")
            assert (mode, pixels.shape) == ("RGB", (8, 16, 3))
            rest = {name: as_ours(value, our[name]) for name, value in their.items()}
            assert same(rest, {name: value for name, value in our.items() if name != "jpg"})


def test_the_bytes_are_those_that_the_package_writes(tmp_path, real_streaming):  # noqa: F811
    ours = [
        {name: value for name, value in sample.items() if name not in ("flag", "nothing", "object")} for sample in OURS
    ]
    ours = ours[1:]  # the package writes no empty arrays, and reads them
    write(tmp_path / "ours", ours)
    columns = {"__key__": "str", "int": "int", "float": "float64", "text": "str", "raw": "bytes", "jpg": "jpeg"}
    columns |= {"array": "ndarray", "token.npy": "ndarray"}
    real_streaming.write(tmp_path / "theirs", columns, ours, hashes=["xxh3_128"], size_limit=None)
    assert (tmp_path / "ours" / "shard-000000.mds").read_bytes() == (
        tmp_path / "theirs" / "shard.00000.mds"
    ).read_bytes()
    listed = [orjson.loads((tmp_path / name / "index.json").read_bytes()) for name in ("ours", "theirs")]
    listed[0]["shards"][0]["raw_data"]["basename"] = "shard.00000.mds"
    assert listed[0] == listed[1]
