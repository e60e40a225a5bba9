"""Ordinary tars: which members are samples, and what is wrong with a tar is said."""

import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DamagedError, DatasetError, StorageError
from headrace.formats.format import ScanOptions
from headrace.formats.tar import encode_tar
from headrace.formats.tar.names import split_name
from headrace.formats.tar.scan import scan_tar
from headrace.storage import LocalFile


def make_tar(path, members, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def scan(path, **options):
    with LocalFile(path) as file:
        return scan_tar(file, {}, ScanOptions(**options))


def samples(path):
    index, row = scan(path)
    content = memoryview(path.read_bytes())
    assert row.samples == index.num_samples
    assert row.bytes == len(content)
    found = []
    for i in range(index.num_samples):
        base, length = index.extent(i, i + 1)
        assert index.damage(i, i + 1, content[base : base + length]) == {}
        sample = index.sample(i, content[base : base + length], base)
        found.append({name: value if name == "__key__" else bytes(value) for name, value in sample.items()})
    return found


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("dir.v1/a.seg.png", ("dir.v1/a", "seg.png")),
        ("./000.jpg", ("./000", "jpg")),
        ("a..jpg", ("a", ".jpg")),
        ("a.", ("a", "")),
        ("dir/.hidden.txt", ("dir/", "hidden.txt")),
        (".hidden", None),
        ("noext", None),
        ("a.b/c", None),
        ("__meta__", None),
        ("__meta__/a.jpg", None),
        ("__a.jpg", ("__a", "jpg")),
        ("d/__x__/a.jpg", ("d/__x__/a", "jpg")),
        ("A.JPG", ("A", "jpg")),
        ("a.__key__", None),
        ("a.__url__", None),
        ("a.x.__key__", ("a", "x.__key__")),
    ],
)
def test_keys_and_fields_of_member_names(member, expected):
    assert split_name(member) == expected


def test_neighbours_of_one_key_are_a_sample(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("x/a.jpg", b"1"), ("x/a.CLS", b"2"), ("x/b.jpg", b""), ("c.txt", b"3" * 600)])
    assert samples(path) == [
        {"__key__": "x/a", "jpg": b"1", "cls": b"2"},
        {"__key__": "x/b", "jpg": b""},
        {"__key__": "c", "txt": b"3" * 600},
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_long_names_is_read(tmp_path, format):
    names = ["d" * 120 + "/a.jpg", "d/" + "e" * 99 + "/b.jpg", "ä.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names.append("f" * 300 + ".jpg")
    path = make_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], format)
    assert [sample["jpg"].decode() for sample in samples(path)] == names


def test_what_is_no_ordinary_file_is_passed_over(tmp_path):
    link, hard, folder, device = (tarfile.TarInfo(name) for name in ("l.jpg", "h.jpg", "x.d", "n.jpg"))
    link.type, hard.type, folder.type, device.type = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE
    link.linkname = hard.linkname = "a.jpg"
    members = [(folder, b""), ("a.jpg", b"1"), (link, b""), (folder, b""), ("a.cls", b"2"), (hard, b""), (device, b"")]
    members += [("README", b"r" * 700), ("b.jpg", b"3")]
    assert samples(make_tar(tmp_path / "a.tar", members)) == [
        {"__key__": "a", "jpg": b"1", "cls": b"2"},
        {"__key__": "b", "jpg": b"3"},
    ]


def test_names_that_climb_out_are_only_keys(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("../../etc/a.txt", b"1"), ("/abs/b.txt", b"2")])
    assert [sample["__key__"] for sample in samples(path)] == ["../../etc/a", "/abs/b"]


def test_a_key_that_comes_back_is_named(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"")])
    with pytest.raises(DatasetError, match=r"the key a comes back after other keys"):
        scan(path)


def test_a_field_twice_is_named(tmp_path):
    with pytest.raises(DatasetError, match="sample a has the field 'jpg' twice"):
        scan(make_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.JPG", b"")]))


def test_a_tar_without_samples_has_none(tmp_path):
    assert samples(make_tar(tmp_path / "a.tar", [])) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * 1024 + 1023))
def test_a_tar_cut_anywhere_is_not_whole(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "a.tar"
    blobs = [encode_tar({"__key__": f"k{i}", "txt": b"x" * 10}).blob for i in range(3)]
    whole = b"".join(blobs) + bytes(1024)
    path.write_bytes(whole[:length])
    with pytest.raises(DamagedError, match=r"a\.tar"):
        scan(path)


def test_a_tar_without_its_end_is_not_whole(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DamagedError, match="without the two zero blocks that end a tar"):
        scan(path)


def test_tars_joined_by_cat_are_refused_rather_than_half_read(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DamagedError, match="data behind its end"):
        scan(path)


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a\udcff.jpg", b"1")])
    with pytest.raises(DamagedError, match=r"b'a\\xff\.jpg' is not UTF-8; rename it"):
        scan(path)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255))
def test_a_flipped_byte_never_goes_unnoticed_or_unnamed(tmp_path_factory, at, change):
    """Either the scan refuses the tar by name, or samples differ from the index made before."""
    path = tmp_path_factory.mktemp("flip") / "a.tar"
    blobs = [encode_tar({"__key__": f"k{i}", "bin": bytes([i]) * 700, "cls": i}).blob for i in range(3)]
    content = bytearray(b"".join(blobs) + bytes(1024))
    path.write_bytes(content)
    index, row = scan(path)
    at %= len(content)
    content[at] ^= change
    path.write_bytes(content)
    base, length = index.extent(0, 3)
    damaged = index.damage(0, 3, memoryview(content)[base : base + length])
    assert list(damaged) == ([at // len(blobs[0])] if at < length else [])
    assert digest_or_refusal(path) != row.xxh3_128


def digest_or_refusal(path):
    try:
        return scan(path)[1].xxh3_128
    except DatasetError as err:
        return f"refused: {err}"


@pytest.mark.parametrize("size", ["-1", "1e3", "٣", "9" * 19, "9" * 5000])
def test_an_extended_header_with_a_size_that_is_none_is_refused(tmp_path, size):
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = {"size": size}
    path = make_tar(tmp_path / "a.tar", [(member, b"1")], tarfile.PAX_FORMAT)
    with pytest.raises(DamagedError, match=r"a\.tar is not a whole tar: .*an extended header"):
        scan(path)


@pytest.mark.timeout(30)
def test_a_pipe_among_shards_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(StorageError, match=r"a\.tar: it is not an ordinary file"):
        scan(tmp_path / "a.tar")


def pax_member(name, data=b"1", kind=tarfile.XHDTYPE, **records):
    """A member with these PAX records in front, bytes as they are."""
    body = b"".join(pax_record(key.replace("__", ".").encode(), value) for key, value in records.items())
    head = tarfile.TarInfo("././@PaxHeader")
    head.type, head.size = kind, len(body)
    return head.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + plain_member(name, data)


def pax_record(name, value):
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def plain_member(name, data, size=None, size_field=None):
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size_field is not None:
        header[124:136] = size_field
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return bytes(header) + data + bytes(-len(data) % 512)


def write(path, *parts):
    path.write_bytes(b"".join(parts) + bytes(1024))
    return path


def test_what_other_tools_note_in_extended_headers_is_passed_over(tmp_path):
    """Times, and attributes that need not be text."""
    records = {"mtime": b"1.5", "SCHILY__xattr__security__capability": b"\1\0\0\2\xff\xfe", "comment": b""}
    assert samples(write(tmp_path / "a.tar", pax_member("a.txt", **records))) == [{"__key__": "a", "txt": b"1"}]


def test_an_extended_name_counts_and_an_empty_one_does_not(tmp_path):
    path = write(tmp_path / "a.tar", pax_member("a.txt", path=b"long/name.jpg"), pax_member("b.txt", path=b""))
    assert [list(sample) for sample in samples(path)] == [["__key__", "jpg"], ["__key__", "txt"]]


def test_a_global_header_is_passed_over_unless_it_changes_members(tmp_path):
    comment = pax_member("a.txt", kind=tarfile.XGLTYPE, comment=b"0123456789abcdef")
    path = write(tmp_path / "a.tar", comment, plain_member("a.cls", b"2"), comment.replace(b"a.txt", b"a.bin"))
    with pytest.raises(DamagedError, match="checksum"):  # of the header that was renamed by hand
        scan(path)
    path = write(tmp_path / "a.tar", comment, plain_member("a.cls", b"2"))
    assert samples(path) == [{"__key__": "a", "txt": b"1", "cls": b"2"}]
    for record in ({"path": b"b.txt"}, {"size": b"9"}, {"GNU__sparse__major": b"1"}):
        path = write(tmp_path / "a.tar", pax_member("a.txt", kind=tarfile.XGLTYPE, **record))
        with pytest.raises(DamagedError, match=r"a global header that|sparse members"):
            scan(path)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([plain_member("a.txt", b"", size_field=b"\xff" * 12)], "a number in the header is negative"),
        ([plain_member("a.txt", b"", size_field=b"-0000000001\0")], r"a number in the header is b'-0000000001'"),
        ([plain_member("a.txt", b"", size_field=b"\x80" + b"\x7f" * 11)], "a number in the header is over 10"),
        ([plain_member("a.txt", b"1", size=10**9)], "is cut short: .* inside a member"),
        ([pax_member("a.txt", path=b"a\0b.txt")], "has a zero byte in it"),
        ([pax_member("a.txt", path=b"a\xff.txt")], "is not UTF-8"),
        ([pax_member("a.txt", size=b"99999999999")], "is cut short: .* inside a member"),
        ([pax_member("a.txt", size=b"-5")], "an extended header gives the size '-5'"),
        ([pax_member("a.txt", path=b"x").replace(b"9 path", b"8 path")], "an extended header is malformed"),
        ([pax_member("a.txt", path=b"x").replace(b"9 path", b"\xb2 path")], "an extended header is malformed"),
        ([pax_member("a.txt", path=b"x")[:1024] * 2000, plain_member("a.txt", b"")], "extended headers of more than"),
        ([pax_member("a.txt", path=b"x" * (2 << 20))], "extended headers of more than"),
        ([pax_member("", path=b"x")[:1024], pax_member("a.txt", kind=tarfile.XGLTYPE)], "not followed by its member"),
    ],
)
def test_members_that_lie_are_refused_by_name(tmp_path, parts, reason):
    with pytest.raises(DamagedError, match=rf"a\.tar .*{reason}") as caught:
        scan(write(tmp_path / "a.tar", *parts))
    assert "\n" not in str(caught.value)


def test_sizes_in_base_256_count(tmp_path):
    member = plain_member("a.txt", b"x" * 700, size_field=b"\x80" + (700).to_bytes(11, "big"))
    assert samples(write(tmp_path / "a.tar", member)) == [{"__key__": "a", "txt": b"x" * 700}]


EVERY_DIALECT = b"".join(
    [
        pax_member("a.txt", mtime=b"1.5", path=b"d/" * 60 + b"a.txt"),
        plain_member("n" * 300 + ".jpg", b"x" * 600),
        pax_member("b.txt", kind=tarfile.XGLTYPE, comment=b"c"),
        plain_member("b.cls", b"7", size_field=b"\x80" + (1).to_bytes(11, "big")),
    ]
) + bytes(1024)


@given(st.integers(0, len(EVERY_DIALECT) - 1), st.binary(min_size=1, max_size=12), st.booleans())
def test_a_garbled_tar_is_refused_or_its_samples_lie_within(tmp_path_factory, at, garbage, fix):
    """Whatever the bytes say: an error of ours, or members inside the file. With `fix` header checksums are right."""
    data = bytearray(EVERY_DIALECT)
    data[at : at + len(garbage)] = garbage
    if fix:
        block = at // 512 * 512
        header = data[block : block + 512]
        data[block + 148 : block + 156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    path = tmp_path_factory.mktemp("garbled") / "a.tar"
    path.write_bytes(data)
    try:
        found = samples(path)
    except DatasetError:
        return
    assert all(len(value) <= len(data) for sample in found for value in sample.values())
