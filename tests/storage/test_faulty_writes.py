"""Writing through a bad network: a proxy that loses requests and answers stands before a real store."""

import pytest

from faulty import FaultyProxy, lost, status
from headrace.errors import StorageError, TargetError
from headrace.storage import (
    Lease,
    ReadOptions,
    exists,
    list_folder,
    put_if_absent,
    read_bytes,
    remove,
    upload,
    walk,
    write_bytes,
)

PATIENT = ReadOptions(timeout_sec=120)


@pytest.fixture
def proxy(s3_strict, s3_strict_server, monkeypatch):
    with FaultyProxy(s3_strict_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def store(s3_strict, proxy):
    return s3_strict


@pytest.mark.parametrize("fault", [status(503), lost], ids=["503", "lost"])
def test_every_operation_survives_a_fault(store, proxy, fault):
    def faulty(operation, *arguments):
        proxy.faults = [fault, fault]
        done = operation(*arguments, options=PATIENT)
        assert proxy.faults == []
        return done

    faulty(write_bytes, store / "a", b"content")
    assert faulty(read_bytes, store / "a") == b"content"
    assert faulty(exists, store / "a")
    assert [entry.name for entry in faulty(list_folder, store)] == ["a"]
    proxy.faults = [fault, fault]
    assert [entry.name for entry in walk(store, options=PATIENT)] == ["a"]
    faulty(remove, store / "a")
    assert not exists(store / "a")


def test_a_file_sent_in_parts_survives_faults(store, proxy, tmp_path):
    source, content = tmp_path / "source", bytes(range(251)) * 83_000
    source.write_bytes(content)
    proxy.faults = [status(503), None, status(500), None, status(503)]
    upload(source, store / "big", options=PATIENT)
    assert read_bytes(store / "big") == content
    assert sum(method == "PUT" for method, _, _ in proxy.requests) >= 3


def test_a_file_that_cannot_be_sent_is_kept_and_never_half_there(store, proxy, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(20_000_000))
    proxy.always = lambda handler: handler.command == "PUT" and handler.refuse(503)
    with pytest.raises(StorageError, match=r"cannot write .*big: gave up after .*503 Service Unavailable"):
        upload(source, store / "big", options=ReadOptions(timeout_sec=2))
    proxy.always = None
    assert source.stat().st_size == 20_000_000
    assert not exists(store / "big")


def test_a_name_that_was_taken_and_the_answer_lost_is_ours(store, proxy):
    proxy.faults = [None, lost]  # after it was asked whether the name is free
    assert put_if_absent(store / "lock", b"me", options=PATIENT)
    assert not put_if_absent(store / "lock", b"another", options=PATIENT)
    assert read_bytes(store / "lock") == b"me"


def test_a_name_that_another_took_in_between_is_not_ours(store, proxy):
    def taken(handler):
        write_bytes(store / "lock", b"another")
        return False

    proxy.faults = [None, taken]
    assert not put_if_absent(store / "lock", b"me", options=PATIENT)
    assert read_bytes(store / "lock") == b"another"


def test_a_lease_survives_lost_answers(store, proxy):
    with Lease(store / "lease", stale_sec=10_000, options=PATIENT) as lease:
        for faults in ([lost], [None, lost], [status(503), None, lost, status(503)]):
            proxy.faults = faults
            lease.refresh()
            lease.check()
        with pytest.raises(TargetError, match="is being written by"):
            Lease(store / "lease", options=PATIENT).acquire()
    assert list_folder(store) == []
