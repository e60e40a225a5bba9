"""A manifest's text read by columns gives what the ordinary parser gives, or leaves it to that parser."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ManifestError
from headrace.formats import Field, Manifest, Shard, Shards, manifest
from headrace.formats.columns import Digests, Strings
from headrace.formats.manifest_text import parse_manifest

NAMES = st.one_of(
    st.integers(0, 10**7).map(lambda k: f"shard-{k:06d}.tar"),
    st.text("abc-_. ~!{}[]()'", min_size=1, max_size=20),
    st.text(min_size=1, max_size=5),
    st.sampled_from([".", "..", "...", 'a"]', 'a"],"samples":[', "a\\b", "d/a.tar", "é", "a\nb"]),
)
ROWS = st.lists(NAMES, min_size=1, max_size=8, unique=True)


def text_of(names, sort=True):
    """The text of a manifest with these names, whatever they are."""
    names = sorted(names) if sort else names
    rng = np.random.default_rng(len(names))
    digests = (rng.bytes(16).hex() for _ in range(2 * len(names)))
    rows = [Shard(name, k % 3, 10 ** (k % 9), next(digests), next(digests)) for k, name in enumerate(names)]
    return Manifest("tar", {"txt": Field("bytes")}, Shards.of(rows)).to_bytes()


def plain(value):
    """The value with lists for columns."""
    columns = value["shards"]
    for name, column in columns.items():
        if isinstance(column, Strings):
            columns[name] = list(column)
        if isinstance(column, np.ndarray):
            columns[name] = column.tolist()
    return value


def outcome(data):
    """The manifest, or what is wrong with it."""
    try:
        return Manifest.parse(data, "m").to_json()
    except ManifestError as err:
        return str(err)


def ordinary_outcome(data):
    """The same without reading by columns."""
    manifest.parse_manifest = orjson.loads
    try:
        return outcome(data)
    finally:
        manifest.parse_manifest = parse_manifest


def is_apart(data):
    return isinstance(parse_manifest(data)["shards"]["file"], Strings)


@given(ROWS, st.booleans())
def test_whatever_the_names_the_outcome_is_the_ordinary_one(names, sort):
    try:
        data = text_of(names, sort)
    except (UnicodeEncodeError, TypeError):  # a lone surrogate: no text of a manifest
        return
    assert plain(parse_manifest(data)) == orjson.loads(data)
    assert outcome(data) == ordinary_outcome(data)


@pytest.mark.parametrize(("first", "count"), [(0, 20), (999_990, 20), (999_999, 1), (0, 8192), (0, 20_000)])
def test_our_own_names_are_read_by_columns(first, count):
    data = text_of([f"shard-{k:06d}.tar" for k in range(first, first + count)], sort=False)
    assert is_apart(data)
    assert plain(parse_manifest(data)) == orjson.loads(data)


BASE_LISTED = text_of([f"shard-{k:06d}.tar" for k in range(5)])
BASE = text_of([f"shard-{k:06d}.tar" for k in range(4)] + ["x.tar"])


@given(st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=8))
def test_whatever_is_garbled_the_outcome_is_the_ordinary_one(at, garbage):
    data = BASE[:at] + garbage + BASE[at + len(garbage) :]
    assert outcome(data) == ordinary_outcome(data)


@given(st.integers(0, len(BASE) - 1), st.integers(0, len(BASE) - 1), st.integers(0, 60))
def test_whatever_is_moved_the_outcome_is_the_ordinary_one(source, target, length):
    """Parts of the text in other places: columns twice, in other objects, of other lengths."""
    part = BASE[source : source + length]
    for data in (BASE[:target] + part + BASE[target:], BASE[:source] + BASE[source + length :]):
        assert outcome(data) == ordinary_outcome(data)


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["shards"]["file"].__setitem__(1, "shard-000000.tar"),
        lambda v: v["shards"]["file"].append("z.tar"),
        lambda v: v["shards"]["xxh3_128"].__setitem__(0, HEX.upper()),
        lambda v: v["shards"]["xxh3_128"].__setitem__(0, HEX[:-1] + "g"),
        lambda v: v["shards"]["index_xxh3_128"].pop(),
        lambda v: v["shards"]["index_xxh3_128"].__setitem__(0, 5),
        lambda v: v["shards"]["samples"].__setitem__(0, True),
        lambda v: v["shards"]["samples"].__setitem__(0, 2**63),
        lambda v: v["shards"]["samples"].__setitem__(0, -1),
        lambda v: v["shards"]["samples"].__setitem__(0, 1.0),
        lambda v: v["shards"]["bytes"].__setitem__(slice(2), [2**62, 2**62]),
        lambda v: v["shards"]["bytes"].pop(),
        lambda v: v["shards"].__setitem__("xxh3_128", v["shards"]["xxh3_128"][:2]),
    ],
)
def test_what_is_wrong_is_said_as_ever(change):
    value = orjson.loads(BASE)
    change(value)
    data = orjson.dumps(value)
    assert outcome(data) == ordinary_outcome(data)
    assert "is malformed: shards" in outcome(data)


@pytest.mark.parametrize(
    "number", ["01", "-1", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "", "1,", "9" * 19, "true", "[1]"]
)
def test_numbers_are_those_of_json(number):
    data = BASE.replace(b'"samples":[0,1,', b'"samples":[0,%s,' % number.encode())
    assert data != BASE
    assert outcome(data) == ordinary_outcome(data)


@pytest.mark.parametrize("at", [0, 8191, 8192, 8193, 16_383])
def test_order_and_frames_are_checked_across_parts(at):
    """Rows are looked at by thousands; what is wrong between two parts is no less wrong."""
    names = [f"shard-{k:06d}.tar" for k in range(16_400)]
    names[at], names[at + 1] = names[at + 1], names[at]
    data = text_of(names, sort=False)
    assert plain(parse_manifest(data)) == orjson.loads(data)
    for old, new in ((b'"%s",' % names[at].encode(), b'"%s" ' % names[at].encode()), (names[at + 1], names[at])):
        if isinstance(old, str):
            old, new = old.encode(), new.encode()
        garbled = data.replace(old, new)
        assert outcome(garbled) == ordinary_outcome(garbled)
        assert "is not valid JSON" in outcome(garbled) or "must name every shard once" in outcome(garbled)


def test_columns_of_another_object_are_not_taken(tmp_path):
    """The text of the columns, but as a field's; the real ones come later."""
    shards = BASE[BASE.index(b'"shards":') : -2]
    data = BASE.replace(b'"fields":{', b'"fields":{' + shards + b",")
    assert outcome(data) == ordinary_outcome(data)


def test_another_layout_is_read_all_the_same():
    value = orjson.loads(BASE)
    for data in (orjson.dumps(value, option=orjson.OPT_INDENT_2), orjson.dumps(value, option=orjson.OPT_SORT_KEYS)):
        assert not is_apart(data)
        assert outcome(data) == outcome(BASE)


@pytest.mark.parametrize("is_long", [False, True])
def test_checksums_of_many_shards_are_one_string(monkeypatch, is_long):
    """Of a million shards that is shorter and quicker to read; both ways read the same."""
    monkeypatch.setattr(Digests, "MAX_LISTED", 4 if is_long else 5)
    names = [f"shard-{k:06d}.tar" for k in range(5)]
    data = text_of(names)
    assert isinstance(orjson.loads(data)["shards"]["xxh3_128"], str if is_long else list)
    assert Manifest.parse(data, "m") == Manifest.parse(text_of(names), "m")
    assert [Manifest.parse(data, "m").shards.row(k) for k in range(5)] == [
        Manifest.parse(BASE_LISTED, "m").shards.row(k) for k in range(5)
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-1], "must have one entry a shard: 5 shards, 4 entries"),
        (lambda text: text + "00" * 16, "must have one entry a shard: 5 shards, 6 entries"),
        (lambda text: text + "0", "must be 32 lower-case hex digits a shard"),
        (lambda text: text.upper(), "must be 32 lower-case hex digits a shard"),
        (lambda text: text[:-1] + "g", "must be 32 lower-case hex digits a shard"),
        (lambda text: text[:-1] + "é", "must be 32 lower-case hex digits a shard"),
    ],
)
def test_a_string_of_checksums_that_is_wrong_is_said(change, reason):
    value = orjson.loads(BASE_LISTED)
    value["shards"]["xxh3_128"] = change("ab" * 16 * 5)
    with pytest.raises(ManifestError, match=reason):
        Manifest.parse(orjson.dumps(value), "m")
