"""Whole benches, on feeds of which the slowest stage is known: it is named, and what helps is found and helps."""

import gzip
import io
import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headrace as hr
from faulty import FaultyServer
from headrace.bench import measure, variants
from headrace.errors import DamagedError, OptionError
from waiting import family, wait_own_gone

STAGES = ["storage", "verify", "decode", "augment", "hand-off"]


def waits(sample):
    time.sleep(0.03)  # for a service, say
    return sample


def photo(number):
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((320, 240)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos in a compressed tar."""
    folder = tmp_path_factory.mktemp("photos")
    hr.pack(({"jpg": photo(k), "cls": k % 3} for k in range(40)), folder / "packed")
    (folder / "zipped").mkdir()
    shard = folder / "packed" / "shard-000000.tar"
    (folder / "zipped" / "photos.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    return folder / "zipped"


@pytest.fixture(scope="module")
def slow_steps(photos):
    before = family(os.getpid())
    stream = hr.Stream(hr.open(photos)).decode().map(hr.transform.CenterCrop(64)).map(waits)
    found = measure(stream, batch_size=8, threads=2, seconds=3, step_sec=0.02)
    wait_own_gone(before)
    return found


def named(found, name):
    return next(remedy for remedy in found.remedies if remedy.name.startswith(name))


def test_steps_that_wait_bound_the_feed(slow_steps):
    assert [stage.name for stage in slow_steps.stages] == STAGES
    assert slow_steps.bound.name == "augment"
    assert slow_steps.verdict.startswith("Bound by augment: the feed makes ")
    assert 0 < slow_steps.share_of_ceiling < 1.5
    # 0.03 s a sample and a thread is the most that there can be.
    assert slow_steps.bound.rate.high <= 1.01 * 2 / 0.03
    assert slow_steps.bound.alone.high <= 1.01 / 0.03


def test_what_would_help_is_only_predicted_where_nothing_is_to_be_tried(photos):
    stream = hr.Stream(hr.open(photos)).decode().map(hr.transform.CenterCrop(64)).map(waits)
    found = measure(stream, batch_size=8, threads=4, seconds=1, check=False)
    best = named(found, "threads=")
    assert best.gain > 1.5
    assert best.tried is None
    assert "it was not tried." in found.verdict


def test_more_threads_are_advised_and_help(slow_steps):
    best = slow_steps.remedies[0]
    assert best.name.startswith("threads=")
    assert best.threads > 2
    assert best.gain > 1.5
    assert best.tried.samples_per_sec > 1.2 * slow_steps.reached.samples_per_sec
    assert "a trial gave" in slow_steps.verdict


def test_other_formats_and_smaller_images_are_predicted(slow_steps):
    assert named(slow_steps, "format=tar").gain > 0
    assert named(slow_steps, "resize-short=73").how.startswith("headrace pack --resize-short 73")


def test_a_trainer_that_waits_for_its_feed_is_not_busy(slow_steps):
    """Two threads give a batch of 8 in 0.12 s at the least, for steps of 0.02 s."""
    assert 0 < slow_steps.au < 0.5


def test_every_thread_count_has_three_repeats(slow_steps):
    assert {1, 2} <= set(slow_steps.by_threads)
    rates = [*slow_steps.by_threads.values(), *(stage.rate for stage in slow_steps.stages)]
    assert all(len(rate.counts) == 3 for rate in rates)
    assert all(rate.low <= rate.samples_per_sec <= rate.high for rate in rates)


def test_what_was_found_is_plain_json(slow_steps):
    def values(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            value = list(value.values())
        return [leaf for one in value for leaf in values(one)] if isinstance(value, list) else [value]

    leaves = values(slow_steps.to_json())
    assert all(leaf is None or isinstance(leaf, str | bool | int | float) for leaf in leaves)
    assert all(math.isfinite(leaf) for leaf in leaves if isinstance(leaf, float))


def test_a_slow_store_bounds_the_feed_and_a_cache_helps(tmp_path):
    """A store that is asked by one at a time and takes 0.03 s for each range of a shard."""
    folder = tmp_path / "d"
    hr.pack(({"bin": os.urandom(20_000), "cls": k % 3} for k in range(200)), folder)
    files = {f"/d/{path.name}": path.read_bytes() for path in folder.iterdir()}
    one_at_a_time = threading.Lock()

    def slow(handler):
        if handler.span() is not None and handler.path.endswith(".tar"):
            with one_at_a_time:
                time.sleep(0.03)
        return False

    with FaultyServer(files) as server:
        server.always = slow
        found = measure(hr.Stream(hr.open(f"{server.url}/d")).decode(), batch_size=16, threads=1, seconds=2)
    assert found.bound.name == "storage"
    best = found.remedies[0]
    assert best.name == "cache"
    assert best.gain > 2
    assert best.tried.samples_per_sec > 1.5 * found.bound.rate.samples_per_sec


@pytest.fixture(scope="module")
def large_photos(tmp_path_factory):
    """Photos that take much longer to decode than to copy."""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((1600, 1200)).save(out, "JPEG")
    hr.pack(({"jpg": out.getvalue(), "cls": k} for k in range(48)), folder / "packed")
    return hr.open(folder / "packed")


def cropped(dataset):
    return hr.Stream(dataset).decode().map(hr.transform.CenterCrop(64)).map(hr.transform.RandomHorizontalFlip())


def test_decoded_samples_that_are_kept_help_a_feed_that_decodes(large_photos):
    found = measure(cropped(large_photos), batch_size=8, threads=1, seconds=3)
    best = found.remedies[0]
    assert best.name == "cache_decoded=ram"
    assert best.gain > 2
    assert best.tried.samples_per_sec > 2 * found.reached.samples_per_sec


def test_decoded_samples_that_memory_does_not_hold_are_said_not_to_fit(large_photos, monkeypatch):
    monkeypatch.setattr(variants, "available_memory_bytes", lambda: 1 << 20)
    found = measure(cropped(large_photos), batch_size=8, threads=1, seconds=1)
    assert "cache_decoded=ram" not in [remedy.name for remedy in found.remedies]
    (reason,) = [one.reason for one in found.unknown if one.name == "cache_decoded=ram"]
    assert "more than a quarter of the free memory, 0.000244 GiB; cache_decoded=FOLDER" in reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"batch_size": 41}, "must have a full global batch: got 40 samples for batches of 41"),
        ({"threads": 0}, "threads must be at least 1: got 0"),
        ({"seconds": 0.5}, "seconds must be a number of at least 1: got 0.5"),
        ({"seconds": math.nan}, "seconds must be a number"),
        ({"step_sec": -1.0}, "step_sec must be a number of seconds, at least 0"),
        ({"cold": 1}, "cold must be True or False: got 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(photos, options, message):
    def never(sample):
        raise AssertionError

    stream = hr.Stream(hr.open(photos)).map(never)
    with pytest.raises(OptionError, match=message):
        measure(stream, **{"batch_size": 8} | options)


def test_only_what_lies_on_a_disk_can_be_cold(photos, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(OptionError, match="is a folder of files; pack it first"):
        measure(hr.Stream(hr.open(tmp_path)), batch_size=1, cold=True)
    files = {f"/d/{path.name}": path.read_bytes() for path in Path(photos).iterdir()}
    with FaultyServer(files) as server:
        ds = hr.open(f"{server.url}/d/photos.tar.gz")
        with pytest.raises(OptionError, match="is read over a network"):
            measure(hr.Stream(ds), batch_size=1, cold=True)


def test_damage_and_filters_that_leave_nothing_are_said(tmp_path):
    hr.pack(({"bin": bytes(1000), "cls": k} for k in range(20)), tmp_path / "d")
    nothing = hr.Stream(hr.open(tmp_path / "d")).decode().filter(lambda sample: False)
    with pytest.raises(OptionError, match="none of the 20 that were tried does"):
        measure(nothing, batch_size=4, seconds=1)
    shard = tmp_path / "d" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match=r"sample '.*'.*checksum"):
        measure(hr.Stream(hr.open(tmp_path / "d")), batch_size=4, seconds=1)
