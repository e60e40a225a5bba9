"""Stores and other processes: spawned ones make their own, forked ones are told, and nothing secret is handed over."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from faulty import FaultyServer, hang
from headrace.storage import open_file, read_bytes, write_bytes
from waiting import running, wait_for

CONTENT = bytes(range(256)) * 40


def read(place):
    return read_bytes(place)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_another_process_reads_by_the_environment_alone(s3, method):
    write_bytes(s3 / "a", CONTENT)
    assert read_bytes(s3 / "a") == CONTENT  # so this process has connections
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(read, (s3 / "a",)).get(timeout=120) == CONTENT


def test_what_is_pickled_holds_no_key(s3):
    write_bytes(s3 / "a", CONTENT)
    data = pickle.dumps(s3 / "a")
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert pickle.loads(data) == s3 / "a"
    with open_file(s3 / "a") as file, pytest.raises(TypeError, match="pass its place"):
        pickle.dumps(file)


def test_an_open_local_file_is_not_pickled(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with open_file(tmp_path / "a") as file, pytest.raises(TypeError, match="pass its place"):
        pickle.dumps(file)


FORK = """
    import os, sys, warnings
    from headrace.errors import StorageError
    from headrace.storage import open_file, read_bytes, locate

    place = locate(sys.argv[1])
    if sys.argv[2] == "used":
        file = open_file(place)
        file.read(0, 10)
        with file.stream() as stream:
            stream.read(1)
    warnings.simplefilter("ignore")  # newer interpreters warn of forking with threads
    child = os.fork()
    if child == 0:
        uses = [lambda: read_bytes(place), lambda: file.read(0, 10), lambda: file.stream().read()]
        for use in [*uses, lambda: bytes(read_bytes(sys.argv[3]))]:
            try:
                print("read", len(use()), flush=True)
            except StorageError as err:
                print(err, flush=True)
            except NameError:
                pass
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def forked(place, use, local):
    command = [sys.executable, "-c", textwrap.dedent(FORK), str(place), use, str(local)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_a_fork_after_use_is_told_instead_of_hanging(kind, request, tmp_path):
    store = request.getfixturevalue(kind)
    (tmp_path / "local").write_bytes(b"123")
    write_bytes(store / "a", CONTENT)
    *refused, last = forked(store / "a", "used", tmp_path / "local")
    assert len(refused) == 3
    for told in refused:
        assert "forked after a remote store was used" in told
        assert 'multiprocessing_context="spawn" or "forkserver"' in told
    assert last == "read 3"


def test_a_fork_before_any_use_reads(s3, tmp_path):
    (tmp_path / "local").write_bytes(b"123")
    write_bytes(s3 / "a", CONTENT)
    assert forked(s3 / "a", "unused", tmp_path / "local") == ["read 10240", "read 3"]


INTERRUPTED = """
    import sys
    from headrace.storage import read_bytes
    print("reading", flush=True)
    try:
        read_bytes(sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_an_interrupt_ends_the_waiting_for_a_server_that_says_nothing():
    """And the process ends at once, without waiting for the request."""
    with FaultyServer({"/a": CONTENT}) as server:
        server.always = hang
        command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), f"{server.url}/a"]
        environment = os.environ | {"HEADRACE_STORAGE_TIMEOUT_SEC": "100000"}
        with running(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            wait_for(lambda: server.requests, "a request")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=120)[0].splitlines() == ["reading", "interrupted"]
            assert process.returncode == 0


def test_reading_local_files_loads_no_store():
    code = """
        import sys, tempfile
        from headrace.storage import locate, open_file
        with tempfile.NamedTemporaryFile() as file, open_file(file.name) as opened:
            opened.read(0, 0)
        locate("s3://bucket/a"), locate("https://host/a?x=1"), locate("memory:a")
        print(sorted({"obstore", "fsspec", "boto3", "paramiko"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"


def test_threads_that_open_a_store_at_once_share_it(s3):
    write_bytes(s3 / "a", CONTENT)
    start, got = threading.Barrier(8), []

    def work():
        start.wait()
        got.append(read_bytes(s3 / "a"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [CONTENT] * 8


def test_other_credentials_in_the_environment_are_used_from_then_on(s3, s3_strict_server, monkeypatch):
    write_bytes(s3 / "a", CONTENT)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_strict_server.url)
    write_bytes(s3 / "a", b"elsewhere")
    assert read_bytes(s3 / "a") == b"elsewhere"
