"""The parts of the feed by themselves: slots, buffers, read-ahead, the line between the processes."""

import gc
import itertools
import os
import pickle
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import headrace as hr
from faulty import FaultyServer
from headrace.errors import LoaderError
from headrace.load.buffers import BufferPool
from headrace.load.channel import Channel, Frame, Kind, receive_frame, send_frame
from headrace.load.child import Feed
from headrace.load.job import MOST_REMOTE_READERS, num_lanes
from headrace.load.launch import exit_reason
from headrace.load.marks import Lane, Marks
from headrace.load.plan import planned_runs
from headrace.load.reader import LOT_RUNS, ReadAhead
from headrace.load.slots import MappedSlots, Slot, SlotPool
from headrace.telemetry import Meter
from waiting import wait_for


def test_a_message_arrives_whole_with_its_descriptors():
    left, right = (Channel(s) for s in socket.socketpair())
    reading, writing = os.pipe()
    body = {"array": np.arange(300_000)}
    sender = threading.Thread(target=lambda: left.send(body, fds=(writing,)))
    sender.start()
    message, (fd,) = right.receive()
    sender.join()
    assert np.array_equal(message["array"], body["array"])
    os.write(fd, b"x")
    assert os.read(reading, 1) == b"x"
    left.close()
    with pytest.raises(EOFError):
        right.receive()
    for one in (reading, writing, fd):
        os.close(one)
    right.close()


def test_frames_come_one_by_one_and_end_with_the_writer():
    reading, writing = os.pipe()
    frames = [Frame(Kind.START, 1, 2, 3), Frame(Kind.RELEASE, 7)]
    for frame in frames:
        send_frame(writing, frame)
    os.close(writing)
    assert [receive_frame(reading), receive_frame(reading)] == frames
    with pytest.raises(EOFError):
        receive_frame(reading)
    os.close(reading)


def test_a_frame_to_a_process_that_is_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    send_frame(writing, Frame(Kind.RELEASE, 0))
    os.close(writing)


def test_a_slot_grows_and_earlier_views_stay_valid():
    slot = Slot(0)
    offset, first = slot.allocate(1000)
    first[:] = 7
    at, big = slot.allocate(10 << 20)
    big[:] = 1
    assert (offset, at) == (0, 1024)
    assert first.tolist() == [7] * 1000
    first[0] = 9
    seen = MappedSlots(-1)
    seen.add(0, os.dup(slot.fd))
    assert seen.view(0, slot.size)[0] == 9, "the view from before the growth is of the same memory"
    seen.close()
    os.close(slot.fd)


def test_a_slot_comes_back_when_the_last_part_of_its_batch_dies():
    slot = Slot(3)
    slot.allocate(4096)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    slots = MappedSlots(writing)
    slots.add(3, os.dup(slot.fd))
    part = np.frombuffer(slots.lease(3, slot.size), np.uint8)[10:20]
    gc.collect()
    assert slots.num_held == 1
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    del part
    assert slots.num_held == 0
    assert receive_frame(reading) == Frame(Kind.RELEASE, 3)
    late = slots.lease(3, slot.size)
    slots.close()
    del late  # after the end nothing is written: the descriptor may be another file's by now
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    for fd in (reading, writing, slot.fd):
        os.close(fd)


def test_a_pool_without_a_free_slot_waits_until_told_to_give_up():
    pool = SlotPool(1)
    slot = pool.acquire(lambda: False)
    assert slot is not None
    assert pool.acquire(lambda: True) is None
    pool.release(slot.number)
    assert pool.acquire(lambda: False) is slot


def test_a_buffer_is_used_again_only_when_nobody_looks_at_it():
    pool = BufferPool(1 << 30)
    buffer = pool.take(100_000)
    address, view = buffer.ctypes.data, buffer.data[10:20]
    pool.give(buffer)
    del buffer
    other = pool.take(100_000)
    assert other.ctypes.data != address
    del view
    assert pool.take(100_000).ctypes.data == address


def test_a_pool_keeps_no_more_than_it_may():
    pool = BufferPool(100_000)
    first, second = pool.take(65_536), pool.take(65_536)
    addresses = {first.ctypes.data, second.ctypes.data}
    pool.give(first)
    pool.give(second)
    del first, second
    assert len({pool.take(65_536).ctypes.data} & addresses) == 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    target = tmp_path_factory.mktemp("parts") / "packed"
    hr.pack(({"bin": bytes([i % 256]) * 5000} for i in range(400)), target, shard_size="256KiB")
    return hr.open(target)


def test_read_ahead_stays_within_its_memory_and_goes_on_when_runs_are_let_go(dataset):
    loader = hr.Loader(
        hr.Stream(dataset, block_size=20_000, window=0, partitions=4), batch_size=40, rank=0, world_size=1
    )
    job, memory = loader._job(2), 500_000
    meters = {"read": Meter(), "verify": Meter()}
    reader = ReadAhead(dataset, planned_runs(job, 0, 0), memory, Marks.create(2).lanes[:2], meters)
    order = job.order.epoch(0)
    peak = 0
    for stop in range(40, 401, 40):
        places = order.locate(np.arange(stop - 40, stop))
        for run_id, piece, sample in zip(
            places.run.tolist(), places.piece.tolist(), places.sample.tolist(), strict=True
        ):
            run = reader.get((0, run_id), stop)
            assert run.shard_name == dataset.shard_name(piece)
            assert run.opened.sample(sample)["__key__"] == dataset.piece(piece).key(sample)
        peak = max(peak, reader._held_bytes)
        reader.release(stop)
    reader.stop()
    assert peak <= memory + 2 * 25_000, "only what a batch waits for may pass the bound"
    assert meters["verify"].read().items >= 400


@pytest.mark.parametrize("joins", [False, True])
def test_more_reads_in_flight_hold_no_more_than_the_memory(dataset, monkeypatch, joins):
    """What lies with the reader and what a slow store has under way, while the number of reads is doubled, and where
    neighbours are read by one request, so that it is not."""
    if not joins:
        monkeypatch.setattr("headrace.load.reader.LOOK_SHARE", 0)
    folder, under_way, counting = Path(dataset.url), Counter(), threading.Lock()
    files = {f"/d/{path.name}": path.read_bytes() for path in folder.iterdir()}

    def count(num_bytes):
        with counting:
            under_way["bytes"] += num_bytes

    def slow(handler):
        if handler.span() is None or not handler.path.endswith(".tar"):
            return False
        first, end = handler.span()
        count(end - first)
        time.sleep(0.02)  # a store's answer
        count(first - end)  # before it comes, or what has come would count twice
        return False

    with FaultyServer(files) as server:
        server.always = slow
        remote = hr.open(f"{server.url}/d")
        stream = hr.Stream(remote, block_size=20_000, window=0, partitions=4, epochs=None)
        memory, batch_bytes = 1_000_000, 40 * 5_500
        job = hr.Loader(stream, batch_size=40, rank=0, world_size=1, memory=memory)._job(2)
        lanes = Marks.create(num_lanes(job)).lanes
        meters = {"read": Meter(), "verify": Meter()}
        reader = ReadAhead(remote, planned_runs(job, 0, 0), job.memory_bytes, lanes[:MOST_REMOTE_READERS], meters)
        began, peak = reader.num_reading, 0
        for stop in itertools.count(40, 40):
            epoch, last = divmod(stop - 40, 400)
            for run_id in job.order.epoch(epoch).locate(np.arange(last, last + 40)).run.tolist():
                reader.get((epoch, run_id), stop)
            with reader._changed, counting:
                loaded = sum(run.num_bytes for run in reader._loaded.values() if run is not None)
                peak = max(peak, loaded + under_way["bytes"])
            reader.release(stop)
            if (joins or reader.num_reading > began) and meters["read"].read().items > 8_000:
                break
        reader.stop()
    assert memory / 2 < peak <= memory + batch_bytes, "only what a batch waits for may pass the bound"


def test_read_ahead_counts_what_it_really_holds(tmp_path):
    """Windows of tokens are far smaller than the blocks that their checksums cover."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, 2_000_000).astype(np.uint16)
    hr.pack([{"tokens": tokens}], tmp_path / "tokens", format="tokens")
    windows = hr.open(tmp_path / "tokens").windows(129, 128)
    loader = hr.Loader(hr.Stream(windows, block_size=300), batch_size=48, rank=0, world_size=1)
    meters = {"read": Meter(), "verify": Meter()}
    memory = 16 << 20
    reader = ReadAhead(windows, planned_runs(loader._job(2), 0, 0), memory, Marks.create(1).lanes[:1], meters)

    def is_full():
        with reader._changed:
            return not reader._may_read(reader._upcoming.first) and None not in reader._loaded.values()

    wait_for(is_full, "the reader to have what it may hold")
    reader.stop()
    held = sum(run.num_bytes for run in reader._loaded.values() if run is not None)
    assert memory / 2 < held <= memory + LOT_RUNS * (128 << 10), "one lot may pass the bound, by what it could not know"


def test_a_stopped_reader_lets_its_consumer_go(dataset):
    loader = hr.Loader(hr.Stream(dataset), batch_size=40, rank=0, world_size=1)
    reader = ReadAhead(dataset, iter(()), 1000, Marks.create(1).lanes[:1], {"read": Meter(), "verify": Meter()})
    stopper = threading.Timer(0.1, reader.stop)
    stopper.start()
    assert reader.get((0, 0), 40) is None
    stopper.join()
    assert loader.stream.dataset is dataset


def test_what_goes_wrong_where_a_pipeline_begins_is_told_and_the_process_goes_on(dataset, monkeypatch):
    sent = []
    job = hr.Loader(hr.Stream(dataset), batch_size=4)._job(1)
    lanes = [Lane.unseen() for _ in range(num_lanes(job))]
    feed = Feed(job, SimpleNamespace(send=lambda delivery, fds: sent.append(delivery)), SimpleNamespace(lanes=lanes))
    with monkeypatch.context() as patch:
        patch.setattr("headrace.load.pipeline.planned_runs", lambda *_: divmod(1, 0))
        feed.obey(Frame(Kind.START, 1, 0, 0))
    assert isinstance(sent[0].error, LoaderError)
    assert "ZeroDivisionError" in str(sent[0].error)
    feed.obey(Frame(Kind.START, 2, 0, 0))
    wait_for(lambda: len(sent) > 1, "a batch")
    assert (sent[1].generation, sent[1].error) == (2, None)
    feed._pipeline.stop()
    for _ in range(job.threads):
        feed._workers.submit(None)


def test_a_stream_is_a_value(dataset):
    """It can be printed, compared and pickled, and refuses what is out of range."""
    stream = hr.Stream(dataset, seed=2).decode()
    assert stream == hr.Stream(dataset, seed=2).decode()
    assert stream != hr.Stream(dataset, seed=3).decode()
    assert "seed=2" in repr(stream)
    assert pickle.loads(pickle.dumps(stream)) == stream
    assert hr.Stream(hr.open(dataset.url), seed=2).decode() == stream
    assert len({stream, stream.map(str.upper, shapes={"x": None})}) == 2
    for options in ({"seed": -1}, {"block_size": 0}, {"window": -1}, {"partitions": 0}, {"epochs": 0}):
        with pytest.raises(hr.errors.OptionError, match=next(iter(options))):
            hr.Stream(dataset, **options)
    with pytest.raises(hr.errors.OptionError, match=r"a stream needs a dataset"):
        hr.Stream("a path")


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (-9, "killed by SIGKILL"), (None, "still running")])
def test_how_a_process_ended_in_words(code, words):
    assert exit_reason(code) == words
