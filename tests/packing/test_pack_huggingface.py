"""Hugging Face datasets as sources, by the real library: objects, streams and saved folders."""

import subprocess
import sys

import numpy as np
import pytest

import headrace as hr
from headrace.errors import DatasetError, OptionError, SourceError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The library keeps what it makes in the test's own folder, and asks no hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def labelled(pngs):
    """Images with class labels."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "eel"]),
            "note": datasets.Value("string"),
        }
    )
    rows = [{"image": {"bytes": data, "path": None}, "label": i % 3, "note": f"n{i}"} for i, data in enumerate(pngs)]
    return datasets.Dataset.from_list(rows, features=features)


def samples_of(url):
    return [
        {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}
        for sample in hr.open(url)
    ]


def check_labelled(manifest, target, pngs):
    assert manifest.classes == ("cat", "dog", "eel")
    assert manifest.fields["image.png"].image_size == (8, 8)
    samples = sorted(samples_of(target), key=lambda sample: sample["__key__"])
    assert [sample["image.png"] for sample in samples] == pngs
    assert [int(sample["cls"]) for sample in samples] == [i % 3 for i in range(60)]
    assert [sample["note"] for sample in samples] == [b"n%d" % i for i in range(60)]


def test_a_dataset_is_packed_without_decoding_its_images(labelled, tmp_path, pngs):
    check_labelled(hr.pack(labelled, tmp_path / "out"), tmp_path / "out", pngs)


def test_a_streamed_dataset_gives_the_same(labelled, tmp_path, pngs, content):
    hr.pack(labelled, tmp_path / "a")
    check_labelled(hr.pack(labelled.to_iterable_dataset(num_shards=3), tmp_path / "b"), tmp_path / "b", pngs)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_saved_folder_gives_the_same(labelled, tmp_path, pngs, content):
    labelled.save_to_disk(str(tmp_path / "saved"))
    hr.pack(labelled, tmp_path / "a")
    hr.pack(tmp_path / "saved", tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_other_formats_keep_the_columns_names(labelled, tmp_path, pngs):
    manifest = hr.pack(labelled, tmp_path / "out", format="parquet")
    assert set(manifest.fields) == {"image", "cls", "note"}
    assert manifest.fields["image"].type == "image"
    with hr.Loader(hr.Stream(hr.open(tmp_path / "out")).decode(color="gray"), batch_size=60) as loader:
        (batch,) = loader
    assert batch["image"].shape == (60, 8, 8, 1)


def test_images_that_are_only_named_are_read_from_their_paths(images, tmp_path, pngs):
    dataset = datasets.load_dataset(
        "imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path / "cache")
    )
    for number, source in enumerate((dataset, dataset.to_iterable_dataset())):
        manifest = hr.pack(source, tmp_path / f"out{number}")
        assert manifest.classes == ("cat", "dog", "eel")
        assert sorted(sample["image.png"] for sample in samples_of(tmp_path / f"out{number}")) == sorted(pngs)


def test_values_come_as_python_values_whatever_format_was_set(tmp_path):
    rows = [{"__key__": f"k{i}", "x": [i, i + 1], "name": f"name {i}", "score": i / 4} for i in range(20)]
    dataset = datasets.Dataset.from_list(rows).with_format("numpy")
    hr.pack(dataset, tmp_path / "out", format="parquet", shuffle=False)
    sample = hr.open(tmp_path / "out")[3]
    assert (sample["__key__"], np.asarray(sample["x"]).tolist(), sample["name"]) == ("k3", [3, 4], "name 3")
    assert sample["score"] == 0.75


def test_a_transform_gets_the_rows(labelled, tmp_path):
    manifest = hr.pack(
        labelled, tmp_path / "out", transform=lambda sample: {"txt": sample["note"], "n": len(sample["image.png"])}
    )
    assert manifest.samples == 60


def test_several_labels_keep_their_names(tmp_path):
    label = datasets.ClassLabel(names=["a", "b"])
    dataset = datasets.Dataset.from_list([{"x": 0, "y": 1}], features=datasets.Features({"x": label, "y": label}))
    manifest = hr.pack(dataset, tmp_path / "out")
    assert (manifest.classes, set(manifest.fields)) == (None, {"x", "y"})


def test_parquet_files_of_the_library_have_the_classes_that_packing_its_datasets_gives(labelled, tmp_path):
    """Opened, indexed and packed; the field keeps its name, and the manifest says which one it is."""
    expected = hr.pack(labelled, tmp_path / "object").classes
    (tmp_path / "files").mkdir()
    for k in range(2):
        labelled.to_parquet(tmp_path / "files" / f"part-{k}.parquet")
    opened = hr.open(tmp_path / "files")
    assert opened[1]["label"] == 1
    hr.pack(opened, tmp_path / "packed", format="parquet")
    hr.pack(tmp_path / "packed", tmp_path / "again")
    hr.index(tmp_path / "files")
    manifests = [opened.manifest, *(hr.open(tmp_path / name).manifest for name in ("files", "packed", "again"))]
    assert [(one.classes, one.class_field) for one in manifests] == [(expected, "label")] * 4
    without = hr.pack(hr.open(tmp_path / "files", fields=["note"]), tmp_path / "notes")
    assert (without.classes, set(without.fields)) == (None, {"note"})


@pytest.mark.parametrize(
    ("labels", "others", "classes", "field"),
    [
        (["cls"], [], ("a", "b"), "cls"),
        (["x"], ["n"], ("a", "b"), "x"),
        (["x", "y"], [], None, "cls"),
        (["x"], ["cls"], None, "cls"),
        ([], ["n"], None, "cls"),
    ],
)
def test_classes_are_those_of_the_only_class_field_if_no_other_is_called_cls(tmp_path, labels, others, classes, field):
    features = dict.fromkeys(labels, datasets.ClassLabel(names=["a", "b"]))
    features |= dict.fromkeys(others, datasets.Value("int64"))
    dataset = datasets.Dataset.from_list([dict.fromkeys(features, 1)] * 4, features=datasets.Features(features))
    dataset.to_parquet(tmp_path / "rows.parquet")
    manifest = hr.open(tmp_path / "rows.parquet").manifest
    assert (manifest.classes, manifest.class_field) == (classes, field)
    assert hr.pack(dataset, tmp_path / "object").classes == classes


def test_files_that_number_classes_in_other_ways_are_refused(tmp_path):
    for name, names in {"one": ["cat", "dog"], "two": ["dog", "cat"]}.items():
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_list([{"label": 0}], features=features).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DatasetError, match=r"in two\.parquet those of 'label' are dog, cat, in others cat, dog; put"):
        hr.open(tmp_path)
    assert hr.open(tmp_path / "two.parquet").manifest.classes == ("dog", "cat")


def test_classes_of_another_field_are_not_appended(labelled, tmp_path):
    labelled.to_parquet(tmp_path / "rows.parquet")
    hr.pack(labelled.select(range(30)), tmp_path / "out", format="parquet")
    with pytest.raises(SourceError, match=r"has classes in the field 'label', .* appended to in 'cls': rename"):
        hr.pack(tmp_path / "rows.parquet", tmp_path / "out", format="parquet", append=True)
    hr.pack(tmp_path / "rows.parquet", tmp_path / "rows", format="parquet")
    unnamed = [{"__key__": "new", "label": 2, "note": "n", "image": b"no image"}]
    manifest = hr.pack(unnamed, tmp_path / "rows", format="parquet", append=True)
    assert (manifest.classes, manifest.class_field) == (("cat", "dog", "eel"), "label")


@pytest.mark.parametrize("make", [datasets.DatasetDict, datasets.IterableDatasetDict])
def test_a_part_has_to_be_chosen(labelled, tmp_path, make):
    parts = make({"train": labelled, "test": labelled})
    with pytest.raises(OptionError, match=r"has the parts train, test: give one of them, such as dataset\['train'\]"):
        hr.pack(parts, tmp_path / "out")


def test_a_part_of_a_saved_folder_has_to_be_chosen(labelled, tmp_path):
    datasets.DatasetDict({"train": labelled}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(OptionError, match="has the parts train"):
        hr.pack(tmp_path / "saved", tmp_path / "out")
    assert hr.pack(tmp_path / "saved" / "train", tmp_path / "out").samples == 60


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_misspelt_field_is_said_before_any_work(labelled, tmp_path, is_streamed):
    """Fields have the names that they will have in samples: an image by its extension, which its content decides."""
    source = labelled.to_iterable_dataset() if is_streamed else labelled
    with pytest.raises(OptionError, match=r"has no field 'image', which .* names: did you mean 'image\.\*'\?"):
        hr.pack(source, tmp_path / "out", require=["image"])
    assert hr.pack(source, tmp_path / "out", require=["image.png", "cls"]).samples > 0


def test_what_cannot_be_had_is_said(labelled, tmp_path):
    gone = [
        {"image": {"bytes": None, "path": str(tmp_path / "gone.png")}},
        {"image": {"bytes": None, "path": "hf://x/y.png"}},
    ]
    for row, reason in zip(
        gone, ("names a file that cannot be read", "names no file on this disk but 'hf://x/y.png'"), strict=True
    ):
        dataset = datasets.Dataset.from_list([row], features=datasets.Features({"image": datasets.Image()}))
        with pytest.raises(SourceError, match=reason):
            hr.pack(dataset, tmp_path / "out")
    several = datasets.Features({"images": [datasets.Image()]})
    with pytest.raises(OptionError, match="holds several images or sounds a row"):
        hr.pack(datasets.Dataset.from_list([{"images": []}], features=several), tmp_path / "out")
    (tmp_path / "saved").mkdir()
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "saved" / name).write_text("{}")
    with pytest.raises(SourceError, match="is no dataset that save_to_disk made"):
        hr.pack(tmp_path / "saved", tmp_path / "out")


def test_the_library_is_not_imported_for_other_sources(tmp_path):
    code = "import sys, headrace as hr; hr.pack([{'txt': 'a'}], sys.argv[1]); sys.exit('datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=True)
