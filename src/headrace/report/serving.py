"""The page of a run under way, served to browsers over HTTP: one page, its updates, and nothing else.

What a run's page tells is not everybody's business, and a port is open to more than the person who opened it. So:

- It listens on the loopback interface unless told otherwise, and every other address needs a token, which comes in the
  address once and is a cookie from then on. Tokens are compared in constant time.
- The Host header must name this machine: else a page of somebody else's, whose name was made to lead here (DNS
  rebinding), could read the answers.
- No path of a request ever becomes a path of a file: two paths are answered, and all others are not found.
- The policy sent with the page lets run the scripts that belong to it alone, known by their hashes.
- A request that is not whole after half a minute is ended, and there are so many at a time.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import ipaddress
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from headrace.errors import OptionError, StorageError
from headrace.report.live import LivePage, frame

SHORTEST_TOKEN = 16
_MOST_REQUESTS = 32
_HOST = re.compile(r"(\[(?P<inside>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:[0-9]{1,5})?")
_FIXED_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves the page of one run. `serve_forever` answers until another thread calls `shutdown`."""

    daemon_threads = True

    def __init__(
        self,
        run: str | Path,
        port: int = 0,
        host: str = "127.0.0.1",
        token: str | None = None,
        every_sec: float = 1.0,
        patience_sec: float = 30.0,
    ) -> None:
        """Listen, and read what there is of the run.

        `run`: its folder, or its file of events; it may not have begun. `port`: 0 to 65535; 0 is a free one.
        `token`: what a browser must bring, 16 characters or more; None is a new one on every address but those of the
        loopback interface, where none is needed. `every_sec`: the least seconds between two looks at the run.
        `patience_sec`: after so many a request that is not answered yet is ended. Raises OptionError for an address
        that cannot be listened at and for a token that is too short, StorageError where there is no run.
        """
        if not 0 <= port <= 65535:
            raise OptionError(f"a port is 0 (a free one) to 65535: got {port}")
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise OptionError(f"a token has at least {SHORTEST_TOKEN} characters: got one of {len(token)}")
        self.page = LivePage(run, every_sec)
        self.host = host
        self._patience_sec = patience_sec
        self._open: dict[Any, float] = {}
        self._slots = threading.BoundedSemaphore(_MOST_REQUESTS)
        self.address_family, address = _resolved(host, port)
        self.is_loopback = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
        try:
            super().__init__(address, _Request)
        except OSError as err:
            raise OptionError(
                f"cannot listen at port {port} of {host}: {err.strerror}; take another one, or 0 for a free one"
            ) from err
        self.token = token or (None if self.is_loopback else secrets.token_urlsafe(32))
        self._session = secrets.token_urlsafe(32)  # what the cookie holds: it is worth nothing to another server
        self.policy = _policy(frame("", "", ""))

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """What to open, without the token."""
        wildcard = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_unspecified
        name = socket.gethostname() if wildcard else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    @property
    def url_with_token(self) -> str:
        """What to open the first time: a secret, where a token is needed."""
        return self.url if self.token is None else f"{self.url}?token={quote(self.token)}"

    def is_own_name(self, host: str) -> bool:
        """Whether a Host header names this machine; no name that others could have made lead here."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = (found["inside"] or found["name"]).removesuffix(".")
        try:
            return ipaddress.ip_address(name).is_loopback or not self.is_loopback
        except ValueError:  # a name, not an address
            return name in {"localhost", self.host.lower()} or (
                not self.is_loopback and name == socket.gethostname().lower()
            )

    def lets_in(self, token: str | None, cookies: str) -> bool:
        """Whether a request may see the run, by the token in its address or by its cookie."""
        if self.token is None:
            return True
        pairs = (part.strip().partition("=") for part in cookies.split(";"))
        found = next((value for name, _, value in pairs if name == self._cookie), "")
        by_token, by_cookie = _same(token or "", self.token), _same(found, self._session)
        return by_token or by_cookie

    @property
    def set_cookie(self) -> str:
        """The header that lets a browser in without the token from now on, until it or this server ends."""
        return f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"

    @property
    def _cookie(self) -> str:
        return f"headrace-watch-{self.port}"  # a browser's cookies are those of all ports of a machine

    def server_bind(self) -> None:
        """Without asking who this machine is, which may take long."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless there are too many."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.pop(request, None)
            self._slots.release()

    def service_actions(self) -> None:
        """Every half second: end those who say nothing, or say it byte by byte."""
        for request, since in list(self._open.items()):
            if time.monotonic() - since > self._patience_sec:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Request(BaseHTTPRequestHandler):
    """One request, answered or refused."""

    server: PageServer

    def do_GET(self) -> None:
        """The page at `/`, and what is new at `/update`."""
        path, _, query = self.path.partition("?")
        hosts = self.headers.get_all("Host") or []
        try:
            asked = parse_qs(query, max_num_fields=4)
        except ValueError:
            self.send_error(400, "a query has at most 4 parts")
            return
        if len(hosts) != 1:
            self.send_error(400, f"a request has one Host header: got {len(hosts)}")
        elif not self.server.is_own_name(hosts[0]):
            self.send_error(403, "this server answers to its own names only; say which with headrace watch --host NAME")
        elif path not in ("/", "/update"):
            self.send_error(404, "there is nothing here but the page, at /")
        elif not self.server.lets_in(asked.get("token", [None])[0], self.headers.get("Cookie", "")):
            self.send_error(401, "open the address that headrace watch printed, with its token")
        else:
            self._show(path, asked.get("known", [""])[0])

    def _show(self, path: str, known: str) -> None:
        try:
            body = self.server.page.whole() if path == "/" else self.server.page.update(known)
        except StorageError as err:
            self.send_error(503, str(err))
            return
        headers = {"Content-Security-Policy": self.server.policy}
        if self.server.token is not None and path == "/":
            headers["Set-Cookie"] = self.server.set_cookie
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        kind = "text/html; charset=utf-8" if path == "/" else "application/json"
        self._answer(200, kind, body, headers)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of plain text; what was asked for is in it at most as text."""
        text = message or self.responses.get(code, ("refused", ""))[0]
        headers = {"Content-Security-Policy": "default-src 'none'", "Connection": "close"}
        self._answer(code, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)

    def _answer(self, status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_FIXED_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Which program this is, not of which version."""
        return "headrace"

    def log_message(self, format: str, *args: Any) -> None:
        """No request is noted: a token may be in its address."""


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as err:
        raise OptionError(f"cannot listen at {host!r}: it is no address of this machine, and no name of one") from err
    return family, address


def _same(given: str, right: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _policy(page: str) -> str:
    """What the page may do: run its own scripts, have its own style, ask this server for more."""
    scripts, styles = (
        " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {scripts}; style-src-elem {styles}; style-src-attr 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was over already
