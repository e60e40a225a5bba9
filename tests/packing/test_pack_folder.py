"""Folders of files: what becomes a sample, classes, order, splits, and that it is the same every time."""

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import OptionError, SourceError


def read(url):
    return {
        sample["__key__"]: {name: bytes(value) for name, value in sample.items() if name != "__key__"}
        for sample in hr.open(url)
    }


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_class_folders_become_samples_with_a_class(images, tmp_path, pngs):
    manifest = hr.pack(images, tmp_path / "out", shard_size="20kB")
    assert manifest.classes == ("cat", "dog", "eel")
    assert manifest.samples == 60
    assert len(manifest.shards) > 3
    assert manifest.fields["png"].image_size == (8, 8)
    assert read(tmp_path / "out") == {
        f"{('cat', 'dog', 'eel')[number % 3]}/{number:03d}": {"png": data, "cls": str(number % 3).encode()}
        for number, data in enumerate(pngs)
    }
    assert hr.open(tmp_path / "out").verify() == []


def test_files_of_one_stem_are_one_sample(tmp_path):
    source = write(
        tmp_path / "in",
        {"a.txt": b"1", "a.SEG.json": b"2", "d.v1/b.txt": b"3", "d.v1/deep/c.txt": b"4", "a/x.txt": b"5"},
    )
    manifest = hr.pack(source, tmp_path / "out")
    assert manifest.classes is None
    assert read(tmp_path / "out") == {
        "a": {"txt": b"1", "seg.json": b"2"},
        "d.v1/b": {"txt": b"3"},
        "d.v1/deep/c": {"txt": b"4"},
        "a/x": {"txt": b"5"},
    }


_PARTS = st.text("abcä_-0 ", min_size=1, max_size=8).filter(lambda part: part.strip() == part and part[0] != "_")
_FILES = st.dictionaries(
    st.tuples(st.lists(_PARTS, max_size=2), _PARTS, st.sampled_from(["txt", "bin", "seg.bin"])).map(
        lambda name: "/".join([*(folder + ".d" for folder in name[0]), f"{name[1]}.{name[2]}"])
    ),
    st.binary(min_size=1, max_size=700),
    min_size=1,
    max_size=10,
)


@given(_FILES, st.booleans())
def test_every_file_comes_back_under_its_name(tmp_path_factory, files, shuffle):
    folder = tmp_path_factory.mktemp("folder")
    hr.pack(write(folder / "in", files), folder / "out", shard_size=3000, shuffle=shuffle)
    found = {f"{key}.{name}": data for key, fields in read(folder / "out").items() for name, data in fields.items()}
    found = {name: data for name, data in found.items() if not name.endswith(".cls")}
    assert found == files


def test_the_same_source_gives_the_same_bytes(images, tmp_path, content):
    """On another day, in another place, with other workers: nothing but the samples decides the shards."""
    hr.pack(images, tmp_path / "a", shard_size="20kB", workers=1)
    shutil.copytree(images, tmp_path / "elsewhere", copy_function=shutil.copy2)
    hr.pack(tmp_path / "elsewhere", tmp_path / "b", shard_size="20kB", workers=7)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_shuffling_follows_the_seed(images, tmp_path):
    def keys(name, **options):
        hr.pack(images, tmp_path / name, **options)
        return [sample["__key__"] for sample in hr.open(tmp_path / name)]

    in_order = keys("0", shuffle=False)
    assert in_order == sorted(in_order)
    assert keys("1") != in_order
    assert keys("1") != keys("2", seed=-5)
    assert sorted(keys("2", seed=-5)) == in_order


def test_shards_keep_to_their_size_unless_one_sample_is_larger(tmp_path):
    source = write(tmp_path / "in", {f"{i}.bin": bytes(i * 500) for i in range(1, 20)})
    manifest = hr.pack(source, tmp_path / "out", shard_size=6000)
    for size, samples in zip(manifest.shards.bytes, manifest.shards.samples, strict=True):
        assert size <= 6000 or samples == 1
    assert manifest.samples == 19


def test_a_split_deals_every_sample_once_and_keeps_it_there(images, tmp_path, pngs):
    split = {"train": 0.6, "val": 0.2, "test": 0.2}
    manifests = hr.pack(images, tmp_path / "out", split=split)
    before = {name: set(read(tmp_path / "out" / name)) for name in split}
    assert list(manifests) == list(split)
    assert sum(manifest.samples for manifest in manifests.values()) == 60 == len(set().union(*before.values()))
    write(images, {f"cat/new{i}.png": data for i, data in enumerate(pngs[:30])})
    hr.pack(images, tmp_path / "again", split=split, seed=3)
    for name in split:
        after = set(read(tmp_path / "again" / name))
        assert {key for key in after if "new" not in key} == before[name]


def test_a_split_follows_its_fractions(tmp_path):
    samples = [{"__key__": str(i), "txt": "x"} for i in range(3000)]
    manifests = hr.pack(samples, tmp_path / "out", split={"a": 0.9, "b": 0.1})
    assert 240 < manifests["b"].samples < 360


def test_a_split_that_would_be_empty_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"split 'b' would be empty: none of 2 samples"):
        hr.pack([{"txt": "x"}] * 2, tmp_path / "out", split={"a": 0.999999, "b": 0.000001})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"split": {}},
        {"split": {"a": 0.5, "b": 0.6}},
        {"split": {"a": 1.0, "b": 0.0}},
        {"split": {"../a": 1.0}},
        {"split": {"a": float("nan")}},
        {"format": "zip"},
        {"shard_size": "big"},
        {"shard_size": 0},
        {"workers": 0},
        {"seed": 1.5},
        {"on_error": "ignore"},
        {"transform": "not a function"},
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_made(images, tmp_path, options):
    with pytest.raises(OptionError):
        hr.pack(images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_transform_changes_drops_and_multiplies(tmp_path):
    def transform(sample):
        number = int(sample["txt"])
        if number == 0:
            return None
        if number == 1:
            return {"txt": b"one"}
        return [{**sample, "part": i} for i in range(number)] + [{"__key__": f"own{number}", "txt": b"own"}]

    source = write(tmp_path / "in", {f"{i}.txt": b"%d" % i for i in range(4)})
    hr.pack(source, tmp_path / "out", transform=transform, shuffle=False)
    assert read(tmp_path / "out") == {
        "1": {"txt": b"one"},
        "2/0": {"txt": b"2", "part": b"0"},
        "2/1": {"txt": b"2", "part": b"1"},
        "own2": {"txt": b"own"},
        "3/0": {"txt": b"3", "part": b"0"},
        "3/1": {"txt": b"3", "part": b"1"},
        "3/2": {"txt": b"3", "part": b"2"},
        "own3": {"txt": b"own"},
    }


def test_a_transform_that_drops_everything_leaves_nothing(images, tmp_path):
    with pytest.raises(SourceError, match="nothing is left to pack: of 60 samples 0 are broken and the transform"):
        hr.pack(images, tmp_path / "out", transform=lambda sample: None)
    assert not (tmp_path / "out").exists()


def test_image_sizes_are_noted_only_where_all_agree(images, tmp_path, make_png):
    (images / "cat" / "wide.png").write_bytes(make_png(1, (8, 12)))
    assert hr.pack(images, tmp_path / "out").fields["png"].image_size is None


def test_a_dataset_is_packed_again_into_another_form(images, tmp_path):
    first = hr.pack(images, tmp_path / "first", shuffle=False)
    for number, source in enumerate((tmp_path / "first", hr.open(tmp_path / "first"))):
        target = tmp_path / f"second{number}"
        second = hr.pack(source, target, shard_size="20kB", shuffle=False)
        assert read(target) == read(tmp_path / "first")
        assert (second.classes, second.fields) == (first.classes, first.fields)


def test_a_folder_becomes_tokens_through_a_transform(tmp_path):
    source = write(tmp_path / "in", {"a.txt": b"hello", "b.txt": b"you"})
    manifest = hr.pack(
        source, tmp_path / "out", format="tokens", transform=lambda sample: {"tokens": list(sample["txt"])}
    )
    assert manifest.fields["tokens"].dtype == "uint32"
    assert bytes(hr.open(tmp_path / "out").lookup("b")["tokens"].tolist()) == b"you"


def test_links_to_files_are_followed_and_the_rest_is_passed_over_and_said(images, tmp_path, caplog):
    (images / "cat" / "link.png").symlink_to(images / "dog" / "001.png")
    (images / "cat" / "folder.link").symlink_to(images / "dog")
    (images / "cat" / ".DS_Store").write_bytes(b"x")
    (images / ".git").mkdir()
    (images / ".git" / "config.txt").write_bytes(b"x")
    (images / "cat" / "LICENSE").write_bytes(b"x")
    os.mkfifo(images / "cat" / "pipe.png")
    assert hr.pack(images, tmp_path / "out").samples == 61
    said = caplog.text
    for what in ("1 hidden files", "1 hidden folders", "1 links to folders", "1 pipes", "1 files without an extension"):
        assert what in said


def test_a_stray_file_beside_class_folders_is_said(images, tmp_path, caplog):
    (images / "README.md").write_bytes(b"hello")
    assert hr.pack(images, tmp_path / "out").classes is None
    assert "no classes: README.md lies outside the folders" in caplog.text


def test_an_iterable_may_fill_one_dict_again_and_again(tmp_path):
    def samples():
        sample = {}
        for i in range(300):
            sample["__key__"], sample["txt"] = f"k{i}", str(i)
            yield sample

    hr.pack(samples(), tmp_path / "out", workers=4)
    assert read(tmp_path / "out") == {f"k{i}": {"txt": str(i).encode()} for i in range(300)}


def test_what_lies_beside_the_shards_of_a_source_is_said(images, tmp_path, caplog):
    """A folder of images that holds a tar by chance is packed as that tar."""
    hr.pack(images, tmp_path / "packed")
    assert caplog.text == ""
    shutil.copy(tmp_path / "packed" / "shard-000000.tar", images / "backup.tar")
    hr.pack(images, tmp_path / "out")
    assert "images is packed as a dataset of shards (backup.tar, ...); passed over: cat, dog, eel" in caplog.text


@pytest.mark.parametrize("format_name", ["tar", "tokens", "parquet"])
def test_a_shard_has_only_so_many_samples_however_small(tmp_path, monkeypatch, format_name):
    """So that its index, which is read as a whole, stays small."""
    monkeypatch.setattr("headrace.packing.writing.MOST_SAMPLES", 40)
    samples = [{"__key__": f"{i}", "tokens": [i]} for i in range(100)]
    manifest = hr.pack(samples, tmp_path / "out", format=format_name)
    assert manifest.shards.samples.tolist() == [40, 40, 20]
    assert len(hr.open(tmp_path / "out")[:]) == 100
