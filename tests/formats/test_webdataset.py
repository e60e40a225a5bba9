"""Beside the real webdataset: it reads our shards, we read its, and both make the same samples of the same members."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import DatasetError

webdataset = pytest.importorskip("webdataset")

# It leaves the files that it reads for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def make_tar(path, members, dialect=tarfile.USTAR_FORMAT):
    """A tar of (name or TarInfo, data)."""
    with tarfile.open(path, "w", format=dialect) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def theirs(path):
    """What webdataset makes of a shard, without what it says of where it found a sample."""
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in samples
    ]


def plain(sample):
    return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}


def ours(path):
    return [plain(sample) for sample in hr.open(path)]


MEMBERS = {
    "dir.v1/a.seg.png": ("dir.v1/a", "seg.png"),
    "./000.jpg": ("./000", "jpg"),
    "a..jpg": ("a", ".jpg"),
    "a.": ("a", ""),
    "dir/.hidden.txt": ("dir/", "hidden.txt"),
    ".hidden": None,
    "noext": None,
    "a.b/c": None,
    "__a.jpg": ("__a", "jpg"),
    "d/__x__/a.jpg": ("d/__x__/a", "jpg"),
    "__meta__": None,
    "__meta__/a.jpg": None,
    "__a.jpg__": None,
    "a.JPG": ("a", "jpg"),
    "A.Seg.PNG": ("A", "seg.png"),
    "../up.txt": ("../up", "txt"),
    "/abs/b.txt": ("/abs/b", "txt"),
    "a b/ä.txt": ("a b/ä", "txt"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_gives_the_same_key_and_field(tmp_path, name):
    path = make_tar(tmp_path / "a.tar", [("first.txt", b"1"), (name, b"data"), ("last.txt", b"2")])
    expected = [{"__key__": MEMBERS[name][0], MEMBERS[name][1]: b"data"}] if MEMBERS[name] else []
    samples = [{"__key__": "first", "txt": b"1"}, *expected, {"__key__": "last", "txt": b"2"}]
    assert theirs(path) == samples
    assert ours(path) == samples


PARTS = st.sampled_from(["a", "b", ".", "..", "__", "__m__", "A.", "x.jpg", "y.Seg.png", "/", "./", "é"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("".join).filter(lambda name: name[-1] != "/")
NAMES = NAMES.filter(
    lambda name: not name.endswith("__")
)  # a field `__key__` is not the tar's to give: we pass it over


@given(st.lists(NAMES, max_size=6))
def test_any_members_give_the_same_samples(tmp_path_factory, names):
    """Or the same refusal of a field that comes twice; ours also refuses a key that comes back, and says which."""
    path = make_tar(tmp_path_factory.mktemp("any") / "a.tar", [(name, name.encode()) for name in names])
    try:
        expected = theirs(path)
    except ValueError:  # a field that comes twice
        with pytest.raises(DatasetError, match=r"has the field .* twice|comes back"):
            hr.open(path)
        return
    keys = [sample["__key__"] for sample in expected]
    if len(set(keys)) < len(keys):
        with pytest.raises(DatasetError, match="comes back after other keys"):
            hr.open(path)
    else:
        assert ours(path) == expected


@pytest.mark.parametrize("compression", [None, "gz"])
def test_what_its_writer_writes_is_read(tmp_path, compression):
    """PAX headers with times as fractions, a file behind the other, with and without gzip."""
    ending = "tar.gz" if compression else "tar"
    samples = [
        {"__key__": f"d/{i:04d}", "txt": f"text {i} ä", "cls": i, "json": {"a": [i]}, "npy": np.arange(i)}
        for i in range(40)
    ]
    samples[7]["__key__"] = "long/" * 60 + "key"
    with webdataset.ShardWriter(str(tmp_path / f"s-%03d.{ending}"), maxcount=15, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    assert len(list(tmp_path.iterdir())) == 3
    expected = [sample for path in sorted(tmp_path.iterdir()) for sample in theirs(path)]
    assert ours(tmp_path) == expected
    assert [sample["__key__"] for sample in expected] == [sample["__key__"] for sample in samples]
    hr.index(tmp_path)
    assert hr.open(tmp_path).verify() == []
    assert ours(tmp_path) == expected


def test_it_reads_what_we_write(tmp_path):
    samples = [{"__key__": f"d.v1/{i:03d}", "txt": f"text {i} ä", "cls": i, "seg.bin": bytes(i)} for i in range(50)]
    samples[3]["__key__"] = "x" * 140 + "/" + "y" * 120
    hr.pack(samples, tmp_path / "ours", shard_size=20_000, shuffle=False)
    paths = sorted((tmp_path / "ours").glob("*.tar"))
    assert len(paths) > 2
    found = [sample for path in paths for sample in theirs(path)]
    stored = [{**s, "txt": s["txt"].encode(), "cls": str(s["cls"]).encode()} for s in samples]
    assert found == stored == ours(tmp_path / "ours")
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(paths[0].read_bytes()))
    assert theirs(packed) == ours(packed)


def test_it_reads_braces_as_we_do(tmp_path):
    for k in range(3):
        make_tar(tmp_path / f"s-{k:03d}.tar", [(f"{k}.txt", b"")])
    url = f"{tmp_path}/s-{{000..002}}.tar"
    assert [s["__key__"] for s in webdataset.WebDataset(url, shardshuffle=False)] == ["0", "1", "2"]
    assert [s["__key__"] for s in hr.open(url)] == ["0", "1", "2"]


def odd_members(folder):
    """Everything that a tar may hold beside ordinary files."""
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    for number, kind in enumerate(kinds):
        info = tarfile.TarInfo(f"odd{number}.txt")
        info.type, info.linkname = kind, str(folder / "secret.txt")
        yield info, b""


def test_links_and_devices_are_passed_over_by_both(tmp_path):
    (tmp_path / "secret.txt").write_bytes(b"not to be read")
    members = [("a.txt", b"1"), *odd_members(tmp_path), ("b.txt", b"2")]
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = make_tar(tmp_path / "a.tar", members, dialect)
        assert theirs(path) == ours(path) == [{"__key__": "a", "txt": b"1"}, {"__key__": "b", "txt": b"2"}]


def test_keys_that_climb_are_names_and_no_more(tmp_path):
    """Read, indexed, looked up and packed: nothing appears outside, and the packed one refuses the key."""
    (tmp_path / "data").mkdir()
    make_tar(tmp_path / "data" / "a.tar", [("../../up.txt", b"1"), ("/tmp/abs.txt", b"2")])
    before = sorted(tmp_path.rglob("*"))
    ds = hr.open(tmp_path / "data")
    assert plain(ds.lookup("../../up")) == {"__key__": "../../up", "txt": b"1"}
    hr.index(tmp_path / "data")
    assert plain(hr.open(tmp_path / "data").lookup("/tmp/abs")) == {"__key__": "/tmp/abs", "txt": b"2"}
    made = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert made <= {"a.tar.idx", "headrace.json", "headrace.keys"}
    with pytest.raises(hr.errors.SourceError, match="cannot be the name of tar members"):
        hr.pack(tmp_path / "data", tmp_path / "target")


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sparse_members_are_refused(tmp_path, dialect):
    info = tarfile.TarInfo("a.txt")
    if dialect == tarfile.GNU_FORMAT:
        info.type = tarfile.GNUTYPE_SPARSE
    else:
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.txt"}
    path = make_tar(tmp_path / "a.tar", [(info, b"1" * 600)], dialect)
    with pytest.raises(DatasetError, match="sparse members are not read; make the archive without --sparse"):
        hr.open(path)


def test_a_tar_cut_between_members_ends_well_for_others_and_not_for_us(tmp_path):
    """To webdataset it is a shorter shard; to us it is no whole tar, and with an index what is missing has a name."""
    hr.pack([{"__key__": f"k{i}", "txt": "t" * 600, "cls": i} for i in range(6)], tmp_path / "a", shuffle=False)
    path = tmp_path / "a" / "shard-000000.tar"
    whole, alone = path.read_bytes(), tmp_path / "alone.tar"
    with tarfile.open(path) as tar:
        boundaries = [member.offset for member in tar][1:]
    for end in boundaries:
        path.write_bytes(whole[:end])
        alone.write_bytes(whole[:end])
        assert 0 < len(theirs(alone)) <= 6
        with pytest.raises(DatasetError, match="without the two zero blocks that end a tar"):
            hr.open(alone)
        ds = hr.open(tmp_path / "a")
        damage = [error for error in ds.verify() if "sample" in error]
        lost = [i for i in range(6) if any(f"sample k{i} is damaged" in error for error in damage)]
        assert lost == list(range(6 - len(lost), 6))
        assert len(lost) == len(damage) >= 1
        with pytest.raises(DatasetError, match="is cut short"):
            ds[5]
        assert all(bytes(ds[i]["cls"]) == b"%d" % i for i in range(6) if i not in lost)
