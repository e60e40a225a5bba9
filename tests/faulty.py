"""An HTTP server that serves files from memory and misbehaves on request, and counts what it was asked.

A fault is a function of the handler that answers instead of the server, or returns False to let it answer as usual.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], object]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body would wait 40 ms for its head to be acknowledged
    server: "FaultyServer"

    def do_GET(self):
        self.server.note(self.command, self.path, self.headers.get("Range"))
        self.server.signatures.append(self.headers.get("Authorization"))
        fault = self.server.next_fault(self)
        if fault is None or fault(self) is False:
            self.answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_):
        pass

    @property
    def content(self):
        return self.server.files.get(self.path.partition("?")[0])

    def span(self):
        """First and last+1 of the bytes asked for, or None for all."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(asked[1]), min(int(asked[2]) + 1, len(self.content))) if asked else None

    def answer(self):
        if self.content is None:
            self.refuse(404)
        elif self.span() is None:
            self.send(200, self.content)
        else:
            first, end = self.span()
            self.send(206, self.content[first:end], promised=(first, end))

    def refuse(self, status, body=b"no", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, status, body, *, promised=None, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Accept-Ranges", "bytes")
        if self.server.tag is not None:
            self.send_header("ETag", self.server.tag)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if promised:
            self.send_header("Content-Range", f"bytes {promised[0]}-{promised[1] - 1}/{len(self.content)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self):
        """Close the connection with a reset instead of an end."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


class FaultyServer(ThreadingHTTPServer):
    """`with FaultyServer({"/a": b"..."}) as server:`; `server.faults` are used up by requests, one each."""

    daemon_threads = True

    def __init__(self, files, handler=Handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.files = dict(files)
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.tag: str | None = '"1"'
        self.requests: list[tuple[str, str, str | None]] = []
        self.signatures: list[str | None] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, *request):
        with self._lock:
            self.requests.append(request)

    def next_fault(self, _handler):
        with self._lock:
            return self.faults.pop(0) if self.faults else self.always

    def handle_error(self, *_):
        pass  # a client that goes away is what these tests are about

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class ProxyHandler(Handler):
    """Passes requests on, signed as they are, to another server."""

    @property
    def content(self):
        """The whole file, for faults that send a part of it; kept, so it must stay the same."""
        if self.path not in self.server.files:
            answer, body = self.forward(without="range")
            assert answer.status == 200
            self.server.files[self.path] = body
        return self.server.files[self.path]

    def answer(self):
        self.deliver(self.forward())

    def forward(self, without=None):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=120)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != without:
                upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        return answer, answer.read()

    def deliver(self, found):
        answer, body = found
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command != "HEAD" and answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, body=b"no", **headers):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))  # or what follows would be taken for a request
        super().refuse(status, body, **headers)


class FaultyProxy(FaultyServer):
    """A proxy before a server that listens on port `upstream`, with faults as they are for a FaultyServer."""

    def __init__(self, upstream):
        super().__init__({}, ProxyHandler)
        self.upstream = upstream


def lost(handler):
    """Have the request done, and lose the answer."""
    handler.forward()
    handler.reset()


def status(code, body=b"no", **headers) -> Fault:
    """Refuse with this status."""
    return lambda handler: handler.refuse(code, body, **headers)


def send_part(handler, num_bytes):
    """Promise all that was asked for, and send so many bytes of it."""
    first, end = handler.span() or (0, len(handler.content))
    body = handler.content[first:end]
    handler.send(206 if handler.span() else 200, body[:num_bytes], promised=handler.span(), length=len(body))
    handler.wfile.flush()


def reset_after(num_bytes) -> Fault:
    """Promise everything, send so many bytes, and reset the connection."""

    def fault(handler):
        send_part(handler, num_bytes)
        time.sleep(0.05)  # let what was sent arrive: a reset may overtake it
        handler.reset()

    return fault


def end_after(num_bytes) -> Fault:
    """Promise everything, send so many bytes, and close the connection in order."""

    def fault(handler):
        send_part(handler, num_bytes)
        handler.close_connection = True

    return fault


def flip(handler):
    """Answer with a bit of every 4 KiB of the body turned over."""
    first, end = handler.span() or (0, len(handler.content))
    body = bytearray(handler.content[first:end])
    for at in range(len(body) // 2 % 4096, len(body), 4096):
        body[at] ^= 4
    handler.send(206 if handler.span() else 200, body, promised=handler.span())


def short(num_bytes) -> Fault:
    """A 206 whose Content-Range promises the whole range, with a shorter body that ends in order."""

    def fault(handler):
        first, end = handler.span() or (0, len(handler.content))
        body = handler.content[first:end][:num_bytes]
        handler.send(206 if handler.span() else 200, body, promised=handler.span())

    return fault


def hang(handler):
    """Accept the request and say nothing, until the server ends."""
    handler.server.ended.wait(120)
    handler.close_connection = True


def stall_after(num_bytes) -> Fault:
    """Send so many bytes of the body, then nothing more."""

    def fault(handler):
        send_part(handler, num_bytes)
        hang(handler)

    return fault


def without_ranges(handler):
    """Answer a range request with 200 and everything, as servers do that know no ranges."""
    if handler.content is None:
        return False
    return handler.send(200, handler.content)
