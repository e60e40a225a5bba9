"""Targets: what may be written over, who may write, and what a disk that refuses leaves behind."""

import contextlib
import os
import subprocess
import sys

import pytest

import headrace as hr
from headrace.errors import DatasetError, StorageError, TargetError, TransformError
from waiting import running, wait_for


def test_packing_again_does_nothing(images, tmp_path, content):
    first = hr.pack(images, tmp_path / "out")
    stamp = (tmp_path / "out").stat().st_mtime_ns
    assert hr.pack(str(images), tmp_path / "out", workers=3) == first
    assert (tmp_path / "out").stat().st_mtime_ns == stamp


def test_packing_the_same_iterable_again_does_nothing(tmp_path):
    first = hr.pack(({"txt": str(i)} for i in range(9)), tmp_path / "out")
    stamp = (tmp_path / "out" / "headrace.json").stat().st_mtime_ns
    assert hr.pack(({"txt": str(i)} for i in range(9)), tmp_path / "out") == first
    assert (tmp_path / "out" / "headrace.json").stat().st_mtime_ns == stamp
    with pytest.raises(TargetError, match="of another source or options"):
        hr.pack(({"txt": str(i)} for i in range(10)), tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"shard_size": "1MiB"}, {"shuffle": False}, {"transform": lambda s: s}]
)
def test_other_options_are_refused_and_say_overwrite(images, tmp_path, content, options):
    hr.pack(images, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(TargetError, match=r"already holds a dataset of another source or options: pass overwrite=True"):
        hr.pack(images, tmp_path / "out", **options)
    assert content(tmp_path / "out") == before
    hr.pack(images, tmp_path / "out", overwrite=True, **options)
    assert hr.open(tmp_path / "out").verify() == []


def test_a_changed_source_is_another_source(images, tmp_path, make_png):
    hr.pack(images, tmp_path / "out")
    (images / "cat" / "new.png").write_bytes(make_png(99))
    with pytest.raises(TargetError, match="another source"):
        hr.pack(images, tmp_path / "out")


def test_a_transform_is_recognised_by_its_code(images, tmp_path):
    def make(suffix):
        return lambda sample: {**sample, "note": suffix}

    first = hr.pack(images, tmp_path / "out", transform=make("a"))
    assert hr.pack(images, tmp_path / "out", transform=make("a")) == first
    with pytest.raises(TargetError, match="another source or options"):
        hr.pack(images, tmp_path / "out", transform=make("b"))


def test_a_dataset_with_skipped_samples_is_not_what_raise_asks_for(images, tmp_path):
    (images / "cat" / "bad.png").write_bytes(b"")
    hr.pack(images, tmp_path / "out", on_error="skip")
    with pytest.raises(TargetError, match="another source or options"):
        hr.pack(images, tmp_path / "out")


def test_overwriting_leaves_nothing_of_the_old_and_everything_of_others(images, tmp_path):
    hr.pack(images, tmp_path / "out", shard_size=8000)
    (tmp_path / "out" / "NOTES").write_text("mine")
    manifest = hr.pack(images, tmp_path / "out", overwrite=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["NOTES", "headrace.json", "headrace.keys", "shard-000000.tar", "shard-000000.tar.idx"]
    assert len(manifest.shards) == 1


def test_overwriting_with_the_same_repairs_what_was_damaged(images, tmp_path, content):
    hr.pack(images, tmp_path / "out", shard_size=8000)
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "shard-000000.tar").write_bytes(b"damaged")
    hr.pack(images, tmp_path / "out", shard_size=8000, overwrite=True)
    assert content(tmp_path / "out") == whole


def test_overwriting_spares_shards_that_are_not_ours(images, tmp_path):
    hr.pack(images, tmp_path / "out")
    (tmp_path / "out" / "shard-000007.tar").write_bytes(b"mine")
    with pytest.raises(TargetError, match=r"holds shard-000007\.tar, which is not in its manifest"):
        hr.pack(images, tmp_path / "out", overwrite=True, seed=1)
    assert (tmp_path / "out" / "shard-000007.tar").read_bytes() == b"mine"


def test_a_dataset_that_was_only_indexed_is_never_replaced(images, tmp_path, content):
    hr.pack(images, tmp_path / "out")
    for path in (tmp_path / "out").glob("*[xn]"):
        path.unlink()
    hr.index(tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(TargetError, match="holds shards that headrace did not write"):
        hr.pack(images, tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_refused(images, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("precious")
    with pytest.raises(TargetError, match=r"holds other things \(thesis\.doc\): give an empty folder"):
        hr.pack(images, tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.doc"]


def test_an_iterable_is_not_begun_for_a_target_that_is_refused(tmp_path):
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "thesis.doc").write_text("precious")

    def samples():
        raise AssertionError("begun")
        yield {}

    with pytest.raises(TargetError, match="holds other things"):
        hr.pack(samples(), tmp_path / "out", split={"a": 0.5, "b": 0.5})


def test_parts_of_a_split_do_not_lie_in_a_dataset(images, tmp_path, content):
    hr.pack(images, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(TargetError, match="out is a dataset itself: give another folder"):
        hr.pack(images, tmp_path / "out", split={"a": 0.5, "b": 0.5})
    assert content(tmp_path / "out") == before


def test_a_file_as_target_is_refused(images, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(TargetError, match="is a file"):
        hr.pack(images, tmp_path / "out")


def test_an_empty_folder_is_a_fine_target(images, tmp_path):
    (tmp_path / "out").mkdir()
    assert hr.pack(images, tmp_path / "out").samples == 60


SLOW = """
import sys, time
import headrace as hr
hr.pack(sys.argv[1], sys.argv[2], transform=lambda sample: time.sleep(600), workers=1)
"""


def test_a_second_pack_into_one_target_is_refused_while_the_first_lives(images, tmp_path):
    """The lock goes with the process: after kill -9 the target is free again."""
    with running([sys.executable, "-c", SLOW, images, tmp_path / "out"]) as process:
        marker = tmp_path / "out" / "headrace.partial"
        wait_for(lambda: process.poll() is not None or (marker.exists() and marker.stat().st_size), "the marker")
        with pytest.raises(TargetError, match="another pack is writing into"):
            hr.pack(images, tmp_path / "out")
    assert hr.pack(images, tmp_path / "out").samples == 60


def fails_late(sample):
    """A transform for class folders of 60 images: the last one that is packed is no good."""
    if sample["__key__"] == os.environ["TEST_LAST_KEY"]:
        raise ValueError("no good")
    return sample


def test_what_is_replaced_stays_until_the_new_is_whole(images, tmp_path, content, monkeypatch):
    """A pack that fails, and then one that goes on, leave the old dataset as it was up to the last moment."""
    hr.pack(images, tmp_path / "out")
    before = content(tmp_path / "out")
    hr.pack(images, tmp_path / "new", seed=1, shard_size=8000)
    monkeypatch.setenv("TEST_LAST_KEY", hr.open(tmp_path / "new")[-1]["__key__"])
    with pytest.raises(TransformError, match="no good"):
        hr.pack(images, tmp_path / "out", seed=1, shard_size=8000, transform=fails_late, overwrite=True)
    now = content(tmp_path / "out")
    assert {name: data for name, data in now.items() if not name.startswith("headrace.new/")} == before
    assert "headrace.new/shard-000000.tar" in now
    assert hr.open(tmp_path / "out").verify() == []
    monkeypatch.setenv("TEST_LAST_KEY", "")
    hr.pack(images, tmp_path / "out", seed=1, shard_size=8000, transform=fails_late, overwrite=True)
    now = content(tmp_path / "out")
    assert not any(name.startswith("headrace.new") for name in now)
    assert {name: data for name, data in now.items() if "shard" in name} == {
        name: data for name, data in content(tmp_path / "new").items() if "shard" in name
    }


def after(look, act):
    """The function `act`, with a look before it."""

    def step(*args, **options):
        look()
        return act(*args, **options)

    return step


def test_parts_of_a_split_are_replaced_together(images, tmp_path, monkeypatch):
    """Old test samples must never meet new training samples: at no step do an old and a new part both open."""
    hr.pack(images, tmp_path / "out", split={"a": 0.5, "b": 0.5})
    old = {name: hr.open(tmp_path / "out" / name).fingerprint for name in "ab"}
    seen = set()

    def look():
        opened = set()
        for name in "ab":
            with contextlib.suppress(DatasetError):
                opened.add(hr.open(tmp_path / "out" / name).fingerprint == old[name])
        seen.add(frozenset(opened))

    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, after(look, getattr(os, name)))
    hr.pack(images, tmp_path / "out", split={"a": 0.9, "b": 0.1}, overwrite=True)
    assert seen == {frozenset({True}), frozenset(), frozenset({False})}
    assert hr.open(tmp_path / "out" / "b").verify() == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="/sys is asked as root")
def test_a_place_that_may_not_be_written_is_one_line(images):
    with pytest.raises(StorageError, match=r"cannot write a temporary file in /sys: .*; change its permissions"):
        hr.pack(images, "/sys/headrace")


def test_a_target_below_a_file_is_one_line(images, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot make the folder .*file/out: Not a directory"):
        hr.pack(images, tmp_path / "file" / "out")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs may not be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("as_iterable", [False, True])
def test_a_full_disk_is_one_line_and_with_room_the_pack_goes_on(small_disk, tmp_path, pngs, content, as_iterable):
    source = [{"__key__": f"{i:03d}", "png": data, "bin": bytes(6000)} for i, data in enumerate(pngs)]
    if not as_iterable:
        hr.pack(source, tmp_path / "source")
        source = tmp_path / "source"
    hr.pack(source, tmp_path / "whole", shard_size=50_000)
    with pytest.raises(
        StorageError, match=r"No space left on device \([\d,]+ bytes free\); make room and run"
    ) as caught:
        hr.pack(source, small_disk / "out", shard_size=50_000)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError):
        hr.open(small_disk / "out")
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    hr.pack(source, small_disk / "out", shard_size=50_000)
    assert content(small_disk / "out") == content(tmp_path / "whole")


def test_a_dataset_is_not_split_onto_itself(images, tmp_path, content):
    hr.pack(images, tmp_path / "data" / "train")
    before = content(tmp_path / "data")
    with pytest.raises(TargetError, match="lies inside the source"):
        hr.pack(tmp_path / "data" / "train", tmp_path / "data", split={"train": 0.5, "val": 0.5}, overwrite=True)
    assert content(tmp_path / "data") == before


def test_a_disk_that_refuses_the_first_byte_leaves_no_trace(images, tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        hr.pack(images, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
