"""Packing into stores and out of them: the same bytes as on a disk, resumable, one pack at a time."""

import contextlib
import os
import random
import sys
import time

import pytest
from interrupting import Stop

import headrace as hr
from headrace.errors import DatasetError, HeadraceError, SourceError, StorageError, TargetError
from headrace.packing import remote_workplace, targets
from headrace.storage import list_folder, locate, read_bytes, walk, write_bytes
from waiting import DEADLINE_SEC, running, wait_for


def samples(first=0, last=100):
    return [{"__key__": f"k{i:03d}", "txt": f"text {i} " * 40, "cls": i % 3} for i in range(first, last)]


def content_of(place):
    return {entry.name: read_bytes(place / entry.name) for entry in walk(place)}


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """What waits to be sent lies in the test's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def memory(request):
    return locate(f"memory://{request.node.name}")


@pytest.fixture
def store(memory):
    """An empty place in a store: what holds of one holds of all, as the tests of storage show."""
    return memory


@pytest.fixture(params=["s3_strict", "s3", "azure", "gcs", "webdav", "sftp"])
def other_store(request):
    return request.getfixturevalue(request.param)


def pack(target, first=0, last=100, **options):
    return hr.pack(samples(first, last), target.text, **{"shard_size": 20_000, **options})


def check_same_as_local(place, tmp_path, **options):
    manifest = pack(place, **options)
    pack(locate(tmp_path / "local"), **options)
    expected = content_of(locate(tmp_path / "local"))
    found = content_of(place)
    assert found == expected
    assert len(manifest.shards) > 1
    assert pack(place, **options) == manifest
    assert hr.open(place.text).verify() == []
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("format_name", ["tar", "mds", "parquet"])
def test_a_store_gets_the_bytes_that_a_disk_gets(store, tmp_path, format_name):
    check_same_as_local(store / "out", tmp_path, format=format_name)


@pytest.mark.slow
def test_every_kind_of_store_does(other_store, tmp_path):
    check_same_as_local(other_store / "out", tmp_path)
    assert pack(other_store / "out", 100, 150, append=True).samples == 150
    assert pack(other_store / "out", seed=1, overwrite=True).samples == 100
    assert hr.open((other_store / "out").text).verify() == []


def test_what_is_replaced_stays_until_the_new_is_whole(store, monkeypatch):
    """In a store nothing can be moved, so new shards are numbered on, and the old ones go last."""
    place = store / "out"
    old = pack(place)
    uploads = []

    def upload(path, target):
        uploads.append(target.name)
        assert hr.open(place.text).manifest == old
        if len(uploads) > 6:
            raise Stop
        real_upload(path, target)

    real_upload = remote_workplace.upload
    with monkeypatch.context() as patch:
        patch.setattr(remote_workplace, "upload", upload)
        with pytest.raises(Stop):
            pack(place, seed=1, overwrite=True)
    assert hr.open(place.text).verify()[:1] != []  # what is half-done is named, but nothing is damaged
    assert len(list(hr.open(place.text))) == 100
    manifest = pack(place, seed=1, overwrite=True)
    names = {entry.name for entry in list_folder(place)}
    assert names == {
        "headrace.json",
        "headrace.keys",
        *(n for file in manifest.shards.file for n in (file, file + ".idx")),
    }
    assert not names & {*old.shards.file}
    assert hr.open(place.text).verify() == []


def test_appending_leaves_what_is_there(store):
    place = store / "out"
    pack(place)
    before, ds = content_of(place), hr.open(place.text)
    manifest = pack(place, 100, 150, append=True)
    after = content_of(place)
    assert {name: data for name, data in after.items() if name in before and "shard" in name} == {
        name: data for name, data in before.items() if "shard" in name
    }
    assert (manifest.revision, manifest.samples) == (2, 150)
    assert hr.open(place.text).verify() == []
    assert hr.open(place.text).lookup("k120")["__key__"] == "k120"
    assert [ds.lookup(f"k{i:03d}")["__key__"] for i in range(0, 100, 9)] == [f"k{i:03d}" for i in range(0, 100, 9)]
    assert pack(place, 100, 150, append=True) == manifest
    with pytest.raises(SourceError, match="the key k140 is in the dataset already"):
        pack(place, 140, 160, append=True)


def test_a_split_lies_in_folders(store):
    place = store / "out"
    split = {"a": 0.7, "b": 0.3}
    manifests = pack(place, split=split)
    assert sum(manifest.samples for manifest in manifests.values()) == 100
    pack(place, split=split, overwrite=True, seed=1)
    for name in split:
        assert hr.open((place / name).text).verify() == []


class Uploads:
    """Uploads that fail after some."""

    def __init__(self, monkeypatch):
        self.real, self.sent, self.left = remote_workplace.upload, [], 0
        monkeypatch.setattr(remote_workplace, "upload", self)

    def __call__(self, path, target):
        if not self.left:
            raise Stop
        self.left -= 1
        self.real(path, target)
        self.sent.append(target.name)

    def allow(self, number):
        """Let so many succeed; what was sent before is forgotten."""
        self.left, self.sent = number, []


@pytest.mark.parametrize("mode", [{}, {"append": True}, {"overwrite": True, "seed": 1}])
def test_what_was_sent_is_not_sent_again(store, monkeypatch, mode):
    """A pack that is cut off before any of its uploads goes on with that shard, and ends the same."""
    cut, whole = store / "cut", store / "whole"
    for place in (cut, whole) if mode else ():
        pack(place)
    pack(whole, 100, 200, **mode)
    uploads, done = Uploads(monkeypatch), set()
    for number in (0, 1, 2, 5, 6):
        uploads.allow(number)
        with pytest.raises(Stop):
            pack(cut, 100, 200, **mode)
        if not mode:
            with pytest.raises(DatasetError):
                hr.open(cut.text)
        assert not done & {*uploads.sent}
        done |= {name for name in uploads.sent if name + ".idx" in uploads.sent or name.endswith(".idx")}
    assert len(done) == 12  # of six shards: one lacked its index
    uploads.allow(1000)
    pack(cut, 100, 200, **mode)
    assert not done & {*uploads.sent}
    assert content_of(cut) == content_of(whole)


def stopping(act, number):
    """The function `act`, which ends the pack at its call after so many."""
    left = [None] * number

    def step(*args):
        if not left:
            raise Stop
        left.pop()
        return act(*args)

    return step


@pytest.mark.parametrize("mode", [{"append": True}, {"overwrite": True, "seed": 1}])
@pytest.mark.parametrize("step", ["write_beside", "write_whole", "remove"])
def test_a_commit_that_is_cut_off_is_carried_on(store, monkeypatch, mode, step):
    """Before any of its last steps: what opens then is the old or the new, and run again it is the new."""
    cut, whole = store / "cut", store / "whole"
    for place in (cut, whole):
        pack(place)
    old = hr.open(cut.text).manifest
    new = pack(whole, 100, 150, **mode)
    for number in range(4):
        with monkeypatch.context() as patch, contextlib.suppress(Stop):
            patch.setattr(targets, step, stopping(getattr(targets, step), number))
            pack(cut, 100, 150, **mode)
        try:
            assert hr.open(cut.text).fingerprint in (old.fingerprint, new.fingerprint)
        except DatasetError:
            assert "overwrite" in mode
    pack(cut, 100, 150, **mode)
    assert {name for name in content_of(cut) if "shard" not in name} == {"headrace.json", "headrace.keys"}
    assert hr.open(cut.text).manifest.fingerprint == new.fingerprint
    assert hr.open(cut.text).verify() == []


# Its transform never comes to an end with HELD_KEY.
SCRIPT = """
import os, sys, time
import headrace as hr

def transform(sample):
    time.sleep(600 if sample["__key__"] == os.environ.get("HELD_KEY") else 0.01)
    return sample

samples = [{"__key__": f"k{i:03d}", "txt": f"text {i} " * 40, "cls": i % 3} for i in range(200)]
hr.pack(samples, sys.argv[1], transform=transform, shard_size=20_000, workers=2)
"""


def num_indexes(place):
    return sum(entry.name.endswith(".idx") for entry in list_folder(place))


def start(place, held_key=""):
    return running([sys.executable, "-c", SCRIPT, place.text], env=os.environ | {"HELD_KEY": held_key})


@pytest.mark.slow
def test_a_pack_killed_again_and_again_ends_as_one_that_was_not(s3_strict, tmp_path):
    """SIGKILL at random moments; in between the target never opens; nothing stays behind on this disk."""
    whole, killed = s3_strict / "whole", s3_strict / "killed"
    with start(whole) as process:
        assert process.wait(DEADLINE_SEC) == 0
    last_key = hr.open(whole.text)[-1]["__key__"]
    chance = random.Random(3)
    for num_shards in (0, 2, 5):
        with start(killed, last_key):
            wait_for(lambda n=num_shards: num_indexes(killed) >= n, "shards")
            time.sleep(chance.uniform(0, 0.1))  # to hit different moments; every moment must do
        with pytest.raises(DatasetError):
            hr.open(killed.text)
    with start(killed) as process:
        assert process.wait(DEADLINE_SEC) == 0
    assert content_of(killed) == content_of(whole)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_second_pack_is_refused_while_the_first_lives(s3_strict):
    place = s3_strict / "out"
    with start(place, "k000"):
        wait_for(lambda: any(entry.name == "headrace.partial" for entry in list_folder(place)), "the marker")
        with pytest.raises(TargetError, match="is being written by process"):
            pack(place)
    assert pack(place, overwrite=True).samples == 100


def test_what_may_not_be_written_over_is_refused(store):
    write_bytes(store / "out/thesis.doc", b"precious")
    with pytest.raises(TargetError, match=r"holds other things \(thesis\.doc\)"):
        pack(store / "out")
    assert content_of(store / "out") == {"thesis.doc": b"precious"}


def test_a_web_server_takes_nothing(web):
    with pytest.raises((StorageError, TargetError)):
        pack(web.place / "out")


# Sources in stores ----------------------------------------------------------------------------------------------------


def test_files_in_a_store_are_packed_as_those_of_a_folder(store, images, tmp_path, content):
    (images / "cat" / ".hidden.png").write_bytes(b"x")
    (images / "cat" / "README").write_bytes(b"x")
    for path in images.rglob("*"):
        if path.is_file():
            write_bytes(store / "images" / str(path.relative_to(images)), path.read_bytes())
    hr.pack((store / "images").text, tmp_path / "a")
    hr.pack(images, tmp_path / "b")
    shards = {name: data for name, data in content(tmp_path / "a").items() if "shard" in name}
    assert shards == {name: data for name, data in content(tmp_path / "b").items() if "shard" in name}
    assert hr.open(tmp_path / "a").manifest.classes == ("cat", "dog", "eel")


def test_a_dataset_in_a_store_is_packed_again(store, tmp_path):
    pack(store / "first")
    manifest = hr.pack((store / "first").text, tmp_path / "second", format="mds")
    assert manifest.samples == 100


def test_a_table_in_a_store_names_files_below_its_folder(store, tmp_path, pngs):
    write_bytes(store / "images/a.png", pngs[0])
    write_bytes(store / "rows.jsonl", b'{"__key__": "a", "image": "images/a.png"}\n')
    manifest = hr.pack((store / "rows.jsonl").text, tmp_path / "out", files="image")
    assert bytes(hr.open(tmp_path / "out")[0]["png"]) == pngs[0]
    assert manifest.samples == 1
    for name in (str(tmp_path / "secret.png"), "../secret.png", "images/gone.png"):
        write_bytes(store / "rows.jsonl", b'{"__key__": "a", "image": "%b"}\n' % name.encode())
        with pytest.raises(SourceError, match=r"a name below|is not there"):
            hr.pack((store / "rows.jsonl").text, tmp_path / "other", files="image")


def test_nothing_at_a_url_is_said(store, tmp_path):
    with pytest.raises(HeadraceError, match=r"nothing|no dataset|not a dataset|is missing"):
        hr.pack((store / "nowhere").text, tmp_path / "out")
