"""Ranks on machines of their own, as their networks show it, read one S3 server over links of 30 ms and 200 Mbit/s."""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import machine_rank
import pytest
import torch
from machines import DEVICE, SERVER, Machines, address, machines

import headrace as hr
from servers import BUCKET, aws_environment, npm_program
from waiting import DEADLINE_SEC, running

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
WORLD_SIZE = 4
DELAY_MS, RATE = 30, "200mbit"
STORE_PORT, RELAY_PORT, MASTER_PORT = 9000, 9001, 29500
URL = f"s3://{BUCKET}/packed"


@dataclass
class Site:
    """The machines, and the log of what the server was asked for."""

    machines: Machines
    log: Path

    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    store = npm_program("s3rver", "s3rver")
    with ExitStack() as stack:
        made = stack.enter_context(machines(WORLD_SIZE, DELAY_MS, RATE))
        store_options = ["-d", folder, "-a", "127.0.0.1", "-p", STORE_PORT, "--configure-bucket", BUCKET]
        stack.enter_context(running(made.command("server", store, *store_options), stdout=subprocess.DEVNULL))
        arguments = [RELAY_PORT, STORE_PORT, folder / "log", made.late_ms / 1000]
        relay = made.command("server", sys.executable, HERE / "relay.py", *arguments)
        relay = stack.enter_context(running(relay, stdout=subprocess.PIPE, text=True))
        assert relay.stdout.readline() == "ready\n"
        packing = made.command("server", sys.executable, HERE / "machine_rank.py", "pack", URL)
        subprocess.run(
            packing, check=True, env=os.environ | aws_environment("127.0.0.1", STORE_PORT, "S3RVER", "S3RVER")
        )
        yield Site(made, folder / "log")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same dataset on this machine's disk."""
    folder = tmp_path_factory.mktemp("local") / "packed"
    machine_rank.pack(folder)
    return folder


def run_ranks(site, world_size, what):
    """What each rank printed."""
    with ExitStack() as stack:
        command = (sys.executable, HERE / "machine_rank.py", what, URL)
        processes = [
            stack.enter_context(
                running(
                    site.machines.command(rank, *command),
                    env=os.environ | environment(rank, world_size),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(world_size)
        ]
        outputs = [process.communicate(timeout=3 * DEADLINE_SEC) for process in processes]
        assert [process.returncode for process in processes] == [0] * world_size, "\n".join(err for _, err in outputs)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def environment(rank, world_size):
    """What torchrun sets on a machine with one rank, and where the store is."""
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    names = {"MASTER_ADDR": address(0), "MASTER_PORT": MASTER_PORT, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": 1}
    store = aws_environment(SERVER, RELAY_PORT, "S3RVER", "S3RVER")
    return {name: str(value) for name, value in (numbers | names).items()} | store


def test_four_machines_get_the_same_global_batches_and_read_every_byte_once(site, local):
    before = len(site.requests())
    ranks = run_ranks(site, WORLD_SIZE, "stream")
    stream = machine_rank.described(local, epochs=machine_rank.EPOCHS)
    steps = ranks[0]["steps"]
    assert all(rank == ranks[0] for rank in ranks), "all ranks were told of the same batches, and end in the same state"
    assert [interleaved(shares) for shares in steps] == list(global_batches(stream))

    requests = site.requests()[before:]
    stored = stream.dataset.manifest.bytes * machine_rank.EPOCHS
    read = Counter()
    for rank in range(WORLD_SIZE):
        mine = [one for one in requests if one["client"] == address(rank)]
        read.update(read_by(rank, mine, stream))
        assert site.machines.bytes_through(rank) > sum(one["bytes"] for one in mine), "what was read came by the link"
    shown = f"{dict(read)} bytes, for {machine_rank.EPOCHS} epochs of {stream.dataset.manifest.bytes:,}"
    print(shown)
    assert stored * 0.99 < read["data"] <= stored, shown
    assert read.total() - read["ahead"] <= 1.05 * stored, shown


def interleaved(shares):
    """A global batch in the order of its positions."""
    return [key for turn in zip(*shares, strict=True) for key in turn]


def global_batches(stream):
    """The keys of each global batch, by arithmetic: nothing of it knows of ranks."""
    dataset, size = stream.dataset, machine_rank.GLOBAL_BATCH_SIZE
    for epoch in range(machine_rank.EPOCHS):
        places = stream.order(1).epoch(epoch).locate(torch.arange(len(dataset)).numpy())
        pairs = zip(places.piece.tolist(), places.sample.tolist(), strict=True)
        keys = [dataset.piece(piece).key(sample) for piece, sample in pairs]
        yield from (keys[first:last] for first, last in pairwise(range(0, len(keys) + 1, size)))


def read_by(rank, requests, stream):
    """Bytes by what they were read for.

    "data": the runs of a rank's own partitions, each once an epoch and all of them. "ahead": some of those of the epoch
    after the last, which is under way when the iteration ends. "probes": the three samples by which a loader learns
    shapes. "indexes", of which each is read once, and "listing": what it takes to open the dataset.
    """
    epochs = [Counter(ranges_of(stream, rank, epoch)) for epoch in range(machine_rank.EPOCHS + 1)]
    due, ahead, probes = sum(epochs[:-1], Counter()), epochs[-1], Counter(probed(stream.dataset))
    read, indexes = Counter(), Counter()
    for one in requests:
        name = Path(one["path"].partition("?")[0]).name
        kinds = [("data", due), ("ahead", ahead), ("probes", probes)]
        what = "listing"
        if name.endswith(".tar"):
            place = (name, one["range"])
            what, left = next((kind for kind in kinds if kind[1][place]), (None, None))
            assert what is not None, f"{place} is not rank {rank}'s, or was read twice"
            left[place] -= 1
        elif name.endswith(".idx"):
            what = "indexes"
            indexes[name] += 1
        read[what] += one["bytes"]
    assert due.total() == 0, "not read"
    assert set(indexes.values()) == {1}, indexes
    return read


def probed(dataset):
    for number in (0, len(dataset) // 2, len(dataset) - 1):
        yield from ranges(dataset, *dataset.pieces.find(number), 1)


def ranges_of(stream, rank, epoch):
    for run in stream.order(1).epoch(epoch).runs(rank, WORLD_SIZE):
        yield from ranges(stream.dataset, run.piece, run.first, run.last - run.first)


def ranges(dataset, piece, first, num_samples):
    """By what requests some samples of a piece are read: the shard's name and the Range."""
    shard = dataset.manifest.shards.file[dataset.pieces.place(piece)[0]]
    for part in dataset.piece(piece).ranges(first, first + num_samples):
        yield shard, f"bytes={part.offset}-{part.offset + part.length - 1}"


def test_two_machines_train_the_model_that_one_trains(site, local):
    found = run_ranks(site, 2, "train")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = machine_rank.train(str(local))
    torch.set_num_threads(threads)
    assert found[0] == found[1]
    weights, expected = (torch.tensor(one.pop("weights")) for one in (found[0], alone))
    assert found[0] == pytest.approx(alone, abs=1e-6)
    assert (weights - expected).abs().max() < 1e-6
    assert alone["samples"] == 2 * hr.open(local).manifest.samples
