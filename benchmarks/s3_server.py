"""A store behind a latency: what loaders ask of S3, GET and HEAD of objects and lists of them, over a folder.

    python benchmarks/s3_server.py FOLDER --delay-ms 30

Each folder in FOLDER is a bucket. It prints its port, and listens on loopback. Every request, and every new connection,
waits for so long first, as the way to a store would; bodies go from the page cache to the socket by `sendfile`, so that
the server takes little of the cores that loaders need. Signatures are not looked at, and nothing is written. Servers
made for tests do not serve here: rclone's answers ranges with the wrong status, moto and s3rver take cores themselves;
and netem, by which a link would be slow, is not in every kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "data"
"""The folder of this name in what the benchmarks serve."""
LONG_AGO = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"


@contextlib.contextmanager
def serving(folder: Path, delay_ms: float) -> Iterator[dict[str, str]]:
    """The environment that a client needs of a server that is a process of its own."""
    command = [sys.executable, __file__, str(folder), f"--delay-ms={delay_ms}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
            yield keys | {"AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}  # MDS looks for the second
        finally:
            server.kill()


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, delay_sec: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.delay_sec = folder, delay_sec


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        time.sleep(self.server.delay_sec)
        with contextlib.suppress(ConnectionError):  # whoever asked is gone
            super().handle()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""

    def _answer(self, *, with_body: bool) -> None:
        time.sleep(self.server.delay_sec)
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        path = self.server.folder / bucket / key
        if not key and path.is_dir():
            self._send(HTTPStatus.OK, listed(path, parse_qs(url.query)), with_body)
        elif ".." not in path.parts and path.is_file():
            self._send_file(path, with_body)
        else:
            code = "NoSuchKey" if (self.server.folder / bucket).is_dir() else "NoSuchBucket"
            self._send(HTTPStatus.NOT_FOUND, f"<Error><Code>{code}</Code></Error>", with_body)

    def _send(self, status: HTTPStatus, text: str, with_body: bool) -> None:
        body = text.encode()
        self._head(status, len(body), {"Content-Type": "application/xml"})
        if with_body:
            self.wfile.write(body)

    def _send_file(self, path: Path, with_body: bool) -> None:
        size = path.stat().st_size
        first, last = asked_range(self.headers.get("Range"), size)
        fields = {"ETag": f'"{size:x}"', "Last-Modified": LONG_AGO[1], "Accept-Ranges": "bytes"}
        status = HTTPStatus.OK
        if "Range" in self.headers:
            status, fields["Content-Range"] = HTTPStatus.PARTIAL_CONTENT, f"bytes {first}-{last - 1}/{size}"
        self._head(status, last - first, fields)
        if with_body:
            with path.open("rb") as file:
                while first < last:
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first)

    def _head(self, status: HTTPStatus, length: int, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **fields}.items():
            self.send_header(name, value)
        self.end_headers()


def asked_range(field: str | None, size: int) -> tuple[int, int]:
    """Offsets of the first byte and behind the last: of `bytes=a-b`, `bytes=a-` and `bytes=-n`."""
    if field is None:
        return 0, size
    first, _, last = field.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def listed(bucket: Path, query: dict[str, list[str]]) -> str:
    """All objects below a prefix; with a delimiter those below folders are named by these."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    objects, folders = [], set()
    for path in sorted(bucket.rglob("*")):
        key = path.relative_to(bucket).as_posix()
        if not path.is_file() or not key.startswith(prefix):
            continue
        name, is_below, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
        if is_below:
            folders.add(f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>")
        else:
            facts = f"<Size>{path.stat().st_size}</Size><LastModified>{LONG_AGO[0]}</LastModified>"
            objects.append(f"<Contents><Key>{escape(key)}</Key>{facts}</Contents>")
    found = "".join([*objects, *sorted(folders)])
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    server = Server(options.folder, options.delay_ms / 1000)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
