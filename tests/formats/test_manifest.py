"""The manifest: what is written comes back, and what is malformed is refused with its place."""

import pickle

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ManifestError
from headrace.formats import Field, Manifest, Shard, Shards

HEX = "0123456789abcdef" * 2


def make_manifest(num_shards=2, **changes):
    rows = [Shard(f"shard-{k:06d}.tar", k + 1, 1024 * (k + 2), HEX, HEX[::-1]) for k in range(num_shards)]
    fields = {"png": Field("bytes", image_size=(8, 9)), "tokens": Field("array", "uint16", (4,)), "cls": Field("bytes")}
    return Manifest("tar", fields, Shards.of(rows), **{"classes": ("a", "b"), "request": HEX, **changes})


def test_a_manifest_comes_back_from_its_file(tmp_path):
    manifest = make_manifest(skipped=3)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest == pickle.loads(pickle.dumps(manifest))
    assert (manifest.samples, manifest.bytes, len(manifest.shards)) == (3, 5120, 2)


def test_the_file_has_the_promised_columns(tmp_path):
    make_manifest().write(tmp_path)
    value = orjson.loads((tmp_path / "headrace.json").read_bytes())
    assert {"version", "format", "samples", "bytes", "fields", "classes", "fingerprint", "shards"} <= set(value)
    assert value["shards"] == {
        "file": ["shard-000000.tar", "shard-000001.tar"],
        "samples": [1, 2],
        "bytes": [2048, 3072],
        "xxh3_128": [HEX, HEX],
        "index_xxh3_128": [HEX[::-1], HEX[::-1]],
    }


def test_a_manifest_of_ten_thousand_shards_stays_small():
    manifest = make_manifest(10_000)
    assert len(orjson.dumps(manifest.to_json())) < 1_200_000


def test_the_fingerprint_follows_the_samples_alone():
    assert make_manifest(classes=None, request=None).fingerprint == make_manifest().fingerprint
    assert make_manifest(3).fingerprint != make_manifest().fingerprint


def rewrite(folder, change):
    make_manifest().write(folder)
    path = folder / "headrace.json"
    value = orjson.loads(path.read_bytes())
    change(value)
    path.write_bytes(orjson.dumps(value))


def setter(*places, to):
    def change(value):
        for place in places[:-1]:
            value = value[place]
        value[places[-1]] = to

    return change


def test_classes_are_those_of_cls_unless_the_manifest_says_otherwise(tmp_path):
    rewrite(tmp_path, lambda value: value.pop("class_field"))
    assert Manifest.read(tmp_path) == make_manifest()
    assert Manifest.read(tmp_path).class_field == "cls"
    make_manifest(class_field="label").write(tmp_path)
    assert Manifest.read(tmp_path).class_field == "label"


LEADS_OUT = [
    "a\nb.tar",
    "a\x7f.tar",
    "../up.tar",
    "/etc/passwd",
    "a/../b.tar",
    "a//b.tar",
    "a/",
    "./a.tar",
    "..",
    ".",
    "",
    "a\\b",
    "a\0",
]


@pytest.mark.parametrize("name", [*LEADS_OUT, 3, None])
def test_shard_names_that_leave_the_folder_are_refused(tmp_path, name):
    rewrite(tmp_path, setter("shards", "file", 1, to=name))
    with pytest.raises(ManifestError, match=r"shards\.file\[1\] must be"):
        Manifest.read(tmp_path)


def test_shards_may_lie_in_folders_below(tmp_path):
    rewrite(tmp_path, setter("shards", "file", 1, to="train/a b/ä.tar"))
    assert list(Manifest.read(tmp_path).shards.file) == ["shard-000000.tar", "train/a b/ä.tar"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("version", to=2), "has version 2, this release of headrace reads version 1: upgrade headrace"),
        (setter("version", to="1"), "version must be a whole number"),
        (setter("version", to=True), "version must be a whole number"),
        (setter("format", to=None), "format must be there"),
        (setter("samples", to=4), "samples must agree with the shards listed: they give 3, got 4"),
        (setter("bytes", to=-1), "bytes must agree"),
        (setter("fingerprint", to=HEX), "fingerprint must agree"),
        (setter("fields", to=[]), "fields must be an object"),
        (setter("fields", "png", "image_size", to=[1]), r"fields\.png\.image_size must be \[height, width\]"),
        (
            setter("fields", "png", "type", to="byteq"),
            r"fields\.png\.type must be one of bytes, image, .*, got 'byteq'",
        ),
        (setter("classes", to=[1]), r"classes\[0\] must be a string"),
        (setter("class_field", to=3), "class_field must be a string"),
        (setter("shards", to=None), "shards must be there"),
        (setter("shards", "file", to=["a.tar", "a.tar"]), "must name every shard once"),
        (setter("shards", "samples", to=[1]), r"one entry a shard: 2 shards, 1 entries"),
        (setter("shards", "samples", 0, to=-1), r"shards\.samples\[0\] must be a whole number, at least 0, got -1"),
        (setter("shards", "samples", to=[2**62, 2**62]), r"shards\.samples must add up to less than 2\^63"),
        (setter("shards", "bytes", 0, to=2**64 - 1), r"shards\.bytes\[0\] must be a whole number"),
        (setter("shards", "xxh3_128", 0, to=HEX.upper()), "must be 32 lower-case hex digits"),
        (setter("shards", "index_xxh3_128", 0, to="x" * 1000), r"got 'x+\.\.\.;"),
    ],
)
def test_malformed_manifests_are_refused_with_the_place_and_the_value(tmp_path, change, message):
    rewrite(tmp_path, change)
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1'])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "headrace.json").write_bytes(content)
    with pytest.raises(ManifestError):
        Manifest.read(tmp_path)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_a_garbled_manifest_is_an_error_of_ours_or_still_consistent(tmp_path_factory, at, garbage):
    folder = tmp_path_factory.mktemp("manifest")
    make_manifest().write(folder)
    data = bytearray((folder / "headrace.json").read_bytes())
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    (folder / "headrace.json").write_bytes(data)
    try:
        manifest = Manifest.read(folder)
    except ManifestError:
        return
    assert manifest.samples == 3
