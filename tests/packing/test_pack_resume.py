"""A pack that is cut off, by SIGKILL at any moment or by an error, goes on and ends as if nothing had happened."""

import os
import random
import signal
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import Stop, count_steps

import headrace as hr
from headrace.errors import DatasetError, TargetError, TransformError
from headrace.packing import targets
from waiting import DEADLINE_SEC, running, wait_for

# Its transform sleeps a little, gives several samples at times, and never comes to an end with HELD_KEY.
SCRIPT = """
import os, sys, time
import headrace as hr

def transform(sample):
    time.sleep(600 if sample["__key__"] == os.environ.get("HELD_KEY") else 0.004)
    number = int(sample["txt"])
    if number % 7 == 0:
        raise ValueError("unlucky")
    return [{**sample, "txt": sample["txt"] * 50} for _ in range(number % 4)]

source, target, kind = sys.argv[1:]
if kind == "iterable":
    source = [{"__key__": f"k{i}", "txt": str(i)} for i in range(120)]
hr.pack(source, target, transform=transform, shard_size=9000, workers=2, on_error="skip")
"""


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(120):
        (folder / f"k{i}.txt").write_text(str(i))
    return folder


def start(source, target, kind, held_key=""):
    command = [sys.executable, "-c", SCRIPT, str(source), str(target), kind]
    return running(command, env=os.environ | {"HELD_KEY": held_key})


@pytest.mark.parametrize("kind", ["folder", "iterable"])
def test_a_pack_killed_again_and_again_ends_as_one_that_was_not(texts, tmp_path, content, kind):
    """SIGKILL at random moments; in between the target never opens, and at the end it is the same byte for byte."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(texts, whole, kind) as process:
        assert process.wait(DEADLINE_SEC) == 0
    assert len(list(whole.glob("shard-*.tar"))) > 18
    last_key = hr.open(whole)[-1]["__key__"].partition("/")[0]
    chance = random.Random(5)
    for num_shards in (0, 1, 4, 8, 12, 16):
        with start(texts, killed, kind, last_key) as process:
            wait_for(lambda n=num_shards: len(list(killed.glob("shard-*.tar"))) >= n, "shards")
            time.sleep(chance.uniform(0, 0.03))  # to hit different moments; every moment must do
            process.kill()
            assert process.wait(DEADLINE_SEC) == -signal.SIGKILL
        assert not opens(killed)
    with start(texts, killed, kind) as process:
        assert process.wait(DEADLINE_SEC) == 0
    assert content(killed) == content(whole)
    assert "headrace.skipped.jsonl" in content(whole)


def opens(folder):
    try:
        return len(hr.open(folder)) > 0
    except DatasetError:
        return False


def samples_of(folder):
    return [
        {name: str(value, "utf-8", "replace") for name, value in sample.items() if name != "__key__"}
        for sample in hr.open(folder)
    ]


@settings(max_examples=30)
@given(st.data())
def test_an_interruption_before_any_write_is_made_good(tmp_path_factory, pngs, content, data):
    """Every file-system step of a pack is a point to stop at: what is there then is continued to the same bytes."""
    folder = tmp_path_factory.mktemp("resume")
    samples = [{"__key__": f"k{i}", "png": png, "cls": i} for i, png in enumerate(pngs[:20])]
    hr.pack(samples, folder / "whole", shard_size=8000)
    with pytest.MonkeyPatch.context() as patch:
        steps = count_steps(patch, None, lambda: hr.pack(samples, folder / "counted", shard_size=8000))
    stop_at = data.draw(st.integers(0, len(steps) - 1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        count_steps(patch, stop_at, lambda: hr.pack(samples, folder / "cut", shard_size=8000))
    if (folder / "cut" / "headrace.json").exists() and not (folder / "cut" / "headrace.partial").exists():
        assert hr.open(folder / "cut").verify() == []
    hr.pack(samples, folder / "cut", shard_size=8000)
    assert content(folder / "cut") == content(folder / "whole")


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_an_interruption_while_replacing_leaves_the_old_the_new_or_nothing(
    tmp_path_factory, pngs, content, stop_at, is_equal
):
    folder = tmp_path_factory.mktemp("replace")
    samples = [{"__key__": f"k{i}", "png": png, "cls": i} for i, png in enumerate(pngs[:12])]
    new = {"shard_size": 8000, "seed": 1, "overwrite": True}
    old = {"shard_size": 8000, "seed": 1} if is_equal else {"shard_size": 5000}
    hr.pack(samples, folder / "old", **old)
    hr.pack(samples, folder / "new", **new)
    hr.pack(samples, folder / "cut", **old)
    with pytest.MonkeyPatch.context() as patch:
        num_steps = len(count_steps(patch, None, lambda: hr.pack(samples, folder / "counted", **new)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        count_steps(patch, stop_at % num_steps, lambda: hr.pack(samples, folder / "cut", **new))
    if opens(folder / "cut"):
        assert samples_of(folder / "cut") in (samples_of(folder / "old"), samples_of(folder / "new"))
    hr.pack(samples, folder / "cut", **new)
    assert content(folder / "cut") == content(folder / "new")


def failing_transform(sample):
    if os.path.exists(os.environ.get("TEST_FAIL_MARK", "")) and sample["__key__"] == os.environ["TEST_FAIL_KEY"]:
        raise ValueError("not yet")
    return sample


@pytest.fixture
def half_done(images, tmp_path, monkeypatch):
    """A target that failed after some shards, and the call that made it so."""
    monkeypatch.setenv("TEST_FAIL_MARK", str(tmp_path / "mark"))
    hr.pack(images, tmp_path / "whole", shard_size=8000, transform=failing_transform)
    last = hr.open(tmp_path / "whole")[-1]["__key__"]
    monkeypatch.setenv("TEST_FAIL_KEY", last)
    (tmp_path / "mark").touch()

    def pack(**options):
        return hr.pack(images, tmp_path / "out", transform=failing_transform, **{"shard_size": 8000, **options})

    with pytest.raises(TransformError, match="not yet"):
        pack()
    return pack


def test_after_an_error_the_pack_goes_on_where_it_was(half_done, tmp_path, content):
    before = content(tmp_path / "out")
    assert "headrace.partial" in before
    assert "headrace.json" not in before
    assert not any(name.endswith(".tmp") for name in before)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert stamps
    (tmp_path / "mark").unlink()
    half_done()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_pack_may_go_on_by_skipping_what_it_failed_on(half_done):
    assert half_done(on_error="skip").skipped == 1


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.tar.idx"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"cut"), os.unlink], ids=["cut", "gone"])
def test_a_finished_shard_that_is_gone_or_cut_is_made_again(half_done, tmp_path, content, name, damage):
    damage(tmp_path / "out" / name)
    (tmp_path / "mark").unlink()
    half_done()
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_half_done_target_of_other_options_is_refused(half_done, tmp_path):
    with pytest.raises(TargetError, match=r"left half-done by a pack of another source or options: .*overwrite=True"):
        half_done(seed=1)
    (tmp_path / "mark").unlink()
    assert half_done(seed=1, overwrite=True).samples == 60


def test_resuming_may_be_switched_off(half_done, tmp_path, content):
    os.utime(tmp_path / "out" / "shard-000000.tar", (0, 0))
    (tmp_path / "mark").unlink()
    half_done(resume=False)
    assert (tmp_path / "out" / "shard-000000.tar").stat().st_mtime_ns
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@given(st.integers(0, 100_000), st.binary(max_size=12))
def test_a_torn_journal_costs_time_but_no_sample(tmp_path_factory, pngs, content, at, garbage):
    folder = tmp_path_factory.mktemp("torn")
    samples = [{"__key__": f"k{i}", "png": png} for i, png in enumerate(pngs[:12])]
    hr.pack(samples, folder / "whole", shard_size=6000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "write_beside", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            hr.pack(samples, folder / "out", shard_size=6000)
    journal = folder / "out" / "headrace.partial"
    lines = journal.read_bytes()
    journal.write_bytes(lines[: at % len(lines)] + garbage)
    hr.pack(samples, folder / "out", shard_size=6000, overwrite=True)
    assert content(folder / "out") == content(folder / "whole")
