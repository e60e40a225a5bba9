"""Processes that end or hang are replaced and the batches stay the same; a sample that kills is named (law 7)."""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import DamagedError, LoaderError, OptionError, TransformError
from headrace.load.device import DeviceQueue
from headrace.load.healing import Cases
from headrace.load.marks import Doing, Mark, Marks
from headrace.load.process import START_WITHIN_SEC, Process, ProcessLostError
from headrace.load.workers import Caution
from waiting import DEADLINE_SEC, alive, family, wait_gone

NUM_SAMPLES = 200
VICTIM = 30
KEYS = [f"{i:06d}" for i in range(NUM_SAMPLES)]
HANG_SEC = 3.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    target = tmp_path_factory.mktemp("healing") / "packed"
    hr.pack(({"__key__": key, "npy": np.full(8, i, np.float32)} for i, key in enumerate(KEYS)), target, shuffle=False)
    return hr.open(target)


@pytest.fixture(scope="module")
def stream(dataset):
    return hr.Stream(dataset, shuffle=False)


@pytest.fixture(scope="module")
def undisturbed(dataset):
    """The batches of two shuffled epochs."""
    with hr.Loader(noisy(dataset), batch_size=8) as loader:
        return [content(batch) for batch in loader]


def noisy(dataset):
    return hr.Stream(dataset, seed=5, epochs=2).decode().map(with_noise)


def with_noise(sample, rng):
    return {**sample, "noise": rng.random()}


def content(batch):
    return batch["__key__"], batch["npy"].tolist(), batch["noise"].tolist()


def number(sample):
    return int(sample["__key__"])


def keys_of(loader):
    return [key for batch in loader for key in batch["__key__"]]


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_loader_process_costs_no_batch(dataset, undisturbed, processes, hold):
    """Between batches and while the trainer waits; batches that are held stay as they are, and meters never go back."""
    rng = np.random.default_rng(2 * processes + hold)
    kills = {int(step): float(rng.uniform(0, 0.3)) for step in rng.choice(len(undisturbed), 3, replace=False)}
    found, timers, items = [], [], [0]
    with hr.Loader(noisy(dataset), batch_size=8, processes=processes) as loader:
        for step, batch in enumerate(loader):
            found.append(batch if hold else content(batch))
            items.append(loader.meters()["stages"]["transform"]["items"])
            if step in kills:
                timers.append(threading.Timer(kills[step], kill, [loader._client.pid]))  # to hit different moments
                timers[-1].start()
        for timer in timers:
            timer.join()
        assert ([content(batch) for batch in found] if hold else found) == undisturbed
        assert len(loader.restarts) == loader.meters()["restarts"] <= len(kills)
        assert all((one.process, one.reason) == ("loader", "killed by SIGKILL") for one in loader.restarts)
        assert items == sorted(items)


@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_that_are_killed_as_they_start_are_replaced(dataset, undisturbed, processes):
    """Three in a row, each as soon as it is there."""
    loader = hr.Loader(noisy(dataset), batch_size=8, processes=processes)
    killed = set()

    def kill_each():
        while len(killed) < 3:
            client = loader._client
            if client is not None and client.pid not in killed:
                killed.add(client.pid)
                kill(client.pid)
            time.sleep(0.001)

    killer = threading.Thread(target=kill_each)
    killer.start()
    with loader:
        assert [content(batch) for batch in loader] == undisturbed
        killer.join()
        assert [(one.epoch, one.step) for one in loader.restarts] == [(0, 0)] * 3


def test_killed_worker_processes_cost_no_batch(dataset, undisturbed):
    with hr.Loader(noisy(dataset), batch_size=8, processes=2) as loader:
        found = []
        for step, batch in enumerate(loader):
            found.append(content(batch))
            if step in (3, 20):
                for pid in family(loader._client.pid)[1:]:
                    kill(pid)
        assert found == undisturbed
        assert {one.process for one in loader.restarts} == {"worker"}


class Unreadable(Exception):
    """Pickles, and does not unpickle: it is made of two values, and keeps one."""

    def __init__(self, one, other):
        super().__init__(one)


def with_number(sample, refused):
    number = int(sample["__key__"])
    return {"__key__": sample["__key__"], "n": number, "what": Unreadable(1, 2) if number == refused else None}


@pytest.mark.timeout(120)
def test_an_answer_that_cannot_be_read_is_not_followed_by_those_of_other_orders(tmp_path):
    """Orders are in flight when one fails: what they get is not taken for the answers to later ones."""
    hr.pack(({"__key__": f"{i:06d}", "bin": b"x" * 100} for i in range(960)), tmp_path / "d")
    stream = hr.Stream(hr.open(tmp_path / "d"), seed=1).map(partial(with_number, refused=500), shapes={"what": None})
    with hr.Loader(stream, batch_size=48, processes=2) as loader:
        for _ in range(3):
            with pytest.raises(hr.HeadraceError):
                pairs_of(loader)


def pairs_of(loader):
    for batch in loader:
        assert [int(key) for key in batch["__key__"]] == list(batch["n"])


def test_nothing_is_left_of_processes_that_were_replaced(stream):
    """Law 9: neither descriptors nor processes, whatever the number of replacements."""

    def possessions():
        gc.collect()
        return set(os.listdir("/proc/self/fd")), set(family(os.getpid()))

    with hr.Loader(stream, batch_size=4) as loader:
        keys_of(loader)  # what is loaded once is loaded
        loader.close()
        before, pids = possessions(), set()
        for step, batch in enumerate(loader):
            assert batch["__key__"] == KEYS[4 * step : 4 * step + 4]
            pids.update(family(loader._client.pid))
            if step in (2, 20, 40):
                kill(loader._client.pid)
        del batch
        assert len(loader.restarts) == 3
        loader.close()
        wait_gone(pids)
        assert [now - then for now, then in zip(possessions(), before, strict=True)] == [set(), set()]


def die(how):
    if how == "exits":
        os._exit(3)
    if how == "crashes":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


HOW = {"exits": "exit code 3", "crashes": "killed by SIGSEGV", "is killed": "killed by SIGKILL"}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_a_sample_that_processes_die_of_is_skipped_by_name(stream, how, processes):
    def fatal(sample):
        if number(sample) == VICTIM:
            die(how)
        return sample

    options = {"threads": 3, "processes": processes, "on_error": "skip"}
    with hr.Loader(stream.map(fatal), batch_size=4, **options) as loader:
        assert keys_of(loader) == KEYS[:VICTIM] + KEYS[VICTIM + 1 :]
        (skipped,) = loader.skipped
        assert skipped.key == KEYS[VICTIM]
        process = "loader" if processes == 1 else "worker"
        times = 3 if how == "is killed" else 2
        assert f"the {process} process did not survive it, {times} times ({HOW[how]}, then {HOW[how]}" in skipped.reason
        assert ("out of memory" in skipped.reason) == (how == "is killed")
        assert [(one.process, one.reason) for one in loader.restarts] == [(process, HOW[how])] * times
        assert all(VICTIM in one.positions for one in loader.restarts)
        assert loader.restarts[-1].positions == (VICTIM,), "alone at last"
        assert all(("in die" in one.stacks) == (how == "crashes") for one in loader.restarts)


def test_a_process_with_a_share_of_the_partitions_that_dies_of_a_sample_is_replaced(dataset):
    """Where samples are shuffled each process reads its own partitions, and its successor goes on in them."""

    def fatal(sample):
        if number(sample) == VICTIM:
            die("exits")
        return sample

    stream = hr.Stream(dataset, seed=3)
    with hr.Loader(stream, batch_size=4) as loader:
        expected = keys_of(loader)
    expected.remove(KEYS[VICTIM])
    with hr.Loader(stream.map(fatal), batch_size=4, processes=3, on_error="skip") as loader:
        assert keys_of(loader) == expected
        assert [one.key for one in loader.skipped] == [KEYS[VICTIM]]
        assert [(one.process, one.reason) for one in loader.restarts] == [("worker", "exit code 3")] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_that_processes_die_of_is_an_error_in_the_place_of_its_batch(stream, processes):
    def fatal(sample):
        if number(sample) == VICTIM:
            os._exit(3)
        return sample

    with hr.Loader(stream.map(fatal), batch_size=4, processes=processes) as loader:
        seen = []
        with pytest.raises(TransformError, match=rf"sample '{KEYS[VICTIM]}': the \w+ process did not survive it, 2 "):
            seen.extend(key for batch in loader for key in batch["__key__"])
        assert seen == KEYS[: VICTIM - VICTIM % 4]
        assert len(loader.restarts) == 2


def test_samples_that_processes_die_of_count_against_max_skipped(stream):
    def fatal(sample):
        if number(sample) in (VICTIM, VICTIM + 1, VICTIM + 40):
            os._exit(3)
        return sample

    options = {"on_error": "skip", "max_skipped": 2, "max_restarts": 1}
    with hr.Loader(stream.map(fatal), batch_size=4, **options) as loader:
        with pytest.raises(DamagedError, match=rf"3 were, the last because sample '{KEYS[VICTIM + 40]}'"):
            list(loader)
        assert [one.key for one in loader.skipped] == [KEYS[n] for n in (VICTIM, VICTIM + 1, VICTIM + 40)]


def test_a_sample_that_processes_die_of_when_it_is_tried_for_its_shape_is_skipped_too(stream):
    """The first sample is one of the three that are tried."""

    def fatal(sample):
        if number(sample) == 0:
            os._exit(3)
        return {"x": number(sample)}

    with hr.Loader(stream.map(fatal), batch_size=4, on_error="skip") as loader:
        batches = list(loader)
    assert torch.cat([batch["x"] for batch in batches]).tolist() == list(range(1, NUM_SAMPLES))
    assert [one.key for one in loader.skipped] == [KEYS[0]]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_at_which_processes_hang_is_skipped_with_their_stacks_on_record(stream, processes):
    def sleep_for_ever(sample):
        while number(sample) == VICTIM:
            time.sleep(600)
        return sample

    options = {"threads": 2, "processes": processes, "on_error": "skip", "hang_timeout_sec": HANG_SEC}
    with hr.Loader(stream.map(sleep_for_ever), batch_size=4, **options) as loader:
        assert keys_of(loader) == KEYS[:VICTIM] + KEYS[VICTIM + 1 :]
        assert [one.key for one in loader.skipped] == [KEYS[VICTIM]]
        assert [(one.reason, one.positions) for one in loader.restarts] == [(f"hung for {HANG_SEC:g} s", (VICTIM,))] * 2
        assert all("in sleep_for_ever" in one.stacks for one in loader.restarts)


def test_a_process_that_hangs_with_the_interpreter_lock_leaves_its_stacks(stream, tmp_path):
    def hold_the_lock(sample):
        if number(sample) == VICTIM and not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            ctypes.PyDLL(None).sleep(600)
        return sample

    with hr.Loader(stream.map(hold_the_lock), batch_size=4, hang_timeout_sec=HANG_SEC) as loader:
        assert keys_of(loader) == KEYS
        (restart,) = loader.restarts
        assert "in hold_the_lock" in restart.stacks


def test_a_stopped_loader_process_is_replaced(dataset, undisturbed):
    """It answers to nothing but SIGKILL."""
    with hr.Loader(noisy(dataset), batch_size=8, hang_timeout_sec=HANG_SEC) as loader:
        batches = iter(loader)
        found = [content(next(batches))]
        stopped = loader._client.pid
        os.kill(stopped, signal.SIGSTOP)
        found += [content(batch) for batch in batches]
        assert found == undisturbed
        assert not alive([stopped])
        (restart,) = loader.restarts
        assert (restart.reason, restart.stacks) == (f"hung for {HANG_SEC:g} s", "")


def test_a_loader_process_that_runs_out_of_memory_is_replaced(stream, tmp_path):
    """Where the process's own work cannot have it; in a function of the user's it is that sample's error."""

    def take_it_all(sample):
        if number(sample) == 4 and not (tmp_path / "taken").exists():
            (tmp_path / "taken").touch()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
        return sample

    with hr.Loader(stream.map(take_it_all), batch_size=4, threads=1) as loader:
        assert keys_of(loader) == KEYS
        (restart,) = loader.restarts
        assert restart.reason.startswith("out of memory: ")


def test_a_process_that_ends_over_and_over_is_one_clear_error(stream, tmp_path):
    def collate(samples):
        if number(samples[0]) == 20 and not (tmp_path / "mended").exists():
            os._exit(3)
        return {"n": len(samples)}

    with hr.Loader(stream, batch_size=4, collate=collate, max_restarts=2) as loader:
        seen = []
        rule = (
            r"^the loader process ended without being asked to 3 times \((exit code 3(, then )?){3}\) in a row, with no"
            r" batch between, the last time at collate for step 5 of epoch 0: .*max_restarts=2"
        )
        with pytest.raises(LoaderError, match=rule):
            seen.extend(batch["__key__"] for batch in loader)
        assert len(seen) == 5
        assert len(loader.restarts) == 2
        (tmp_path / "mended").touch()
        assert len(keys_of(loader)) == NUM_SAMPLES, "it goes on with a new process"


@pytest.mark.parametrize("processes", [1, 2])
def test_without_restarts_the_first_end_is_an_error(stream, processes):
    def fatal(sample):
        if number(sample) == VICTIM:
            os._exit(3)
        return sample

    options = {"processes": processes, "max_restarts": 0, "on_error": "skip"}
    with hr.Loader(stream.map(fatal), batch_size=4, **options) as loader:
        with pytest.raises(LoaderError, match=rf"1 time \(exit code 3\).* at position {VICTIM} of epoch 0"):
            list(loader)
        assert loader.restarts == []


@pytest.mark.parametrize(
    "options",
    [{"max_restarts": -1}, {"max_restarts": 1.5}, {"max_restarts": None}]
    + [{"hang_timeout_sec": value} for value in (0, 0.5, -1, True, "60", float("nan"), float("inf"))],
    ids=str,
)
def test_limits_that_cannot_be_are_refused(stream, options):
    with pytest.raises(OptionError, match=f"^{next(iter(options))} must be "):
        hr.Loader(stream, batch_size=4, **options)


# What hangs, by a clock that the test sets.


@pytest.fixture
def watched(monkeypatch):
    """A process, and `look(sec)`: the hang that is found after waiting so long, looking twice a second; else None."""
    now = [0.0]
    process = Process("marking_process", 2, 10.0)

    def look(seconds, step=0.5):
        monkeypatch.setattr("headrace.load.process.time.monotonic", lambda: now[0])
        try:
            for _ in range(int(seconds / step)):
                now[0] += step
                process._look()
        except Exception as err:
            return err.args[0]
        finally:
            monkeypatch.undo()
        return None

    yield process, look
    process.end()


def mark(process, *what):
    process.send(what)
    assert process.receive()[0] == "marked"


def test_a_process_that_is_starting_has_longer(watched):
    _, look = watched
    assert look(START_WITHIN_SEC) is None
    assert look(1) == START_WITHIN_SEC


def test_a_process_that_marks_nothing_new_hangs_and_one_that_does_not_does_not(watched):
    process, look = watched
    for position in range(5):
        mark(process, 0, position, Doing.SAMPLE)
        assert look(9) is None
    assert look(2) == 10.0


def test_reading_from_a_store_is_no_hang(watched):
    process, look = watched
    for _ in range(20):
        mark(process, 0, 0, Doing.STORE)  # the same as before: only the process's beats tell that it runs
        assert look(9) is None
    mark(process, 0, 0, Doing.SAMPLE)
    assert look(11) == 10.0


def test_a_process_that_does_not_run_hangs_also_while_it_reads_from_a_store(watched):
    process, look = watched
    mark(process, 0, 0, Doing.STORE)
    assert look(9) is None
    assert look(2) == 10.0


def test_a_machine_that_slept_has_not_hung(watched):
    """Its clock jumps; only what was seen counts."""
    process, look = watched
    mark(process, 0, 0, Doing.SAMPLE)
    assert look(8) is None
    assert look(3600, step=3600) is None
    assert look(2) == 10.0


def test_a_process_that_does_not_take_what_it_is_sent_hangs():
    process = Process("marking_process", 1, 1.0)
    try:
        mark(process, 0, 7, Doing.SAMPLE)
        process.send("sleep")
        with pytest.raises(ProcessLostError) as caught:
            process.send(bytes(1 << 24))
        lost = caught.value
        assert (lost.reason, lost.samples, lost.from_outside) == ("hung for 1 s", [(0, 7)], False)
        assert "in sleep_for_ever" in lost.stacks
    finally:
        process.end()
    assert not alive([process.pid])


def test_marks_outlive_their_process():
    process = Process("marking_process", 1, None)
    try:
        mark(process, 3, 10**12, Doing.SAMPLE)
        kill(process.pid)
        with pytest.raises(ProcessLostError) as caught:
            process.receive()
        assert caught.value.samples == [(3, 10**12)]
        assert caught.value.from_outside
    finally:
        process.end()


# Who is to blame.


def lost(*samples, from_outside=False):
    return ProcessLostError("gone", [Mark(Doing.SAMPLE, *where) for where in samples], from_outside=from_outside)


def test_a_second_death_condemns_a_sample_that_was_alone():
    cases = Cases("loader", 9)
    cases.died(lost((0, 1), (0, 2), (0, 3)))
    assert set(cases.suspects) == {(0, 1), (0, 2), (0, 3)}
    cases.died(lost((0, 1), (0, 2)))
    assert cases.condemned == {}
    cases.died(lost((0, 2)))
    assert list(cases.condemned) == [(0, 2)]
    assert set(cases.suspects) == {(0, 1), (0, 3)}


def test_where_anybody_may_have_killed_it_takes_three_deaths():
    cases = Cases("loader", 9)
    for _ in range(2):
        cases.died(lost((0, 1), from_outside=True))
    assert cases.condemned == {}
    cases.died(lost((0, 1), from_outside=True))
    assert list(cases.condemned) == [(0, 1)]


def test_a_batch_or_a_condemned_sample_begins_the_count_anew():
    cases = Cases("loader", 2)
    for _ in range(2):
        cases.died(lost())
    cases.went_on(0, 8)
    for _ in range(2):
        cases.died(lost())
    with pytest.raises(LoaderError, match="3 times"):
        cases.died(lost())
    for where in ((0, 10), (0, 10), (0, 11), (0, 11), (0, 12), (0, 12)):
        cases.died(lost(where))
    assert len(cases.condemned) == 3


def test_what_is_past_is_forgotten_but_not_what_was_tried_for_shapes():
    cases = Cases("loader", 9)
    for where in ((-1, 5), (0, 7), (0, 8), (1, 0)):
        cases.died(lost(where))
    cases.went_on(0, 8)
    assert set(cases.suspects) == {(-1, 5), (0, 8), (1, 0)}


def test_suspects_are_transformed_one_at_a_time_until_they_are_past():
    caution = Caution({(-1, 3), (0, 5), (1, 2)})
    inside, most = [], []

    def make(rows):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0)
        inside.pop()
        return rows

    def work(first):
        for position in range(first, first + 20):
            rows = [SimpleNamespace(where=(0, position))]
            caution.make(rows, partial(make, rows))

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    caution.make([SimpleNamespace(where=(0, 5))], list)
    caution.forget_before((2, 0))
    both = threading.Barrier(2)
    waiter = threading.Thread(target=lambda: caution.make([], lambda: [both.wait(DEADLINE_SEC)]))
    waiter.start()
    caution.make([], lambda: [both.wait(DEADLINE_SEC)])  # neither waits for the other to have done
    waiter.join()


def test_on_a_device_batches_that_were_received_come_before_the_error_behind_them(monkeypatch):
    queue = DeviceQueue.__new__(DeviceQueue)
    queue._ahead, queue._sources, queue._failure = deque(), [], None
    monkeypatch.setattr(queue, "_push", lambda *one: queue._ahead.append(one), raising=False)
    monkeypatch.setattr(queue, "_pop", queue._ahead.popleft, raising=False)
    coming = iter([("batch 0", 0), ("batch 1", 1), lost()])

    def receive():
        one = next(coming)
        if isinstance(one, Exception):
            raise one
        return one

    assert queue.next(receive, lambda: True) == ("batch 0", 0)
    assert queue.next(receive, lambda: True) == ("batch 1", 1)
    with pytest.raises(ProcessLostError):
        queue.next(receive, lambda: True)


def test_an_empty_page_says_that_nothing_was_ever_marked():
    marks = Marks.create(1)
    assert marks.snapshot() == b""
    marks.lanes[0].mark(0, 0)
    first = marks.snapshot()
    marks.lanes[0].clear()
    assert marks.marks() == []
    assert marks.snapshot() not in (b"", first), "what is done is progress"
    marks.close()
