"""Appending: shards of new numbers and the next revision; what was there stays, for whoever has it open too."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import Stop, count_steps

import headrace as hr
from headrace.errors import OptionError, SourceError, TargetError, TransformError


def samples(first, last):
    return [{"__key__": f"k{i:03d}", "txt": f"text {i} " * 40, "cls": i % 3} for i in range(first, last)]


def keys(url):
    return [sample["__key__"] for sample in hr.open(url)]


@pytest.fixture
def packed(tmp_path):
    """100 samples in several shards."""
    hr.pack(samples(0, 100), tmp_path / "out", shard_size=20_000)
    return tmp_path / "out"


def append(target, first=100, last=140, **options):
    return hr.pack(samples(first, last), target, **{"shard_size": 20_000, "append": True, **options})


def test_what_was_there_stays_and_the_new_comes_behind(packed, content):
    before, old_keys = content(packed), keys(packed)
    manifest = append(packed)
    after = content(packed)
    assert {name: after[name] for name in before if "shard" in name} == {
        name: data for name, data in before.items() if "shard" in name
    }
    assert (manifest.revision, manifest.samples) == (2, 140)
    assert [*manifest.shards.file] == [f"shard-{k:06d}.tar" for k in range(len(manifest.shards))]
    assert keys(packed)[:100] == old_keys
    assert sorted(keys(packed)) == [f"k{i:03d}" for i in range(140)]
    assert hr.open(packed).verify() == []
    assert append(packed, 140, 150).revision == 3
    assert hr.open(packed).lookup("k145")["__key__"] == "k145"


def test_whoever_has_the_old_revision_open_goes_on(packed):
    """Samples by number, by key and in a stream, where nothing was read before the append and where something was."""
    fresh, used = hr.open(packed), hr.open(packed)
    assert used.lookup("k007")["__key__"] == "k007"
    append(packed)
    for ds in (fresh, used):
        assert len(ds) == 100
        assert [ds.lookup(f"k{i:03d}")["__key__"] for i in range(100)] == [f"k{i:03d}" for i in range(100)]
        with pytest.raises(KeyError):
            ds.lookup("k120")
        with hr.Loader(hr.Stream(ds), batch_size=10) as loader:
            assert sorted(key for batch in loader for key in batch["__key__"]) == [f"k{i:03d}" for i in range(100)]


def test_where_nothing_is_there_it_is_made_and_that_is_said(tmp_path, content, caplog):
    """The first run of a periodic job; the next ones have nothing to say."""
    for _ in range(2):
        assert append(tmp_path / "out", 0, 100).revision == 1
    assert caplog.messages == [f"there is nothing to append to yet, so it is made: {tmp_path / 'out'}"]
    hr.pack(samples(0, 100), tmp_path / "plain", shard_size=20_000)
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert append(tmp_path / "out").revision == 2


def test_appending_the_same_again_does_nothing(packed):
    first = append(packed)
    stamp = packed.stat().st_mtime_ns
    assert append(packed) == first
    assert append(packed, workers=1) == first
    assert packed.stat().st_mtime_ns == stamp
    assert append(packed, 0, 100) == first  # the same as the first pack
    with pytest.raises(TargetError, match="another source or options"):
        hr.pack(samples(0, 100), packed, shard_size=20_000)


def test_a_key_that_is_there_is_named_and_nothing_is_changed(packed, content):
    before = content(packed)
    with pytest.raises(SourceError, match="the key k090 is in the dataset already: append samples of other keys"):
        append(packed, 90, 140)
    assert content(packed) == before


def test_of_a_source_that_has_grown_only_the_new_is_appended_with_skip(packed):
    manifest = append(packed, 0, 140, on_error="skip")
    assert (manifest.samples, manifest.revision, manifest.skipped) == (140, 2, 100)
    lines = (packed / "headrace.skipped.jsonl").read_bytes().splitlines()
    assert len({orjson.loads(line)["key"] for line in lines}) == 100
    assert sorted(keys(packed)) == [f"k{i:03d}" for i in range(140)]
    assert append(packed, 0, 139, on_error="skip") == manifest  # there is nothing new in it


def test_a_key_that_a_transform_makes_must_be_new_too(packed, content):
    before = content(packed)
    with pytest.raises((SourceError, TransformError), match="the key k005 is there twice"):
        append(packed, transform=lambda sample: {**sample, "__key__": "k005"})
    assert {name: data for name, data in content(packed).items() if "headrace.new" not in name} == before


def test_appending_to_nothing_is_packing(tmp_path, content):
    first = append(tmp_path / "a")
    hr.pack(samples(100, 140), tmp_path / "b", shard_size=20_000)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert append(tmp_path / "b") == first


def test_appended_classes_keep_the_numbers_in_use(images, tmp_path, make_png):
    hr.pack(images, tmp_path / "out")
    more = tmp_path / "more"
    for name in ("ant", "cat", "fox"):
        (more / name).mkdir(parents=True)
        (more / name / "new.png").write_bytes(make_png(7))
    manifest = hr.pack(more, tmp_path / "out", append=True)
    assert manifest.classes == ("cat", "dog", "eel", "ant", "fox")
    ds = hr.open(tmp_path / "out")
    numbers = {name: int(bytes(ds.lookup(f"{name}/new")["cls"])) for name in ("ant", "cat", "fox")}
    assert numbers == {"ant": 3, "cat": 0, "fox": 4}


def test_a_dataset_whose_class_numbers_mean_something_else_is_refused(images, tmp_path, make_png):
    hr.pack(images, tmp_path / "out")
    (tmp_path / "other" / "ant").mkdir(parents=True)
    (tmp_path / "other" / "ant" / "a.png").write_bytes(make_png(7))
    hr.pack(tmp_path / "other", tmp_path / "packed")
    with pytest.raises(SourceError, match="the same numbers would mean different classes"):
        hr.pack(hr.open(tmp_path / "packed"), tmp_path / "out", append=True)


def test_a_split_is_appended_to_part_by_part(tmp_path):
    split = {"a": 0.7, "b": 0.3}
    hr.pack(samples(0, 100), tmp_path / "out", split=split)
    manifests = hr.pack(samples(100, 130), tmp_path / "out", split=split, append=True)
    whole = hr.pack(samples(0, 130), tmp_path / "whole", split=split)
    for name in split:
        assert manifests[name].samples == whole[name].samples
        assert set(keys(tmp_path / "out" / name)) == set(keys(tmp_path / "whole" / name))


def test_what_other_readers_need_is_renewed(tmp_path):
    hr.pack(samples(0, 100), tmp_path / "out", format="mds", shard_size=20_000)
    manifest = append(tmp_path / "out", format="mds")
    listed = orjson.loads((tmp_path / "out" / "index.json").read_bytes())
    assert [row["raw_data"]["basename"] for row in listed["shards"]] == [*manifest.shards.file]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "parquet"}, "holds a dataset of the format tar"),
        ({"overwrite": True}, "append adds to what is there and overwrite replaces it"),
    ],
)
def test_what_does_not_fit_is_refused(packed, content, options, reason):
    before = content(packed)
    with pytest.raises((TargetError, OptionError), match=reason):
        append(packed, **options)
    assert content(packed) == before


def test_a_dataset_that_was_only_indexed_is_not_appended_to(packed):
    for path in packed.glob("*[xn]"):
        path.unlink()
    (packed / "headrace.keys").unlink()
    hr.index(packed)
    with pytest.raises(TargetError, match="holds shards that headrace did not write"):
        append(packed)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_an_interruption_while_appending_leaves_the_old_or_the_new(tmp_path_factory, content, stop_at):
    """Whatever step it stops at: the old revision opens, or the new one, whole; and run again it ends the same."""
    folder = tmp_path_factory.mktemp("append")
    for name in ("whole", "counted", "cut"):
        hr.pack(samples(0, 30), folder / name, shard_size=10_000)
    append(folder / "whole", 30, 60, shard_size=10_000)
    with pytest.MonkeyPatch.context() as patch:
        num_steps = len(count_steps(patch, None, lambda: append(folder / "counted", 30, 60, shard_size=10_000)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        count_steps(patch, stop_at % num_steps, lambda: append(folder / "cut", 30, 60, shard_size=10_000))
    now = keys(folder / "cut")
    assert now in (keys(folder / "whole"), keys(folder / "whole")[:30])
    append(folder / "cut", 30, 60, shard_size=10_000)
    assert content(folder / "cut") == content(folder / "whole")
