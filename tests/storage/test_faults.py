"""What servers and networks do wrong: tried again until a deadline, never hidden, and told without secrets."""

import os
import re
import subprocess
import sys
import threading
import time
import traceback

import pytest
from obstore.exceptions import GenericError

from faulty import FaultyServer, hang, reset_after, short, stall_after, status, without_ranges
from headrace.errors import DamagedError, OptionError, StorageError
from headrace.storage import ReadOptions, exists, list_folder, locate, open_file, read_bytes, write_bytes
from headrace.storage.causes import object_failure
from headrace.storage.store import Denied, Refused, Trouble
from waiting import wait_for

CONTENT = bytes(range(256)) * 12_000  # 3 MB: more than one piece of what obstore hands over
PATIENT = ReadOptions(timeout_sec=120)
SECRET = "X-Amz-Signature=0123456789abcdef"


@pytest.fixture
def server():
    with FaultyServer({"/d/a": CONTENT, "/d/b": CONTENT}) as server:
        yield server


@pytest.fixture
def place(server):
    return locate(f"{server.url}/d/a")


def content(place, options=PATIENT):
    with open_file(place, size=len(CONTENT), options=options) as file:
        return bytes(file.read(100, len(CONTENT) - 200))


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(502),
        status(503),
        status(429),
        status(408),
        reset_after(0),
        reset_after(100),
        reset_after(2_000_000),
        short(1000),
        short(2_000_000),
    ],
    ids=["500", "502", "503", "429", "408", "reset", "reset-100", "reset-2e6", "short", "short-2e6"],
)
def test_what_passes_is_tried_again(server, place, fault):
    server.faults = [fault, fault]
    assert content(place) == CONTENT[100:-100]
    assert len(server.requests) in (2, 3)  # 2 where the second fault found less to cut


def test_what_arrived_before_a_fault_is_not_asked_for_again(server, place):
    server.faults = [reset_after(2_500_000)]
    assert content(place) == CONTENT[100:-100]
    first, second = (int(asked.partition("=")[2].partition("-")[0]) for _, _, asked in server.requests)
    assert first == 100
    assert second >= 100 + (1 << 20)


def test_a_whole_file_is_tried_again_too(server, place):
    server.faults = [status(503), reset_after(2_000_000)]
    assert read_bytes(place, options=PATIENT) == CONTENT


def test_a_stall_is_left_for_another_attempt(server, place):
    """Within a quarter of the deadline, at least five seconds."""
    server.faults = [stall_after(2_000_000)]
    assert content(place, ReadOptions(timeout_sec=30)) == CONTENT[100:-100]
    assert len(server.requests) == 2


def test_the_deadline_holds_for_all_attempts_and_the_last_cause_is_told(server, place):
    server.always = status(503)
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"gave up after \S+ s and \d+ attempts, the last cause: 503 Service Unavail"
    ):
        content(place, ReadOptions(timeout_sec=2))
    assert time.monotonic() - started < 60
    assert 1 <= len(server.requests) < 30


def test_a_server_that_says_nothing_ends_at_the_deadline(server, place):
    server.always = hang
    with pytest.raises(StorageError, match=r"a: gave up after .* the last cause: no answer within the time limit"):
        content(place, ReadOptions(timeout_sec=2))


def test_the_deadline_may_come_from_the_environment(server, place, monkeypatch):
    server.always = status(503)
    monkeypatch.setenv("HEADRACE_STORAGE_TIMEOUT_SEC", "0.5")
    with pytest.raises(StorageError, match=r"gave up after .* set HEADRACE_STORAGE_TIMEOUT_SEC above 0\.5"):
        read_bytes(place)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_deadline_that_is_none_is_refused(place, monkeypatch, value):
    monkeypatch.setenv("HEADRACE_STORAGE_TIMEOUT_SEC", value)
    with pytest.raises(OptionError, match="seconds above 0"):
        read_bytes(place)
    with pytest.raises(OptionError, match="seconds above 0"):
        read_bytes(place, options=ReadOptions(timeout_sec=-1))


def test_a_server_that_is_down_is_named_with_its_cause():
    with FaultyServer({}) as server:
        place = locate(f"{server.url}/a")
    with pytest.raises(StorageError, match="no connection: Connection refused"):
        read_bytes(place, options=ReadOptions(timeout_sec=0.5))


def test_a_host_that_does_not_exist_is_told():
    with pytest.raises(StorageError, match=r"cannot read http://no-such-host\.invalid/a: .*no connection: "):
        read_bytes("http://no-such-host.invalid/a", options=ReadOptions(timeout_sec=1))


def test_a_name_that_is_not_known_is_final_only_until_the_store_was_reached():
    """A slip of the finger is told at once; a name server that stumbles in the middle of a run is waited for."""
    err = GenericError('kind: Connect, error: "failed to lookup address information: Name or service not known"')
    assert isinstance(object_failure(err, "s3", has_worked=False), Refused)
    assert isinstance(object_failure(err, "s3", has_worked=True), Trouble)


def test_a_metadata_service_without_credentials_is_final_only_until_the_store_was_reached():
    err = GenericError("Error performing PUT http://169.254.169.254/latest/api/token in 1ms - error sending request")
    assert isinstance(object_failure(err, "s3", has_worked=False), Denied)
    assert "no credentials in the environment" in str(object_failure(err, "s3", has_worked=False))
    assert isinstance(object_failure(err, "s3", has_worked=True), Trouble)


def test_a_refusal_for_the_clock_may_pass_and_names_it():
    err = GenericError("Client error with status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>")
    failure = object_failure(err, "s3", has_worked=True)
    assert isinstance(failure, Trouble)
    assert "403 Forbidden, RequestTimeTooSkewed: this machine's clock is wrong" in str(failure)


def reading_elsewhere(code, url, **environment):
    """What a fresh process says that runs `code`; `read()` there reads the URL, for at most two seconds."""
    begin = (
        "import os, resource, sys\n"
        "from headrace.errors import StorageError\n"
        "from headrace.storage import ReadOptions, exists, read_bytes\n"
        "exists('memory://bucket/a')  # what is imported when first needed is there now\n"
        "def read():\n"
        "    try:\n"
        "        return len(read_bytes(sys.argv[1], options=ReadOptions(timeout_sec=2)))\n"
        "    except StorageError as err:\n"
        "        return err\n"
    )
    command = [sys.executable, "-c", begin + code, url]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_a_process_that_may_open_no_more_files_tries_again(server, place):
    """Also at its first request, for which it would read the system's certificates."""
    code = (
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1, hard))\n"
        "print(read())\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "print(read())\n"
    )
    refused, content = reading_elsewhere(code, place.text).splitlines()
    assert re.search(r"gave up after .* attempts, the last cause: no file can be opened: Too many open files", refused)
    assert int(content) == len(CONTENT)


def test_a_machine_without_certificates_is_told_what_to_install(server, place, tmp_path):
    nowhere = {"SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": str(tmp_path)}
    said = reading_elsewhere("print(read())", place.text, **nowhere)
    assert "no CA certificates can be read: install the system's (ca-certificates), or set SSL_CERT_FILE" in said
    assert "gave up" not in said


@pytest.mark.parametrize("code", [400, 410, 501])
def test_what_is_final_is_not_tried_again(server, place, code):
    server.always = status(code)
    with pytest.raises(StorageError, match=rf"cannot read .*/d/a: {code}"):
        content(place)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [401, 403])
def test_a_refusal_says_what_credentials_are_looked_at(server, place, code):
    server.always = status(code)
    with pytest.raises(StorageError, match=rf"{code} .*wants a signature in the URL's query, or the one given has run"):
        content(place)
    assert len(server.requests) == 1


def test_a_missing_file_is_not_tried_again(server):
    with pytest.raises(DamagedError, match="/d/gone is missing"):
        content(locate(f"{server.url}/d/gone"))
    assert len(server.requests) == 1


def test_a_redirect_is_followed(server, place):
    server.always = lambda handler: handler.path == "/d/a" and handler.refuse(302, Location="/d/b")
    assert content(place) == CONTENT[100:-100]


def test_redirects_in_a_circle_end(server, place):
    server.always = status(302, Location="/d/a")
    with pytest.raises(StorageError, match="cannot read"):
        content(place)


def test_a_server_without_ranges_is_refused_with_advice(server, place):
    server.always = without_ranges
    with pytest.raises(StorageError, match=r"has no range requests: it answers with the whole file; copy the data"):
        content(place)
    assert len(server.requests) == 1
    assert read_bytes(place) == CONTENT


def test_a_server_that_does_not_say_the_length_is_refused(server, place):
    def chunked(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")

    server.always = chunked
    with pytest.raises(StorageError, match="does not say how long the file is"):
        read_bytes(place)


def test_a_url_signed_for_reading_only_need_not_answer_head(server):
    server.always = lambda handler: handler.command == "HEAD" and handler.refuse(403)
    with open_file(f"{server.url}/d/a?{SECRET}") as file:
        assert file.size == len(CONTENT)
        assert bytes(file.read(0, 10)) == CONTENT[:10]
    assert all(path == f"/d/a?{SECRET}" for _, path, _ in server.requests)


def test_a_file_of_another_size_than_expected_is_damaged(server, place):
    with (
        open_file(place, size=len(CONTENT) + 1) as file,
        pytest.raises(DamagedError, match=r"is not the file it was: 3,072,000 bytes found, 3,072,001 expected"),
    ):
        file.read(0, 10)


def test_a_file_that_shrank_is_damaged(server, place):
    with open_file(place) as file:
        server.files["/d/a"] = b"short"
        with pytest.raises(DamagedError, match=r"cut short|another size"):
            file.read(1000, 10)


def test_a_known_size_spares_the_first_request(server, place):
    with open_file(place, size=len(CONTENT)) as file:
        assert file.size == len(CONTENT)
        assert server.requests == []
        file.read(0, 10)
    assert [(method, asked) for method, _, asked in server.requests] == [("GET", "bytes=0-9")]


def test_a_closed_file_is_not_read(place):
    file = open_file(place, size=10)
    file.close()
    file.close()
    with pytest.raises(StorageError, match="the file is closed"):
        file.read(0, 1)


def test_a_stream_reads_ahead_in_order(server, place):
    server.files["/d/a"] = CONTENT * 30  # 92 MB: more than is read ahead
    with open_file(place) as file, file.stream() as stream:
        assert stream.read(10) == CONTENT[:10]
        wait_for(lambda: len(server.requests) >= 4, "requests ahead")
        rest = stream.read()
    assert rest == (CONTENT * 30)[10:]
    spans = [asked for method, _, asked in server.requests if method == "GET"]
    assert len(spans) == len(set(spans)) == 11


def test_a_stream_through_faults_is_whole(server, place):
    server.files["/d/a"] = CONTENT * 10
    server.faults = [None, status(503), reset_after(1_000_000), short(2_000_000)]
    with open_file(place, options=PATIENT) as file, file.stream() as stream:
        assert stream.read() == CONTENT * 10


def test_many_threads_through_faults_get_their_own_bytes(server, place):
    server.faults = [status(503), reset_after(1000), short(10), status(500)] * 4
    wrong = []

    def read(start):
        buffer = bytearray(100_000)
        for at in range(start * 1000, start * 1000 + 500_000, 100_000):
            file.read_into(at, buffer)
            if buffer != CONTENT[at : at + len(buffer)]:
                wrong.append(at)

    with open_file(place, size=len(CONTENT), options=PATIENT) as file:
        threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def shown(err):
    """All that an error can show of itself: message, traceback, causes and contexts."""
    parts = ["".join(traceback.format_exception(err))]
    while err is not None:
        parts += [str(err), repr(err), repr(err.args)]
        err = err.__cause__ or err.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("code", [400, 403, 404, 500])
def test_no_error_shows_a_urls_signature(server, code):
    server.always = status(code, body=f"<Code>Denied</Code><StringToSign>{SECRET}</StringToSign>".encode())
    place = locate(f"{server.url}/d/a?{SECRET}")
    for operation in (read_bytes, open_file, exists, list_folder, lambda *a, **k: write_bytes(*a, b"x", **k)):
        try:
            operation(place, options=ReadOptions(timeout_sec=0.3))
        except (DamagedError, StorageError) as err:
            text = shown(err)
            assert "Signature" not in text
            assert "0123456789" not in text
            assert "/d/a" in text
        else:
            assert operation is exists
            assert code == 404


def test_no_error_shows_a_key_of_the_environment(s3, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONGKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-words")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "very-secret-token")
    with pytest.raises(
        StorageError, match=r"403 Forbidden, InvalidAccessKeyId; check .*: AWS_ACCESS_KEY_ID, AWS_SEC"
    ) as c:
        read_bytes(s3 / "a")
    for secret in ("AKIAWRONGKEY", "very-secret-words", "very-secret-token"):
        assert secret not in shown(c.value)
