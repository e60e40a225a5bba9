"""A folder of files opened as it is: the samples that packing it would give, and the same laws."""

import pickle

import pytest

import headrace as hr
from headrace.dataset import folder as folder_module
from headrace.errors import DatasetError


@pytest.fixture
def photos(tmp_path):
    for i in range(20):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo %d" % i)
        path.with_suffix(".seg.txt").write_bytes(b"mask %d" % i)
    return tmp_path / "photos"


def contents(dataset):
    return {one["__key__"]: {name: bytes(value) for name, value in one.items() if name[0] != "_"} for one in dataset}


def test_it_holds_what_packing_it_would(photos, tmp_path):
    ds = hr.open(photos)
    hr.pack(photos, tmp_path / "packed")
    packed = hr.open(tmp_path / "packed")
    assert contents(ds) == contents(packed)
    assert ds.schema == packed.schema
    assert ds.manifest.classes == ("cat", "dog")
    assert [one["__key__"] for one in ds] == sorted(contents(packed))
    assert ds.verify() == []
    assert bytes(pickle.loads(pickle.dumps(ds)).lookup("dog/07")["seg.txt"]) == b"mask 7"


def test_it_streams_and_damage_is_not_silent(photos):
    stream = hr.Stream(hr.open(photos), partitions=2).decode()
    with hr.Loader(stream, batch_size=5, rank=0, world_size=1) as loader:
        assert len({key for batch in loader for key in batch["__key__"]}) == 20
    (photos / "cat" / "04.txt").write_bytes(b"photo !")
    with (
        hr.Loader(stream, batch_size=5, rank=0, world_size=1) as loader,
        pytest.raises(DatasetError, match="cat/04"),
    ):
        for _ in loader:
            pass


def test_large_broken_and_empty_folders_are_refused(photos, monkeypatch, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README").write_text("x")
    with pytest.raises(DatasetError, match="found README: pack it first"):
        hr.open(tmp_path / "bare")
    (photos / "cat" / "x.txt").touch()
    with pytest.raises(DatasetError, match=r"x\.txt is empty \(0 bytes\)"):
        hr.open(photos)
    (photos / "cat" / "x.txt").unlink()
    monkeypatch.setattr(folder_module, "MOST_SAMPLES", 39)
    with pytest.raises(DatasetError, match=r"a folder of 40 files with .* pack it first"):
        hr.open(photos)
