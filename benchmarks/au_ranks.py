"""Ranks that are fed and compute by sleeping: processes of their own that begin together and meet after every step.

What feeds them is a function (a place, the batch size, the rank's share) -> an endless iterator of batches, which each
rank calls for itself.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from raw_peers import Share

LIMIT_SEC = 240
"""For ranks to start, be fed and end, where nothing else is said. Those that take longer are killed."""
WARM_UP_SEC = 10
"""For the first batches: a feed that is slower has used up by then what it read ahead."""
END_SEC = 5
"""For ranks that have answered to end by themselves."""
CONTEXT = multiprocessing.get_context("spawn")
Feed = Callable[[str, int, Share], Iterator[Any]]


class FeedError(RuntimeError):
    """Ranks did not get to their end, with the reason."""


@dataclass(frozen=True)
class Task:
    """What each rank does."""

    feed: Feed
    place: str
    batch_size: int
    warm_up: int
    """Batches taken first, without computing, so that what was read ahead is used up and memory has been touched."""
    steps: int
    """Those that are measured."""
    compute_sec: float = 0.0
    """The computation of a step; 0 takes batches as fast as they come."""
    limit_sec: float = math.inf
    """Where nothing is computed: the end, though fewer batches came."""


def run_ranks(task: Task, shares: list[Share], limit_sec: float = LIMIT_SEC) -> list[float]:
    """Each rank's AU, 0 to 1; where nothing is computed, samples/s.

    Raises FeedError where a rank fails, or all of them together take longer than `limit_sec`.
    """
    barrier, port = CONTEXT.Barrier(len(shares)), free_port()
    ranks: dict[Connection, SpawnProcess] = {}
    with tempfile.TemporaryDirectory() as scratch:  # for all that loaders leave in temporary folders
        try:
            for share in shares:
                receiver, sender = CONTEXT.Pipe(duplex=False)
                environment = rank_environment(share, port) | {"TMPDIR": scratch}
                ranks[receiver] = CONTEXT.Process(target=run_rank, args=(task, share, environment, barrier, sender))
                ranks[receiver].start()
                sender.close()
            return _answers(ranks, limit_sec)
        finally:
            for receiver, process in ranks.items():
                _end(process)
                receiver.close()


def _answers(ranks: dict[Connection, SpawnProcess], limit_sec: float) -> list[float]:
    answers: dict[Connection, float] = {}
    deadline = time.monotonic() + limit_sec
    while len(answers) < len(ranks):
        ready = wait(set(ranks) - set(answers), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise FeedError(f"no end after {limit_sec:g} s")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                answer = receiver.recv()
            except EOFError:
                raise FeedError("a rank ended without an answer") from None
            if isinstance(answer, str):
                raise FeedError(answer)
            answers[receiver] = answer
    last = time.monotonic() + END_SEC
    for process in ranks.values():
        wait([process.sentinel], max(0.0, last - time.monotonic()))
    return [answers[receiver] for receiver in ranks]


def _end(process: SpawnProcess) -> None:
    """Kill what is left of a rank, with the workers that it started, which are in its group.

    The process is waited for last: until then nobody else is given its number.
    """
    pid = process.pid
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):  # it has no group yet
        os.killpg(pid, signal.SIGKILL)
    process.kill()
    process.join()


def run_rank(task: Task, share: Share, environment: dict[str, str], barrier: Any, answer: Connection) -> None:
    """In the rank's process."""
    os.setpgid(0, 0)
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # for its workers, as in a script that was not spawned
    try:
        batches = task.feed(task.place, task.batch_size, share)
        answer.send(measure(task, batches, barrier))
    except Exception as err:
        answer.send(f"{type(err).__name__}: {err}".splitlines()[0][:300])
        barrier.abort()  # the others need not wait


def rank_environment(share: Share, port: int) -> dict[str, str]:
    """What torchrun would tell a rank."""
    rank, world_size = str(share.rank), str(share.world_size)
    return {
        "RANK": rank,
        "GLOBAL_RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def measure(task: Task, batches: Iterator[Any], barrier: Any) -> float:
    """AU of this rank, or samples/s where nothing is computed."""
    deadline = time.monotonic() + WARM_UP_SEC
    for _ in range(task.warm_up):
        next(batches)
        if time.monotonic() > deadline:
            break
    barrier.wait(LIMIT_SEC)
    return utilization(task, batches, barrier) if task.compute_sec else delivered(task, batches)


def utilization(task: Task, batches: Iterator[Any], barrier: Any) -> float:
    """Compute time over wall time, the first step not counted; after each step all ranks meet, as to add gradients."""
    began = 0.0
    for number in range(task.steps + 1):
        batch = next(batches)
        time.sleep(task.compute_sec)
        del batch
        barrier.wait(LIMIT_SEC)
        if number == 0:
            began = time.perf_counter()
    return task.steps * task.compute_sec / (time.perf_counter() - began)


def delivered(task: Task, batches: Iterator[Any]) -> float:
    """Samples/s of as many batches as come."""
    began, number = time.perf_counter(), 0
    while True:
        next(batches)
        number += 1
        seconds = time.perf_counter() - began
        if seconds > task.limit_sec or number == task.steps:
            return number * task.batch_size / seconds


def null_feed(place: str, batch_size: int, share: Share) -> Iterator[Any]:
    """One batch that is in memory already, again and again: what sleeping and meeting alone make of AU."""
    batch = [b""] * batch_size
    while True:
        yield batch


def free_port() -> int:
    """A port of loopback that nobody listened at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
