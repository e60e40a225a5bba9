"""One writer at a time: on disks, on stores that keep conditions, and on those that do not."""

import multiprocessing
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import orjson
import pytest

from faulty import FaultyServer
from headrace.errors import OptionError, StorageError, TargetError
from headrace.storage import (
    Lease,
    ReadOptions,
    exists,
    leasefile,
    list_folder,
    locate,
    read_bytes,
    remove,
    write_bytes,
)
from headrace.storage.lease import Holder
from waiting import running, wait_for

STORES = ["local", "memory", "s3_strict", "azure"]
LOOSE_STORES = ["s3", "sftp"]


@pytest.fixture
def local(tmp_path):
    return locate(tmp_path / "store" / "lease")


@pytest.fixture
def memory(request):
    return locate(f"memory://{request.node.name}/lease")


def place_in(request, kind):
    place = request.getfixturevalue(kind)
    return place if kind in ("local", "memory") else place / "lease"


@pytest.fixture(params=STORES)
def place(request):
    return place_in(request, request.param)


@pytest.fixture(params=LOOSE_STORES)
def loose(request, monkeypatch):
    monkeypatch.setattr(leasefile, "SETTLE_SEC", 0.5)
    return place_in(request, request.param)


def write_foreign(place, beat=0, **changes):
    """A lease of another machine's process."""
    holder = replace(Holder.here(), host="elsewhere", machine="another", pid=77, beat=beat, **changes)
    write_bytes(place, holder.to_bytes())
    return holder


def test_who_holds_it_keeps_others_out_until_released(place):
    with Lease(place) as lease:
        assert lease.is_exact
        lease.check()
        with pytest.raises(TargetError, match=r"is being written by process \d+ on .*: wait for it to end"):
            Lease(place).acquire()
        lease.check()
    assert not exists(place)
    with Lease(place) as lease:
        lease.check()


def test_of_many_at_once_one_wins(place):
    won, lost, leases = [], [], [Lease(place) for _ in range(6)]

    def take(lease):
        try:
            lease.acquire()
        except TargetError:
            lost.append(lease)
        else:
            won.append(lease)

    in_threads(take, leases)
    assert (len(won), len(lost)) == (1, 5)
    won[0].check()
    won[0].release()


def test_a_lease_that_beats_is_not_taken(place):
    write_foreign(place)
    end = threading.Event()

    def beat():
        count = 0
        while not end.wait(0.2):
            count += 1
            write_foreign(place, count)

    thread = threading.Thread(target=beat)
    thread.start()
    told = []
    try:
        with pytest.raises(TargetError, match="being written by process 77 on elsewhere"):
            Lease(place, stale_sec=120).acquire(told.append)
    finally:
        end.set()
        thread.join()
    assert "process 77 on elsewhere held it; watching for 120 s" in told[0]


def test_a_lease_that_beats_no_more_is_taken_over(place):
    write_foreign(place)
    with Lease(place, stale_sec=1):
        assert orjson.loads(read_bytes(place))["machine"] != "another"


def test_of_many_that_take_over_one_wins(place):
    write_foreign(place)
    won, lost, leases = [], [], [Lease(place, stale_sec=2) for _ in range(4)]

    def take(lease):
        try:
            lease.acquire()
        except TargetError:
            lost.append(lease)
        else:
            won.append(lease)

    in_threads(take, leases)
    assert (len(won), len(lost)) == (1, 3)
    won[0].release()


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(tmp_path):
    place = locate(tmp_path / "lease")
    code = """
        import sys, time
        from headrace.storage import Lease, locate
        Lease(locate(sys.argv[1])).acquire()
        print("held", flush=True)
        time.sleep(600)
    """
    with running(
        [sys.executable, "-c", textwrap.dedent(code), str(place)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TargetError, match=f"process {process.pid} on"):
            Lease(place, stale_sec=10_000).acquire()
        process.kill()
        process.wait()
        with Lease(place, stale_sec=10_000) as lease:
            lease.check()


def take_and_count(place, path, turns):
    for _ in range(turns):
        lease = Lease(locate(place), stale_sec=10_000)
        while True:
            try:
                lease.acquire()
            except TargetError:
                continue
            break
        with open(path, "r+") as file:
            count = int(file.read() or 0)
            file.seek(0)
            file.write(str(count + 1))
        lease.release()


def test_processes_that_take_turns_never_meet(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=take_and_count, args=(str(tmp_path / "lease"), path, 20)) for _ in range(3)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    assert path.read_text() == "60"


def test_an_owner_that_was_followed_is_told(place):
    lease = Lease(place)
    lease.acquire()
    write_foreign(place)
    with pytest.raises(TargetError, match=r"was taken by process 77 on elsewhere: this process must not go on"):
        lease.refresh()
    with pytest.raises(TargetError, match="must not go on writing"):
        lease.check()
    lease.release()
    assert orjson.loads(read_bytes(place))["machine"] == "another"  # the other's is left alone


def test_an_owner_whose_lease_was_removed_is_told(place):
    lease = Lease(place)
    lease.acquire()
    remove(place)
    with pytest.raises(TargetError, match="was taken by another process"):
        lease.refresh()
    lease.release()
    assert not exists(place)


def test_the_owner_beats_by_itself(place):
    with Lease(place, stale_sec=1):
        wait_for(lambda: orjson.loads(read_bytes(place))["beat"] >= 2, "two beats")


def test_a_beat_that_finds_another_owner_is_told_by_check(place):
    lease = Lease(place, stale_sec=1)
    lease.acquire()
    write_foreign(place)

    def is_lost():
        try:
            lease.check()
        except TargetError as err:
            return "taken by process 77" in str(err)
        return False

    wait_for(is_lost, "the loss to be noticed")
    lease.release()


def test_an_owner_that_cannot_beat_is_not_sure_any_more(no_credentials):
    with FaultyServer({}) as server:
        content = {}

        def store(handler):
            if handler.command == "PUT":
                content["file"] = handler.rfile.read(int(handler.headers["Content-Length"]))
                return handler.send(200, b"")
            server.files["/bucket/lease"] = content.get("file")
            return False

        server.always = store
        no_credentials.setenv("AWS_ENDPOINT_URL", server.url)
        lease = Lease(locate("s3://bucket/lease"), stale_sec=1, options=ReadOptions(timeout_sec=0.2))
        lease._file._is_exact = True
        lease.acquire()
        server.always = lambda handler: handler.refuse(503)

        def is_unsure():
            try:
                lease.check()
            except TargetError as err:
                return "could not be renewed for" in str(err)
            return False

        wait_for(is_unsure, "the doubt")
        lease.release()


def test_where_conditions_are_ignored_the_lease_says_so_and_works(loose):
    with Lease(loose) as lease:
        assert not lease.is_exact
        with pytest.raises(TargetError, match="is being written by process"):
            Lease(loose).acquire()
        lease.refresh()
        lease.check()
    assert list_folder(loose.parent) == []


def test_where_conditions_are_ignored_a_dead_owner_is_followed(loose):
    write_foreign(loose)
    with Lease(loose, stale_sec=1):
        assert orjson.loads(read_bytes(loose))["machine"] != "another"


def test_where_conditions_are_ignored_one_of_two_at_once_wins(s3):
    won, lost, leases = [], [], [Lease(s3 / "lease") for _ in range(2)]

    def take(lease):
        try:
            lease.acquire()
        except TargetError:
            lost.append(lease)
        else:
            won.append(lease)

    in_threads(take, leases)
    assert (len(won), len(lost)) == (1, 1)
    won[0].release()


@pytest.mark.parametrize("content", [b"", b'{"owner": 1}'])
def test_a_file_that_is_no_lease_is_watched_and_then_replaced(local, content):
    write_bytes(local, content)
    with Lease(local, stale_sec=1):
        assert Holder.of(read_bytes(local))


def test_a_lease_that_says_nonsense_is_no_lease():
    for content in (b"{", b"[1]", b"1", b'{"owner":"a","host":"b"}'):
        assert Holder.of(content) is None
    words = {"owner": "a", "host": "b", "machine": "c", "started": "d"}
    for pid, beat in (("../1", 0), (1, "x"), (1.5, 0), (True, 0), (None, 0)):
        assert Holder.of(orjson.dumps(words | {"pid": pid, "beat": beat})) is None
    assert Holder.of(orjson.dumps(words | {"pid": 1, "beat": 0})) == Holder("a", "b", "c", 1, "d")


def test_a_web_server_cannot_hold_a_lease(web):
    with pytest.raises(StorageError, match="cannot write"):
        Lease(web.place / "lease").acquire()


def test_a_time_that_is_too_short_is_refused(local):
    with pytest.raises(OptionError, match="stale_sec must be at least 1 second"):
        Lease(local, stale_sec=0.5)


def test_releasing_twice_or_before_acquiring_is_fine(local):
    lease = Lease(local)
    lease.release()
    lease.acquire()
    lease.release()
    lease.release()
    assert not exists(local)


def in_threads(function, arguments):
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
