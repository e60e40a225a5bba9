"""Other libraries' loaders beside the feed of the same data: rates, what a trainer makes of them, what is unknown."""

import io
import json
import os
import threading
import time
from queue import Queue

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import headrace as hr
from headrace.bench.compare import Found, feed_of
from headrace.bench.comparison import Comparison, Step
from headrace.bench.foreign_feed import ForeignFeed
from headrace.bench.rates import Count, Rate
from headrace.bench.same_data import stream_of
from headrace.errors import OptionError
from headrace.load.foreign import LoaderFacts

SLEEP_SEC = 0.002


def rate(samples_per_sec):
    return Rate((Count(round(samples_per_sec), 0, 1.0),))


def comparison(loader, feed, overlaps, step):
    facts = LoaderFacts("DataLoader", 2, 2, 10)
    return Comparison(facts, 10, rate(loader), 0.1, overlaps, 8.0, feed and rate(feed), 8.0, 2, "", (), step)


@pytest.mark.parametrize(
    ("loader", "overlaps", "busy_sec", "steps_per_sec", "au"),
    [
        (1000, True, 0.1, 10, 1.0),  # 10 samples come in 10 ms, while 100 ms are computed
        (50, True, 0.1, 5, 0.5),  # they take 200 ms
        (100, False, 0.1, 5, 0.5),  # 100 ms to load, and then 100 ms to compute
    ],
)
def test_a_trainer_is_as_fast_as_the_slower_of_two_or_as_both_one_after_the_other(
    loader, overlaps, busy_sec, steps_per_sec, au
):
    found = comparison(loader, None, overlaps, Step(10, busy_sec, busy_sec)).by_loader
    assert (found.steps_per_sec, found.au) == (pytest.approx(steps_per_sec), pytest.approx(au))


def test_the_sentence_says_both_predictions_and_what_the_run_had():
    found = comparison(50, 1000, True, Step(10, 0.1, 0.08, au=0.4))
    assert found.by_feed.au == pytest.approx(0.8)
    assert (
        "5.000 steps/s and an AU of 0.40 by this loader and 10.00 steps/s and an AU of 0.80 by headrace"
        in found.sentence
    )
    assert found.sentence.endswith("the run had an AU of 0.40.")
    assert json.loads(json.dumps(found.to_json()))["by_feed"]["steps_per_sec"] == pytest.approx(10)


class Slow(Dataset):
    """Rows that take a while each."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        time.sleep(SLEEP_SEC)
        return {"x": torch.full((4,), float(i))}


class Ahead:
    """A loader that no library has, with a thread that works ahead."""

    def __iter__(self):
        queue = Queue(2)

        def work():
            for batch in DataLoader(Slow(), batch_size=8):
                queue.put(batch)
            queue.put(None)

        threading.Thread(target=work, daemon=True).start()
        return iter(queue.get, None)


class SlowStarts:
    """Epochs of few batches that come at once, each after a start of a while."""

    def __init__(self, num_batches):
        self.num_batches, self.started = num_batches, 0

    def __iter__(self):
        self.started += 1
        time.sleep(0.1)
        for _ in range(self.num_batches):
            time.sleep(SLEEP_SEC)
            yield torch.ones(8, 2)


def test_the_starts_of_epochs_are_in_no_rate():
    loader = SlowStarts(10)
    feed = ForeignFeed(loader, None)
    found = feed.rate(0)
    assert loader.started == feed.epochs > 1
    assert found.samples / found.sec > 8 * 10 / 0.1  # what it would be if the epochs were their starts alone


def test_epochs_of_a_batch_are_their_starts():
    found = ForeignFeed(SlowStarts(1), None).rate(0)
    assert found.samples > 0
    assert found.samples / found.sec < 8 / 0.1


def test_a_watched_loader_is_asked_without_its_monitor(tmp_path):
    monitor = hr.Monitor(tmp_path / "run")
    feed = ForeignFeed(monitor.watch(DataLoader(Slow(), batch_size=8)), None)
    assert feed.facts == LoaderFacts("DataLoader", 0, None, 8)
    assert monitor.tally().batches == 0
    assert not (tmp_path / "run").exists()


def test_of_a_loader_of_headraces_the_stream_is_known(tmp_path):
    hr.pack(({"x": i} for i in range(8)), tmp_path, format="mds")
    stream = hr.Stream(hr.open(tmp_path))
    for loader in (hr.Loader(stream, batch_size=4), DataLoader(stream, batch_size=4)):
        assert stream_of(loader, None, tmp_path) == (stream, "")


class WhenAsked:
    def __iter__(self):
        return iter(DataLoader(Slow(), batch_size=8))


@pytest.mark.parametrize(("loader", "overlaps"), [(Ahead(), True), (WhenAsked(), False)])
def test_whether_a_loader_works_ahead_is_tried_where_it_does_not_say(loader, overlaps):
    feed = ForeignFeed(loader, None)
    found = feed.rate(0)
    assert found.samples / found.sec < 1 / SLEEP_SEC
    assert feed.overlaps(1 / SLEEP_SEC / 2) is overlaps


def test_a_dataloader_is_predicted_as_it_trains(tmp_path):
    """The law of the prediction: a run by the loader has the AU that its rate alone, without the run's waits, says."""
    data = ({"__key__": f"{i:03d}", "x": np.full(4, i, np.float32)} for i in range(64))
    hr.pack(data, tmp_path / "packed", format="mds")
    loader = DataLoader(Slow(), batch_size=8)
    with hr.Monitor(tmp_path / "run") as monitor:
        for _ in monitor.watch(loader):
            with monitor.step():
                time.sleep(8 * SLEEP_SEC)
    found = hr.compare_feed(loader, dataset=tmp_path / "packed", run=tmp_path / "run", seconds=1)
    assert (found.loader.kind, found.batch_size, found.overlaps) == ("DataLoader", 8, False)
    assert (found.loader_bytes_per_sample, found.feed_bytes_per_sample) == (16, 16)
    assert (found.step.samples, found.feed_processes) == (8, 1)
    assert found.by_loader.au == pytest.approx(found.step.au, abs=0.15)
    assert found.by_feed.au > found.by_loader.au
    assert found.unknown == ""
    assert all(note.startswith("Its epochs begin with ") for note in found.notes)


def test_what_the_data_is_may_be_unknown_and_then_no_rate_is_guessed():
    found = hr.compare_feed(DataLoader(Slow(), batch_size=8), step_sec=0.01, seconds=1)
    assert (found.feed_rate, found.by_feed, found.feed_bytes_per_sample) == (None, None, None)
    assert "a Slow is nothing that headrace opens: pack what it reads" in found.unknown
    assert found.by_loader.au < 1
    assert found.unknown in found.sentence


def test_steps_that_make_other_bytes_are_no_comparison(tmp_path):
    """Of a stream that was given it is said; one that was found is left out."""
    hr.pack(({"x": np.full(8, i, np.float32)} for i in range(64)), tmp_path, format="mds")
    other, found = ForeignFeed(DataLoader(Slow(), batch_size=8), None), Found(hr.Stream(hr.open(tmp_path)))
    assert feed_of(found, other, 1, may_be_unknown=False) is not None
    said = "a sample has 32 bytes in headrace's feed and 16 in the loader's batches"
    assert found.notes == (f"Not the same work: {said}.",)
    assert feed_of(found, other, 1, may_be_unknown=True) is None
    assert found.unknown == f"{said}: give dataset=, a Stream with the same steps"


def test_steps_that_the_feed_cannot_do_leave_it_unknown(tmp_path):
    hr.pack(({"x": np.full(4, i, np.float32)} for i in range(64)), tmp_path, format="mds")
    other, found = ForeignFeed(DataLoader(Slow(), batch_size=8), None), Found(hr.Stream(hr.open(tmp_path)).map(fails))
    assert feed_of(found, other, 1, may_be_unknown=True) is None
    assert found.unknown.startswith("its steps cannot be done by headrace's feed: ")
    with pytest.raises(hr.HeadraceError, match="no such thing"):
        feed_of(found, other, 1, may_be_unknown=False)


def fails(sample):
    raise LookupError("no such thing")


def jpeg(number):
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def batch_of(stream, size):
    with hr.Loader(stream, batch_size=size) as loader:
        return next(iter(loader))


def default_loader(path):
    return Image.open(path).convert("RGB")


class ImageFolder(Dataset):
    """As torchvision's: the same names, and what it does."""

    def __init__(self, root, transform=None, target_transform=None, loader=default_loader):
        self.root, self.transform, self.target_transform, self.loader = str(root), transform, target_transform, loader
        classes = sorted(path.name for path in root.iterdir())
        self.class_to_idx = {name: number for number, name in enumerate(classes)}
        self.samples = [(str(path), self.class_to_idx[path.parent.name]) for path in sorted(root.glob("*/*"))]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        path, target = self.samples[i]
        return self.transform(self.loader(path)), target


def halved(image):
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(12):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        (root / "ab"[number % 2] / f"{number}.{'png' if number % 3 else 'jpg'}").write_bytes(jpeg(number))
    return root


def test_images_in_folders_come_with_the_users_transform(images, tmp_path):
    folder = ImageFolder(images, halved)
    stream, note = stream_of(DataLoader(folder, batch_size=4), None, tmp_path)
    theirs = sorted((round(float(image.double().sum()), 3), target) for image, target in folder)
    ours = batch_of(stream, 12)
    assert note == ""
    assert ours["image"].shape == (12, 3, 8, 8)
    sums = [round(float(image.double().sum()), 3) for image in ours["image"]]
    assert sorted(zip(sums, ours["cls"].tolist(), strict=True)) == theirs


def test_functions_of_torchvisions_folders_alone_are_said(images, tmp_path):
    with pytest.raises(hr.HeadraceError, match="target_transform or its loader is a function of torchvision's"):
        stream_of(DataLoader(ImageFolder(images, halved, target_transform=str)), None, tmp_path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    hr.pack(({"png": jpeg(k), "cls": k % 3} for k in range(40)), folder, shard_size="8KiB")
    return [str(path) for path in sorted(folder.glob("*.tar"))]


@pytest.fixture(scope="module")
def webdataset():
    return pytest.importorskip("webdataset", reason="needs webdataset: pip install 'headrace[dev]'")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [slice(None), slice(1, None)], ids=["all of a folder", "more names than fit one"])
def test_shards_of_webdataset_come_with_its_own_functions(webdataset, shards, tmp_path, count):
    read = webdataset.WebDataset(shards[count], shardshuffle=False).shuffle(4).decode("rgb8").to_tuple("png", "cls")
    read = read.map_tuple(lambda pixels: pixels[:8].astype(np.float32), lambda cls: cls).batched(4)
    loader = webdataset.WebLoader(read, batch_size=None, num_workers=0)
    stream, _ = stream_of(loader, None, tmp_path)
    ours = batch_of(stream, len(stream.dataset))
    assert ours["0"].shape[1:] == (8, 16, 3)
    theirs = [(float(p.sum()), int(c)) for pixels, cls in loader for p, c in zip(pixels, cls, strict=True)]
    assert sorted(zip(ours["0"].sum((1, 2, 3)).tolist(), ours["1"].tolist(), strict=True)) == sorted(theirs)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [slice(None), slice(1, None)], ids=["all of a folder", "more names than fit one"])
def test_shards_of_webdataset_may_lie_where_the_process_is(webdataset, shards, tmp_path, monkeypatch, count):
    monkeypatch.chdir(os.path.dirname(shards[0]))
    here = [os.path.basename(path) for path in shards[count]]
    read = webdataset.WebDataset(here, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    stream, _ = stream_of(DataLoader(read, batch_size=4), None, tmp_path)
    assert len(stream.dataset) == len(list(read))


@pytest.mark.parametrize(
    ("name", "change"), [("select", lambda read: read.select(len)), ("islice", lambda read: read.slice(3))]
)
def test_stages_that_are_webdatasets_alone_are_named(name, change, webdataset, shards, tmp_path):
    read = change(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    with pytest.raises(hr.HeadraceError, match=f"its stage '{name}' is WebDataset's alone"):
        stream_of(DataLoader(read, batch_size=None), None, tmp_path)


def test_rows_of_a_hugging_face_dataset_are_packed_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'headrace[dev]'")
    rows = datasets.Dataset.from_dict({"x": [[float(i)] * 4 for i in range(20)], "n": list(range(20)), "t": ["a"] * 20})
    stream, note = stream_of(DataLoader(rows.with_format("torch", columns=["x", "n"]), batch_size=4), None, tmp_path)
    assert "of the first 20 rows, packed as Parquet" in note
    batch = batch_of(stream, 20)
    assert sorted(int(n) for n in batch["n"]) == list(range(20))
    assert "t" not in batch
    with pytest.raises(hr.HeadraceError, match=r"changed as it is read \(format 'custom'\)"):
        stream_of(DataLoader(rows.with_transform(lambda batch: batch)), None, tmp_path / "other")


def test_what_cannot_be_compared_is_refused(tmp_path):
    loader = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4)
    with pytest.raises(OptionError, match="run and step_sec both say"):
        hr.compare_feed(loader, run=tmp_path, step_sec=1.0)
    with pytest.raises(OptionError, match="seconds must be a number of at least 1: got 0"):
        hr.compare_feed(loader, seconds=0)
    with pytest.raises(OptionError, match="the list gives no batch"):
        hr.compare_feed([])
    with pytest.raises(OptionError, match="do not show how many samples they have: say batch_size="):
        hr.compare_feed([1.0])
    with pytest.raises(OptionError, match="dataset is a path, a URL, a headrace"):
        hr.compare_feed(loader, dataset=3)
    with hr.Monitor(tmp_path) as monitor, monitor.step():
        monitor.took(torch.ones(4))
    with pytest.raises(OptionError, match="at least 5 steps after the first one"):
        hr.compare_feed(loader, run=tmp_path)
