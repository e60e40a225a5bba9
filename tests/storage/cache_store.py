"""A store for the tests of the cache: an HTTP server that counts every byte it sends, and files that are read from it.

The content is a formula, so that every process can tell right bytes from wrong ones.
"""

import http.client
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np

from headrace.errors import StorageError
from headrace.storage import File, locate


def content(num_bytes, seed=0):
    """So many bytes that are not to be compressed, repeated or mistaken for others."""
    return np.random.default_rng(seed).bytes(num_bytes)


class HttpFile(File):
    """A file that a `CountingStore` serves; `/seed` with `num_bytes`."""

    is_remote = True

    def __init__(self, url, num_bytes):
        self.place, self.name, self.url, self._size = locate(url), url, url, num_bytes

    @property
    def size(self):
        return self._size

    def read_into(self, offset, buffer):
        view = memoryview(buffer)
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        try:
            connection.request("GET", parts.path, headers={"Range": f"bytes={offset}-{offset + len(view) - 1}"})
            body = connection.getresponse().read()
        except (OSError, http.client.HTTPException) as err:
            raise StorageError(f"cannot read {self.url}: {err}") from err
        finally:
            connection.close()
        if len(body) != len(view):
            raise StorageError(f"cannot read {self.url}: {len(body)} of {len(view)} bytes came")
        view[:] = body

    def read(self, offset, length):
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return memoryview(buffer)

    def close(self):
        pass


class CountingStore(ThreadingHTTPServer):
    """`with CountingStore(num_bytes) as store:` serves `/0`, `/1`, ... of so many bytes each."""

    daemon_threads = True

    def __init__(self, num_bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.num_bytes = num_bytes
        self.requests = []
        """(path, first, last + 1) of each."""
        self.is_open = threading.Event()
        """Requests are answered only while this is set."""
        self.is_open.set()
        self._contents = {}
        self._lock = threading.Lock()

    @property
    def sent_bytes(self):
        with self._lock:
            return sum(end - first for _, first, end in self.requests)

    def url(self, seed=0):
        return f"http://127.0.0.1:{self.server_port}/{seed}"

    def file(self, seed=0):
        return HttpFile(self.url(seed), self.num_bytes)

    def note(self, *request):
        with self._lock:
            self.requests.append(request)

    def content(self, seed):
        with self._lock:
            if seed not in self._contents:
                self._contents[seed] = content(self.num_bytes, seed)
            return self._contents[seed]

    def handle_error(self, *_):
        pass  # clients are killed on purpose

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.is_open.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        self.server.note(self.path, first, last + 1)
        self.server.is_open.wait(120)
        body = self.server.content(int(self.path[1:]))[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
