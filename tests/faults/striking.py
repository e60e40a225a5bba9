"""What befalls a run in the middle of its epoch, and what it comes to.

A scenario is a function of a `Run` that streams an epoch, has something happen, and returns the `Result`.
"""

import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from feeding import MIDDLE, Fed
from places import Place

from headrace.errors import DamagedError, StorageError
from waiting import wait_for

GOES_ON, STOPS = "goes on", "stops"
HANG_SEC = 2.0


@dataclass
class Run:
    """One cell of the matrix, under way."""

    place: Place
    request: pytest.FixtureRequest

    def fixture(self, name):
        return self.request.getfixturevalue(name)


@dataclass
class Result:
    """What a run came to."""

    outcome: str
    """GOES_ON: the trainer noticed nothing. STOPS: one error, and what was there before went on when it was mended."""
    recover_sec: float
    """GOES_ON: the longest wait for a batch after the fault. STOPS: from the mending to the next batch."""
    batches: list
    """All that was given, in order, before and after."""
    error: str = ""


class Countdown:
    """Faults of a server that strike the next requests of files with this ending, one each, and then no more."""

    def __init__(self, *faults, ending=""):
        self.left, self.broken = list(faults), []
        self._ending, self._lock = ending, threading.Lock()

    def __call__(self, handler):
        with self._lock:
            fault = self.left.pop(0) if self.left and handler.path.endswith(self._ending) else None
        try:
            return fault is not None and fault(handler)
        except OSError:  # the client went away
            raise
        except Exception as err:  # it would be taken for one more fault of the server's
            self.broken.append(err)
            raise


def passing(*faults, ending=""):
    """The next requests of files with this ending are answered by these faults, and the store is well again."""

    def scenario(run):
        countdown = Countdown(*faults, ending=ending)

        def strike():
            run.place.empty_cache()
            run.place.server.always = countdown

        with run.place.loader() as loader:
            fed = Fed().take(loader, {MIDDLE: strike})
        assert (countdown.left, countdown.broken) == ([], []), "not all of it happened"
        return Result(GOES_ON, fed.longest_wait_sec, fed.batches)

    return scenario


def lasting(strike, mend, error, **environment):
    """`strike(place)` is for good, until `mend(place)`: the run ends with the error, and another goes on."""

    def scenario(run):
        for name, value in environment.items():
            run.fixture("monkeypatch").setenv(name, value)
        fed = Fed()
        with run.place.loader() as loader:
            with pytest.raises((DamagedError, StorageError), match=error) as caught:
                fed.take(loader, {MIDDLE: lambda: strike(run.place)})
            state = json.dumps(loader.state_dict())
        mend(run.place)
        return Result(STOPS, *resumed(run.place, state, fed.batches), str(caught.value))

    return scenario


def resumed(place, state, before):
    """Go on from a state that was saved as JSON: how long the first batch took, and all batches."""
    began, first_sec = time.monotonic(), []
    with place.loader() as loader:
        loader.load_state_dict(json.loads(state))
        fed = Fed(list(before)).take(loader, {len(before) + 1: lambda: first_sec.append(time.monotonic() - began)})
    return first_sec[0], fed.batches


# The local disk.


def flip_each(place):
    """Turn one bit over in the middle of each shard; a second time sets it right."""
    for path in place.shards():
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))


def cut_each(place):
    """Cut a quarter off each shard, and keep it beside."""
    for path in place.shards():
        shutil.copy(path, path.with_suffix(".whole"))
        os.truncate(path, path.stat().st_size * 3 // 4)


def restore_each(place):
    for path in place.shards():
        path.with_suffix(".whole").replace(path)


def lengthen_each(run):
    """Add to each shard: nothing reads that."""

    def strike():
        for path in run.place.shards():
            with path.open("ab") as file:
                file.write(bytes(5000))

    with run.place.loader() as loader:
        fed = Fed().take(loader, {MIDDLE: strike})
    return Result(GOES_ON, fed.longest_wait_sec, fed.batches)


# A store, for good.


def answering(fault):
    """From now on every request meets the fault."""

    def strike(place):
        place.empty_cache()
        place.server.always = fault

    return strike


def heal(place):
    place.server.always = None


def flip_middle(handler):
    """Turn one bit over in the middle of the shard, wherever it is asked for."""
    at = len(handler.content) // 2
    first, end = handler.span() or (0, len(handler.content))
    if not handler.path.endswith(".tar") or not first <= at < end:
        return False
    body = bytearray(handler.content[first:end])
    body[at - first] ^= 4
    return handler.send(206, body, promised=(first, end))


# The cache.


def expired(run):
    """What is in the cache is removed, damaged and cut under the reader, and at last the cache's own folder goes."""

    def befalling(deed):
        def strike():
            for block in wait_for(run.place.blocks, "blocks in the cache"):
                with suppress(FileNotFoundError):  # the reader replaces those that are unsound
                    deed(block)

        return strike

    def remove_all():
        wait_for(lambda: shutil.rmtree(run.place.cache, ignore_errors=True) or not run.place.cache.exists(), "its end")

    strikes = [*map(befalling, (Path.unlink, damage_block, cut_block)), remove_all]
    strikes = {MIDDLE + 4 * number: strike for number, strike in enumerate(strikes)}
    with run.place.loader() as loader:
        fed = Fed().take(loader, strikes)
    return Result(GOES_ON, fed.longest_wait_sec, fed.batches)


def damage_block(path):
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(10))


def cut_block(path):
    os.truncate(path, path.stat().st_size // 2)


def full_cache_disk(run):
    """The disk of the cache is full from now on."""
    run.place.cache = disk = run.fixture("roomy_disk")

    def strike():
        run.place.empty_cache()
        fill(disk / "filler")

    with run.place.loader() as loader:
        fed = Fed().take(loader, {MIDDLE: strike})
    num_files = len(list(run.place.server.files))
    assert len(run.place.blocks()) < num_files / 2, "there was room for few of them"
    return Result(GOES_ON, fed.longest_wait_sec, fed.batches)


def fill(path):
    """Write until there is no room."""
    with open(path, "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


# The loader process.


def killed_loader(run):
    """The loader process is killed, and its successor."""
    with run.place.loader() as loader:
        strikes = {MIDDLE + 6 * n: lambda: os.kill(loader._client.pid, signal.SIGKILL) for n in range(2)}
        fed = Fed().take(loader, strikes)
        assert [one.reason for one in loader.restarts] == ["killed by SIGKILL"] * 2
    return Result(GOES_ON, fed.longest_wait_sec, fed.batches)


def stopped_loader(run):
    """The loader process is stopped; where there is a network, while it waits for the store."""
    with run.place.loader(hang_timeout_sec=HANG_SEC) as loader:

        def stop(*_):
            os.kill(loader._client.pid, signal.SIGSTOP)
            return False

        def strike():
            if run.place.server is None:
                stop()
            else:
                run.place.empty_cache()
                run.place.server.always = Countdown(stop)

        fed = Fed().take(loader, {MIDDLE: strike})
        assert {one.reason for one in loader.restarts} == {f"hung for {HANG_SEC:g} s"}
    return Result(GOES_ON, fed.longest_wait_sec, fed.batches)
