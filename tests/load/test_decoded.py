"""The cache of decoded samples: the batches are those of a loader without one, whatever becomes of the cache."""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from worlds import LoaderHere, run_world

import headrace as hr
from headrace.errors import OptionError
from headrace.transform import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize
from waiting import family, running, wait_gone

NUM_SAMPLES, BATCH = 96, 8
STEPS = NUM_SAMPLES // BATCH
DECODED_BYTES = 48 * 40 * 3


def jpeg(i, height=48, width=40):
    """An image that no other number has."""
    rng = np.random.default_rng(i)
    pixels = cv2.resize(rng.integers(0, 255, (6, 5, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def pack_images(folder, num_samples=NUM_SAMPLES, **size):
    samples = (
        {"__key__": f"{i:04d}", "jpg": jpeg(i, **size), "cls": i % 7, "json": {"i": i}, "bin": bytes([i] * 5)}
        for i in range(num_samples)
    )
    hr.pack(samples, folder, shard_size="20KiB", shuffle=False)
    return hr.open(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pack_images(tmp_path_factory.mktemp("images") / "packed")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "decoded"


def place_of(name, folder):
    return folder if name == "folder" else name


def augmented(dataset, epochs=3):
    return hr.Stream(dataset, seed=5, epochs=epochs).decode().map(RandomResizedCrop(16)).map(RandomHorizontalFlip())


def comparable(batch):
    return {
        name: value.numpy().tobytes() if hasattr(value, "numpy") else repr(plain(value))
        for name, value in batch.items()
    }


def plain(values):
    return [bytes(v) if isinstance(v, memoryview) else v.tolist() if hasattr(v, "tolist") else v for v in values]


def run(stream, cache_decoded, make_loader=hr.Loader, **options):
    """The batches of one iteration, and the meters after it."""
    gc.collect()  # feeds of this process before, which hold memory
    with make_loader(stream, batch_size=BATCH, cache_decoded=cache_decoded, **options) as loader:
        batches = [comparable(batch) for batch in loader]
        return batches, loader.meters()


def whiten(sample, rng):
    """Writes into the array that it is given, as a function of the user's may."""
    sample["jpg"][: rng.integers(1, 40)] = 255
    return sample


def bright(sample, rng):
    return sample["jpg"].mean() + rng.normal(0, 30) > 100


def stacked(samples):
    samples[0]["jpg"][:] = 0
    return {"pixels": np.stack([sample["jpg"] for sample in samples]), "__key__": [s["__key__"] for s in samples]}


def fixed(dataset):
    return hr.Stream(dataset, seed=5, epochs=3).decode().map(Resize(24)).map(CenterCrop((16, 20)))


STREAMS = {
    "augmented": (augmented, {}),
    "all steps kept": (fixed, {}),
    "normalized": (lambda ds: fixed(ds).map(Normalize(0.5, 0.5)), {}),
    "written in place": (lambda ds: hr.Stream(ds, epochs=3).decode().map(whiten), {}),
    "filtered": (lambda ds: augmented(ds).filter(bright), {}),
    "collated": (lambda ds: hr.Stream(ds, epochs=3).decode(), {"collate": stacked}),
    "with the last batch": (augmented, {"drop_last": False}),
    "a selection": (lambda ds: augmented(ds.select(range(5, 90, 2))), {}),
    "a mixture": (lambda ds: hr.mix([(ds.select(range(40)), 0.7), (ds, 0.3)], epochs=3).decode(), {}),
}


@pytest.mark.parametrize("place", ["ram", "folder"])
@pytest.mark.parametrize("name", STREAMS)
def test_batches_are_the_same_with_and_without(images, folder, name, place):
    """Law 2: over three epochs, of which the later ones take what the first one kept."""
    describe, options = STREAMS[name]
    expected, _ = run(describe(images), None, LoaderHere, **options)
    found, meters = run(describe(images), place_of(place, folder), LoaderHere, **options)
    assert found == expected
    cached = meters["cached"]
    assert cached["hits"] > cached["misses"] > 0
    assert cached["damaged"] == 0


@pytest.mark.parametrize("place", ["ram", "folder"])
@pytest.mark.parametrize("options", [{"threads": 3}, {"processes": 2}])
def test_threads_and_worker_processes_share_it(images, folder, place, options):
    stream = augmented(images).filter(bright)
    expected, _ = run(stream, None, LoaderHere)
    found, meters = run(stream, place_of(place, folder), **options)
    assert found == expected
    assert meters["cached"]["hits"] > meters["cached"]["misses"]


@pytest.mark.parametrize("options", [{"make_loader": LoaderHere}, {"processes": 2}])
def test_what_a_folder_keeps_is_neither_read_nor_decoded_again(images, folder, options):
    """The next run finds it, at any world size, from its first batch on."""
    expected, _ = run(augmented(images), folder, **options)
    found, meters = run(augmented(images), folder, **options)
    assert found == expected
    assert meters["cached"]["misses"] == 0
    assert meters["stages"]["read"]["bytes"] == 0


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_ranks_of_a_machine_share_it(images, folder, place):
    """Each epoch deals the samples anew: a rank finds what another one decoded."""
    options = {"global_batch_size": BATCH, "world_size": 2, "cache_decoded": place_of(place, folder)}
    ranks = [hr.Loader(augmented(images, epochs=1), rank=rank, **options) for rank in range(2)]
    for loader in ranks:
        for _ in loader:
            pass
    assert all(loader.meters()["cached"]["misses"] > 0 for loader in ranks)
    _, meters = run(augmented(images, epochs=1), place_of(place, folder))
    assert meters["cached"]["hits"] >= NUM_SAMPLES
    assert meters["cached"]["misses"] == 0
    for loader in ranks:
        loader.close()


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_a_run_resumes_at_another_world_size_with_it(images, folder, place):
    stream = augmented(images, epochs=2).map(lambda sample, rng: {**sample, "noise": rng.random()})
    whole = run_world(stream, 1, BATCH, make_loader=LoaderHere, cache_decoded=None)
    options = {"make_loader": LoaderHere, "cache_decoded": place_of(place, folder)}
    head = run_world(stream, 2, BATCH, limit=STEPS // 2, **options)
    assert head.steps == whole.steps[: STEPS // 2]
    for world_size in (1, 4):
        tail = run_world(stream, world_size, BATCH, state=head.states[-1], **options)
        assert tail.steps == whole.steps[STEPS // 2 :]
        assert json.dumps(tail.states) == json.dumps(whole.states[STEPS // 2 :]), "no state tells of the cache"


def test_other_steps_and_datasets_have_stores_of_their_own(images, folder, tmp_path):
    other = pack_images(tmp_path / "other", NUM_SAMPLES - 8)
    for dataset in (images, other, images.select(range(80)), hr.open(images.url, fields=["jpg"])):
        for color in ("rgb", "gray"):
            for side in (None, 12, 13):
                stream = hr.Stream(dataset, epochs=2).decode(color=color)
                stream = stream if side is None else stream.map(Resize(side))
                assert run(stream, folder, LoaderHere)[0] == run(stream, None, LoaderHere)[0]
    assert len(stores(folder)) == 24


def stores(folder):
    return sorted(folder.glob("headrace-decoded-*/*.decoded"))


@pytest.mark.parametrize("place", ["ram", "folder"])
def test_of_what_does_not_fit_the_first_samples_stay(images, folder, place):
    """The quota holds, and every epoch finds the same samples: what does not fit pushes nothing out."""
    quota = 20 * DECODED_BYTES
    expected, _ = run(augmented(images, 6), None, LoaderHere)
    found, meters = run(augmented(images, 6), place_of(place, folder), LoaderHere, cache_decoded_size=quota)
    assert found == expected
    assert 10 * 4 <= meters["cached"]["hits"] <= 20 * 5 + 4 * BATCH
    assert "takes no more" in meters["cached"]["why"]
    assert sum(path.stat().st_size for path in stores(folder)) <= quota


def test_a_store_that_nobody_uses_makes_room(images, folder):
    quota = 2 * NUM_SAMPLES * DECODED_BYTES
    grays = hr.Stream(images, epochs=2).decode(color="gray")
    smaller = augmented(images)
    for stream in (augmented(images), grays):
        run(stream, folder, LoaderHere, cache_decoded_size=quota)
    first = stores(folder)
    assert len(first) == 2
    larger = hr.Stream(images, epochs=2).decode().map(Resize((60, 40)))
    _, meters = run(larger, folder, LoaderHere, cache_decoded_size=quota)
    assert meters["cached"]["hits"] >= NUM_SAMPLES // 2
    assert sum(path.stat().st_size for path in stores(folder)) <= quota
    assert run(smaller, folder, LoaderHere)[0] == run(smaller, None, LoaderHere)[0]


def flip_bytes(path, first, step, last=None):
    data = bytearray(path.read_bytes())
    for at in range(first, last or len(data), step):
        data[at] ^= 0x55
    path.write_bytes(data)


TABLE, SAMPLES = 4096, 8192
DAMAGES = {
    "of samples": lambda path: flip_bytes(path, SAMPLES + 700, 3001),
    "of all samples": lambda path: flip_bytes(path, SAMPLES, 64),
    "of the table": lambda path: flip_bytes(path, TABLE + 7, 97, SAMPLES),
    "of the header": lambda path: flip_bytes(path, 3, 1 << 30),
    "cut short": lambda path: os.truncate(path, SAMPLES + 60 * DECODED_BYTES),
    "cut in the table": lambda path: os.truncate(path, TABLE + 100),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_made_anew(images, folder, damage):
    """Law 6: never given out, and sound again in the epoch after."""
    options = {"make_loader": LoaderHere}
    expected, _ = run(augmented(images), folder, **options)
    (store,) = stores(folder)
    DAMAGES[damage](store)
    found, meters = run(augmented(images), folder, **options)
    assert found == expected
    assert meters["cached"]["misses"] > 0
    assert (meters["cached"]["damaged"] > 0) == (damage in ("of samples", "of all samples", "cut short"))
    found, meters = run(augmented(images), folder, **options)
    assert found == expected
    assert meters["cached"]["misses"] == 0


HERE_AND_IN_PROCESSES = [{"make_loader": LoaderHere}, {"processes": 2}, {"processes": 2, "collate": stacked}]


@pytest.mark.parametrize("options", HERE_AND_IN_PROCESSES)
def test_damage_amid_a_run_is_healed_by_the_stored_bytes(images, folder, options):
    """Also where a whole run of samples was not read, since all of them were kept."""
    run(augmented(images), folder, **options)
    expected, _ = run(augmented(images), None, **options)
    loaders = {"make_loader": hr.Loader} | options
    make_loader = loaders.pop("make_loader")
    with make_loader(augmented(images), batch_size=BATCH, cache_decoded=folder, **loaders) as loader:
        found = []
        for batch in loader:
            found.append(comparable(batch))
            if len(found) == STEPS:
                DAMAGES["of all samples"](stores(folder)[0])
        assert found == expected
        assert loader.meters()["cached"]["damaged"] >= NUM_SAMPLES // 2


def dies(sample):
    if sample["__key__"] == "0017":
        os._exit(3)
    return sample


@pytest.mark.parametrize("options", [{}, {"processes": 2}, {"processes": 2, "collate": stacked}])
def test_a_sample_that_processes_die_of_is_named_though_it_was_not_read(images, folder, options):
    run(augmented(images), folder, **options)
    for place in (None, folder):
        stream = augmented(images, epochs=1).map(dies, shapes={})
        with hr.Loader(stream, batch_size=BATCH, cache_decoded=place, on_error="skip", **options) as loader:
            delivered = [key for batch in loader for key in batch["__key__"]]
            assert len(delivered) == NUM_SAMPLES - 1
            assert [one.key for one in loader.skipped] == ["0017"]
            assert "did not survive it" in loader.skipped[0].reason


def test_a_damaged_sample_of_the_dataset_is_not_kept(folder, tmp_path):
    dataset = pack_images(tmp_path / "packed")
    shard = tmp_path / "packed" / dataset.shard_name(1)
    flip_bytes(shard, 700, 1 << 30)
    options = {"on_error": "skip", "make_loader": LoaderHere}
    expected, without = run(augmented(dataset), None, **options)
    found, meters = run(augmented(dataset), folder, **options)
    assert found == expected
    assert meters["skipped"] == without["skipped"] >= 3


def test_a_full_disk_ends_the_keeping_and_is_said_once(images, small_disk, capfd):
    expected, _ = run(augmented(images), None, LoaderHere)
    found, meters = run(augmented(images), small_disk, cache_decoded_size="1GiB")
    assert found == expected
    assert meters["cached"]["hits"] > 0, "what it holds stays in use"
    assert capfd.readouterr().err == (
        f"the cache {small_disk} takes no more decoded samples (its disk is as good as full): make room, or give a "
        "smaller cache_decoded_size; what it holds stays in use\n"
    )


def test_memory_that_is_as_good_as_full_ends_the_keeping(images, monkeypatch, caplog):
    monkeypatch.setattr("headrace.load.decoded.ram.available_memory_bytes", lambda: 1 << 20)
    expected, _ = run(augmented(images), None, LoaderHere)
    assert run(augmented(images), "ram", LoaderHere)[0] == expected
    assert "memory is as good as full" in caplog.text


def test_a_loader_process_that_is_replaced_finds_what_was_kept(images):
    expected, _ = run(augmented(images), None)
    with hr.Loader(augmented(images), batch_size=BATCH, cache_decoded="ram") as loader:
        found = []
        for batch in loader:
            found.append(comparable(batch))
            if len(found) == 2 * STEPS:
                before = loader.meters()["cached"]
                os.kill(loader._client.pid, signal.SIGKILL)
        after = loader.meters()["cached"]
    assert found == expected
    assert len(loader.restarts) == 1
    assert after["misses"] == before["misses"]


KILLED = """
import sys
import headrace as hr
from headrace.transform import RandomResizedCrop
stream = hr.Stream(hr.open(sys.argv[1]), epochs=None).decode().map(RandomResizedCrop(16))
loader = hr.Loader(stream, batch_size=8, cache_decoded=sys.argv[2], processes=int(sys.argv[3]))
for number, batch in enumerate(loader):
    if number == int(sys.argv[4]):
        print("amid it", flush=True)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_kill_memory_is_free_and_a_folder_is_in_use_again(images, folder, processes):
    """Law 9, and no half of a sample is ever found."""
    for place, number in (("ram", 2), (folder, 1), (folder, 5), (folder, 20)):
        command = [sys.executable, "-c", KILLED, images.url, place, processes, number]
        with running(list(map(str, command)), stdout=subprocess.PIPE) as trainer:
            assert trainer.stdout.readline() == b"amid it\n"
            pids = family(trainer.pid)
            assert (place == "ram") == any(holds_memory(pid) for pid in pids)
            for pid in pids[1:]:  # amid whatever it writes
                os.kill(pid, signal.SIGKILL)
            os.kill(trainer.pid, signal.SIGKILL)
        wait_gone(pids)
        assert not any(holds_memory(pid) for pid in pids)
    stream = augmented(images)
    found, meters = run(stream, folder, LoaderHere)
    assert found == run(stream, None, LoaderHere)[0]
    assert meters["cached"]["damaged"] == 0


def holds_memory(pid):
    """Whether a process has memory of decoded samples open."""
    try:
        return any("memfd:headrace-decoded" in os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended
        return False


def test_memory_ends_with_the_loader(images):
    loader = hr.Loader(augmented(images), batch_size=BATCH, cache_decoded="ram")
    for _ in loader:
        pass
    assert holds_memory(os.getpid())
    loader.close()
    assert not holds_memory(os.getpid())
    for _ in loader:
        pass
    assert holds_memory(os.getpid())
    del loader
    assert not holds_memory(os.getpid())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images of which decoding takes much longer than a flip."""
    return pack_images(tmp_path_factory.mktemp("large") / "packed", height=400, width=400)


class TestAutomatic:
    """By default samples are kept where that was found to pay and to fit."""

    @staticmethod
    def flipped(dataset, epochs):
        return hr.Stream(dataset, epochs=epochs).decode().map(RandomHorizontalFlip())

    @pytest.mark.parametrize("options", [{}, {"processes": 2}])
    def test_it_is_used_where_decoding_takes_most_and_samples_come_again(self, large, caplog, options):
        caplog.set_level(logging.INFO, "headrace.load")
        expected, _ = run(self.flipped(large, 4), None)
        with hr.Loader(self.flipped(large, 4), batch_size=BATCH, **options) as loader:
            assert [comparable(batch) for batch in loader] == expected
            cached = loader.meters()["cached"]
        assert cached["place"] == "ram"
        assert cached["hits"] > 0
        assert [record.message for record in caplog.records] == [cached["why"]]
        assert cached["why"].startswith("decoded samples are kept in RAM: decoding takes ")

    def test_a_second_iteration_shows_that_samples_come_again(self, large):
        with LoaderHere(self.flipped(large, 1), batch_size=BATCH) as loader:
            for _ in loader:
                pass
            assert (loader.meters()["cached"]["place"], loader.meters()["cached"]["why"]) == (None, "")
            for _ in range(3):
                for _ in loader:
                    pass
            assert loader.meters()["cached"]["hits"] > 0

    def test_it_is_not_used_where_all_do_not_fit(self, large):
        with LoaderHere(self.flipped(large, 3), batch_size=BATCH, cache_decoded_size="8MiB") as loader:
            for _ in loader:
                pass
            cached = loader.meters()["cached"]
        assert (cached["place"], cached["misses"]) == (None, 0)
        assert "do not fit" in cached["why"]

    def test_it_is_not_used_where_decoding_takes_little(self, images):
        """Small images, and a slow function behind."""

        def slow(sample):
            for _ in range(100):
                sample["jpg"].sum()
            return sample

        with LoaderHere(self.flipped(images, 3).map(slow), batch_size=BATCH) as loader:
            for _ in loader:
                pass
            cached = loader.meters()["cached"]
        assert (cached["place"], cached["misses"]) == (None, 0)
        assert cached["why"].startswith("decoded samples are not kept: decoding takes ")

    def test_other_streams_have_none(self, images):
        for stream in (hr.Stream(images, epochs=2), hr.Stream(images, epochs=2).map(whiten_nothing).decode()):
            with LoaderHere(stream, batch_size=BATCH) as loader:
                for _ in loader:
                    pass
                assert loader.meters()["cached"]["place"] is None


def whiten_nothing(sample):
    return sample


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"cache_decoded": 3}, 'cache_decoded is "auto", "ram", a folder or None: got 3'),
        ({"cache_decoded": "s3://bucket/x"}, "s3"),
        ({"cache_decoded": None, "cache_decoded_size": "1GiB"}, "cache_decoded_size goes with cache_decoded"),
        ({"cache_decoded": "ram", "cache_decoded_size": "4KiB"}, "must be more than 8,192 bytes"),
        ({"cache_decoded": "ram", "cache_decoded_size": "100TiB"}, "must fit the memory"),
        ({"cache_decoded": "ram", "cache_decoded_size": "many"}, "cache_decoded_size"),
    ],
)
def test_what_cannot_be_is_refused(images, options, what):
    with pytest.raises(OptionError, match=what):
        hr.Loader(augmented(images), batch_size=BATCH, **options)


def test_a_stream_without_decoding_has_nothing_to_keep(images):
    with pytest.raises(OptionError, match="does not begin with"):
        hr.Loader(hr.Stream(images).map(whiten_nothing).decode(), batch_size=BATCH, cache_decoded="ram")
