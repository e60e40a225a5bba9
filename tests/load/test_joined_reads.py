"""From a store, runs that lie side by side are read by one request; the samples are the same, whatever goes wrong."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from faulty import FaultyServer
from headrace.load.buffers import BufferPool
from headrace.load.marks import Lane
from headrace.load.plan import planned_runs
from headrace.load.reader import ReadAhead
from headrace.load.runs import PlannedRun, RunReader
from headrace.load.upcoming import Upcoming
from headrace.order import Run
from headrace.telemetry import Meter


@st.composite
def plans(draw):
    """Runs of two pieces, none empty, in any order of need."""
    runs = []
    for piece in (0, 1):
        ends = np.cumsum(draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))).tolist()
        runs += [(piece, first, last) for first, last in zip([0, *ends], ends, strict=False)]
    order = draw(st.permutations(runs))
    return [
        PlannedRun((0, number), Run(number, *run, number, number + 1), number, number + 1)
        for number, run in enumerate(order)
    ]


@given(plans(), st.integers(1, 40), st.data())
def test_neighbours_are_those_upcoming_within_the_look_ahead(plan, look_bytes, data):
    upcoming = Upcoming(iter(plan), look_bytes, lambda run: run.last - run.first)
    taken = []
    while first := upcoming.first:
        rest = [one for one in plan if one not in taken]
        assert first == rest[0], "in the order of need"
        soon, num_bytes = [], 0
        for one in rest:
            if soon and num_bytes >= look_bytes:
                break
            soon.append(one)
            num_bytes += one.run.last - one.run.first
        anchor = data.draw(st.sampled_from(plan))
        places = {(one.run.piece, one.run.first): one for one in soon}
        ends = {(one.run.piece, one.run.last): one for one in soon}
        assert upcoming.behind(anchor) == places.get((anchor.run.piece, anchor.run.last))
        assert upcoming.before(anchor) == ends.get((anchor.run.piece, anchor.run.first))
        one = data.draw(st.sampled_from(soon))
        upcoming.take(one)
        taken.append(one)
    assert len(taken) == len(plan)


KINDS = ("tar", "tokens", "mds")
DATA = (".tar", ".bin", ".mds")


@pytest.fixture(scope="module", params=KINDS)
def packed(request, tmp_path_factory):
    """Some 2 MB in small runs: of a few samples each, whose checksums, for tokens, cover more than they hold."""
    target = tmp_path_factory.mktemp("joined") / "packed"
    rng = np.random.default_rng(0)
    if request.param == "tokens":
        hr.pack([{"tokens": rng.integers(0, 60_000, 1_000_000).astype(np.uint16)}], target, format="tokens")
    else:
        samples = ({"bin": rng.bytes(900 + i % 300), "cls": i} for i in range(3000))
        hr.pack(samples, target, format=request.param, shard_size="512KiB")
    return target


def opened(url, kind):
    return hr.open(url).windows(129, 128) if kind == "tokens" else hr.open(url)


def streamed(dataset):
    return hr.Stream(dataset, seed=3, epochs=2, block_size=8_000)


def batches(dataset, **options):
    with hr.Loader(streamed(dataset), batch_size=48, memory="16MiB", threads=2, **options) as loader:
        return [
            {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}
            for batch in loader
        ]


def served(packed):
    return {f"/d/{path.name}": path.read_bytes() for path in packed.iterdir()}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_batches_come_by_larger_requests(packed, request, processes):
    kind = request.node.callspec.params["packed"]
    with FaultyServer(served(packed)) as server:
        got = batches(opened(f"{server.url}/d", kind), processes=processes)
        sizes = [span_bytes(asked) for _, path, asked in server.requests if Path(path).suffix in DATA and asked]
    local = opened(packed, kind)
    assert got == batches(local)
    order = hr.Loader(streamed(local), batch_size=48)._order
    run_bytes = local.pieces.bytes.sum() / sum(1 for _ in order.epoch(0).runs(0, 1))
    assert np.mean(sizes) > 1.5 * run_bytes


def span_bytes(asked):
    first, last = asked.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def test_what_lies_between_chosen_samples_is_not_read(packed, request):
    """Neighbours in a selection may lie far apart in their shard."""
    kind = request.node.callspec.params["packed"]
    with FaultyServer(served(packed)) as server:
        remote = opened(f"{server.url}/d", kind)
        chosen = remote.select(list(range(0, len(remote), 200)))
        server.requests.clear()
        with hr.Loader(hr.Stream(chosen), batch_size=5, memory="64MiB", drop_last=False) as loader:
            keys = [key for batch in loader for key in batch["__key__"]]
        sizes = [span_bytes(asked) for _, path, asked in server.requests if Path(path).suffix in DATA and asked]
    assert len(keys) == len(chosen)
    assert max(sizes) <= 2 * (128 << 10), "a sample, or the blocks of tokens that two lie in"


def test_a_store_that_refuses_is_asked_once_for_runs_that_are_read_together(packed, request):
    kind = request.node.callspec.params["packed"]
    with FaultyServer(served(packed)) as server:
        remote = opened(f"{server.url}/d", kind)
        reader = RunReader(remote, BufferPool(1 << 20), {"read": Meter(), "verify": Meter()})
        runs = [Run(number, 0, 3 * number, 3 * number + 3, 0, 1) for number in range(10)]
        assert [run.error for run in reader.load_all(runs, Lane.unseen())] == [None] * 10
        server.requests.clear()
        server.always = lambda handler: handler.refuse(403)
        errors = {str(run.error) for run in reader.load_all(runs, Lane.unseen())}
        reader.close()
    assert len(errors) == len(server.requests) == 1
    assert "403" in errors.pop()


def test_the_plan_is_made_ahead_for_as_much_as_the_dataset_has(packed, request):
    kind = request.node.callspec.params["packed"]
    with FaultyServer(served(packed)) as server:
        remote = opened(f"{server.url}/d", kind)
        job = hr.Loader(streamed(remote), batch_size=48, memory="2GiB", rank=0, world_size=1)._job(1)
        made = []
        plan = (made.append(one) or one for one in planned_runs(job, 0, 0))
        meters = {"read": Meter(), "verify": Meter()}
        lanes = [Lane.unseen() for _ in range(2)]
        reader = ReadAhead(remote, itertools.islice(plan, 100_000), 2 << 30, lanes, meters)
        at_first = len(made)
        reader.stop()
    runs_of_an_epoch = sum(1 for _ in job.order.epoch(0).runs(0, 1))
    assert at_first <= 4 * runs_of_an_epoch


def test_bytes_broken_on_the_way_are_read_again(packed, request):
    kind = request.node.callspec.params["packed"]
    broken = []

    def garbled(handler):
        span = handler.span()
        if span is None or len(broken) == 5 or span[1] - span[0] < 60_000:
            return False
        broken.append(span)
        content = bytearray(handler.content)
        content[(span[0] + span[1]) // 2] ^= 1
        handler.send(206, bytes(content[slice(*span)]), promised=span)
        return True

    with FaultyServer(served(packed)) as server:
        server.always = garbled
        got = batches(opened(f"{server.url}/d", kind))
    assert broken
    assert got == batches(opened(packed, kind))
