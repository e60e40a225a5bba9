"""PageServer: the page of a run under way, to those who may see it, and nothing else to anybody."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from run_files import RunFile

from headrace.errors import OptionError, StorageError
from headrace.report.serving import PageServer
from waiting import running, wait_for

WATCH = [sys.executable, "-c", "from headrace.cli.main import main; main()", "watch"]
HAS_IPV6 = Path("/proc/net/if_inet6").is_file() and bool(Path("/proc/net/if_inet6").read_text())
TOKEN = "what-only-the-owner-knows"


def begun(folder, num_steps=20):
    run = RunFile(folder)
    run.start(total_steps=100)
    for step in range(1, num_steps + 1):
        run.step(step, 1 / step, compute=0.02)
    return run


@contextlib.contextmanager
def serving(folder, **options):
    with PageServer(folder, every_sec=0.0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path="/", method="GET", **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def news(server, known=""):
    return json.loads(ask(server, f"/update?known={known}")[2])


def say(server, data):
    """What comes back for these bytes, until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    begun(folder)
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    begun(folder)
    with serving(folder, token=TOKEN) as server:
        yield server


def test_the_page_comes_with_a_policy_that_names_its_scripts(served):
    status, headers, page = ask(served)
    assert status == 200
    assert "<h1><em>Compute-bound</em>" in page
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Set-Cookie" not in headers
    assert headers["Server"] == "headrace"


def test_what_the_run_holds_cannot_allow_a_script(tmp_path, served):
    begun(tmp_path / "<script>evil()<").write("stop", step=20, reason="<script>evil()</script>")
    with PageServer(tmp_path / "<script>evil()<") as server:
        assert server.policy == served.policy


def test_an_update_is_what_is_new_since_a_version(tmp_path):
    run = begun(tmp_path)
    with serving(tmp_path) as server:
        version = re.search('data-version="(.*?)"', ask(server)[2])[1]
        first = news(server, version)
        assert first["html"] is None
        assert first["version"] == version
        assert (first["state"], first["progress"]) == ("running", "step 20 of 100, 1.60 s left")
        for step in range(21, 101):
            run.step(step, 1 / step, wait=0.05)
        run.write("end", step=100)
        second = wait_for(lambda: news(server, version)["html"] and news(server, version), "what is new")
        assert "Input-bound" in second["html"]
        assert second["title"].startswith(f"{tmp_path.name}: Input-bound")
        assert (second["state"], second["progress"]) == ("complete", "step 100 of 100")
        assert second["next_ms"] >= 10_000
        assert news(server, second["version"])["html"] is None
        assert news(server)["html"] == second["html"]


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    with serving(tmp_path) as server:
        assert ask(server)[0] == 200
        assert news(server)["state"] == "waiting"
        begun(tmp_path)
        wait_for(lambda: news(server)["state"] == "running", "the beginning")


def test_it_is_made_anew_only_when_it_is_due(tmp_path, monkeypatch):
    made = []
    from headrace.report import live

    monkeypatch.setattr(live, "content", lambda *args, content=live.content: made.append(args) or content(*args))
    begun(tmp_path)
    with PageServer(tmp_path, every_sec=3600) as server:
        count = len(made)
        begun(tmp_path, 5)
        for _ in range(3):
            server.page.whole()
            server.page.update("")
        assert len(made) == count


def test_it_is_sent_compressed_to_those_who_ask_for_it(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Accept-Encoding": "gzip, br"})
        answer = connection.getresponse()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.read()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    "path",
    [
        "/events.jsonl",
        "/../events.jsonl",
        "/%2e%2e/events.jsonl",
        "//etc/passwd",
        "/etc/passwd",
        "/report.html",
        "/update/",
        "/index.html",
        "http://127.0.0.1/",
        "*",
    ],
)
def test_nothing_but_the_page_is_there(served, path):
    status, headers, text = ask(served, path)
    assert (status, text) == (404, "there is nothing here but the page, at /\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost@evil", "[::1"])
def test_other_names_for_this_machine_are_refused(served, host):
    status, _, text = ask(served, Host=host)
    assert status == 403
    assert text.startswith("this server answers to its own names only")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "localhost.", "127.0.0.1:1", "127.0.0.2", "[::1]:80"])
def test_own_names_are_answered_at_any_port_as_through_a_tunnel(served, host):
    assert ask(served, Host=host)[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET /?a=1&b=2&c=3&d=4&e=5 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde", b"501"),
        (b"<script> / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello \r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request_is_refused_as_plain_text(served, request_bytes, status):
    answer = say(served, request_bytes)
    # Where not even the version of the protocol is clear, the line comes as it was in HTTP/0.9.
    assert answer.startswith(b"HTTP/1.0 " + status) or b"\r\n" not in answer
    assert b"<html" not in answer
    assert ask(served)[0] == 200


def test_a_token_lets_in_once_and_a_cookie_from_then_on(guarded):
    status, headers, page = ask(guarded, f"/?token={TOKEN}")
    assert (status, "Compute-bound" in page) == (200, True)
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert TOKEN not in headers["Set-Cookie"] + page
    assert ask(guarded, Cookie=f"other=1; {cookie}")[0] == 200
    assert ask(guarded, "/update", Cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    ("path", "cookie"),
    [
        ("/", ""),
        ("/update", ""),
        ("/?token=", ""),
        (f"/?token={TOKEN[:-1]}", ""),
        (f"/?token={TOKEN}x", ""),
        (f"/?token=x&token={TOKEN}", ""),
        ("/?token=%ff%00%c3%bc", ""),
        ("/", "headrace-watch-PORT="),
        ("/", f"headrace-watch-PORT={TOKEN}"),
        ("/", f"token={TOKEN}"),
        ("/", ";;=;"),
    ],
)
def test_without_the_token_nobody_is_let_in(guarded, path, cookie):
    status, headers, text = ask(guarded, path, Cookie=cookie.replace("PORT", str(guarded.port)))
    assert (status, text) == (401, "open the address that headrace watch printed, with its token\n")
    assert "Set-Cookie" not in headers


def test_the_session_of_one_server_is_nothing_to_another(guarded, tmp_path):
    cookie = ask(guarded, f"/?token={TOKEN}")[1]["Set-Cookie"].split(";")[0]
    with serving(tmp_path, token=TOKEN) as other:
        assert ask(other, Cookie=cookie.replace(str(guarded.port), str(other.port)))[0] == 401


def test_other_addresses_than_loopback_have_a_token(tmp_path):
    with PageServer(tmp_path, host="0.0.0.0") as one, PageServer(tmp_path, host="0.0.0.0") as other:
        assert len(one.token) >= 43
        assert one.token != other.token
        assert one.url_with_token == f"http://{socket.gethostname()}:{one.port}/?token={one.token}"
        assert one.is_own_name(f"{socket.gethostname()}:{one.port}")
        assert one.is_own_name("10.0.0.1")
        assert not one.is_own_name("evil.example")
    with PageServer(tmp_path, host="127.0.0.2") as local:
        assert local.token is None
        assert local.url == f"http://127.0.0.2:{local.port}/"
        assert not local.is_own_name(socket.gethostname())
    with PageServer(tmp_path, host="localhost") as local:
        assert local.token is None
        assert local.url == f"http://localhost:{local.port}/"


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6 loopback address")
def test_ipv6_is_written_in_brackets(tmp_path):
    with PageServer(tmp_path, host="::1") as local, PageServer(tmp_path, host="::") as any_address:
        assert local.url == f"http://[::1]:{local.port}/"
        assert local.token is None
        assert local.is_own_name(f"[::1]:{local.port}")
        assert any_address.token is not None


def test_half_requests_are_ended_and_keep_nobody_waiting(tmp_path):
    with (
        serving(tmp_path, patience_sec=0.3) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        assert ask(server)[0] == 200
        assert silent.recv(1) == b""
        assert b"200" not in slow.recv(100)


def test_those_beyond_so_many_at_a_time_are_turned_away(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.report.serving._MOST_REQUESTS", 2)
    with serving(tmp_path) as server, contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(2)
        ]
        wait_for(lambda: len(server._open) == 2, "two requests under way")
        assert say(server, b"") == b""
        for connection in waiting:
            connection.close()
        wait_for(lambda: not server._open, "the end of both")
        assert ask(server)[0] == 200


def test_events_that_cannot_be_read_any_more_are_told(tmp_path):
    begun(tmp_path)
    with serving(tmp_path) as server:
        (tmp_path / "events.jsonl").unlink()
        (tmp_path / "events.jsonl").mkdir()
        _, _, text = wait_for(lambda: (found := ask(server, "/update"))[0] == 503 and found, "a look at the run")
        assert text.startswith("cannot read the run's events from ")
        assert text.count("\n") == 1


def test_what_cannot_be_served_is_one_line(tmp_path, served):
    with pytest.raises(OptionError, match=rf"cannot listen at port {served.port} of 127.0.0.1: .*; take another one"):
        PageServer(tmp_path, served.port)
    with pytest.raises(OptionError, match=r"cannot listen at 'no such host'"):
        PageServer(tmp_path, host="no such host")
    with pytest.raises(OptionError, match=r"a port is 0 \(a free one\) to 65535: got 65536"):
        PageServer(tmp_path, 65536)
    with pytest.raises(OptionError, match=r"a token has at least 16 characters: got one of 5"):
        PageServer(tmp_path, token="short")
    with pytest.raises(StorageError, match=r"no run at .*nowhere"):
        PageServer(tmp_path / "nowhere")


def test_the_verb_prints_the_address_and_ends_by_ctrl_c(tmp_path):
    begun(tmp_path)
    command = [*WATCH, str(tmp_path), "--serve", "0", "--json"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        found = json.loads(process.stdout.readline())
        assert found["url"] == f"http://127.0.0.1:{found['port']}/"
        connection = http.client.HTTPConnection("127.0.0.1", found["port"], timeout=60)
        connection.request("GET", "/")
        assert b"Compute-bound" in connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "")
    assert err == "headrace: open the address in a browser of this machine; Ctrl-C ends it\n"


def test_a_token_from_the_environment_is_needed_and_not_printed(tmp_path):
    command, environment = [*WATCH, str(tmp_path), "--serve", "0"], {**os.environ, "HEADRACE_WATCH_TOKEN": TOKEN}
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        url = process.stdout.readline()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", url)[1])
        assert b" 401 " in say(type("Address", (), {"port": port}), b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 0
    assert "add ?token= and what HEADRACE_WATCH_TOKEN holds" in err
    assert TOKEN not in url + err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--serve", "0", "--once"], 2, "--once shows a run as it is now, --serve goes on with it: give one of them"),
        (["--host", "0.0.0.0"], 2, "--host is where --serve PORT listens: add it, or leave out --host 0.0.0.0"),
        (["--serve", "65536"], 2, "a port is 0 (a free one) to 65535: got 65536"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(tmp_path, arguments, code, message):
    done = subprocess.run([*WATCH, str(tmp_path), *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"headrace: {message}\n")


INJECT = """(() => {
  const script = document.createElement("script");
  script.textContent = "window.injected = 'it ran'";
  document.body.append(script);
  return window.injected ?? "refused";
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_in_chromium_the_page_goes_on_with_the_run_and_keeps_what_the_reader_did(tmp_path):
    run = begun(tmp_path, 40)
    with chromium() as browser, serving(tmp_path, token=TOKEN) as server:
        browser.show(1200, 700)
        browser.visit(server.url_with_token)
        bar = "document.getElementById('live').innerText"
        wait_for(lambda: "step 40 of 100" in browser.evaluate(bar), "the first update")
        assert browser.evaluate("location.href") == server.url
        assert browser.complaints() == []
        # A reader has scrolled, opened a table, zoomed in and gone to a button.
        browser.evaluate("document.querySelectorAll('figure')[1].scrollIntoView()")
        browser.evaluate("document.querySelectorAll('figure details')[1].open = true")
        browser.evaluate("document.querySelectorAll('section').forEach((node) => { node.mark = true; })")
        browser.evaluate("document.querySelectorAll('figure')[1].querySelectorAll('.zoom button')[1].click()")
        browser.evaluate("document.querySelectorAll('summary')[1].focus({ preventScroll: true })")
        shown = "document.querySelectorAll('figure')[1].dataset.steps"
        top = "document.querySelectorAll('figure')[1].getBoundingClientRect().top"
        place, zoomed = browser.evaluate(top), browser.evaluate(shown)
        for step in range(41, 61):
            run.step(step, 1 / step, compute=0.02)
        run.write("evaluate", step=60, epoch=0, loss=0.5, metrics={"accuracy": 0.75}, samples=5, sec=0.1)
        wait_for(lambda: "step 60 of 100" in browser.evaluate(bar), "the new steps")
        assert "0.7500" in browser.evaluate("document.querySelector('main').innerText")
        assert browser.evaluate(top) == pytest.approx(place, abs=60)
        assert browser.evaluate("document.querySelectorAll('figure details')[1].open") is True
        assert browser.evaluate(shown) == zoomed
        assert browser.evaluate("document.activeElement === document.querySelectorAll('summary')[1]") is True
        assert browser.evaluate("[...document.querySelectorAll('section')].filter((node) => node.mark).length") >= 3
        assert browser.evaluate("document.querySelectorAll('figure.chart:not(.drawn)').length") == 0
        assert browser.evaluate("document.querySelectorAll('figure .uplot').length") == browser.evaluate(
            "document.querySelectorAll('figure.chart').length"
        )
        assert {url.partition("?")[0] for url in browser.requests() if not url.startswith("data:")} == {
            server.url,
            f"{server.url}update",
        }
        assert browser.complaints() == []
        assert browser.evaluate(INJECT) == "refused"
        server.shutdown()
        server.socket.close()
        wait_for(lambda: "no answer" in browser.evaluate(bar), "the word that nobody answers")
