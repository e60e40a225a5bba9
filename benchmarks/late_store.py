"""An object store on this machine that answers late: S3's GET and HEAD of the files of a folder, each after a delay.

It lists nothing, which a dataset with a manifest is not asked for but to look for a folder.
Every answer begins so many milliseconds after its request, however many are under way, and then comes as fast as this
machine sends it (`sendfile`), so that the store takes little of the processors from whoever is measured. Signatures are
not looked at. It is a process of its own and listens on this machine only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BUCKET = "bucket"


@contextlib.contextmanager
def late_store(folder: Path, delay_ms: float) -> Iterator[dict[str, str]]:
    """Serve a folder as s3://bucket while the block runs; gives the environment that a client needs."""
    command = [sys.executable, __file__, str(folder), str(delay_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "any",
                "AWS_SECRET_ACCESS_KEY": "any",
                "AWS_REGION": "us-east-1",
            }
        finally:
            process.kill()


class Store:
    """The files of a folder."""

    def __init__(self, folder: Path, delay_sec: float) -> None:
        self._folder, self._delay_sec = folder, delay_sec

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what one connection asks, until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await asyncio.sleep(self._delay_sec)
                await self._answer(head, writer)
        writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        method, path = head.split(" ", 2)[:2]
        if "list-type=2" in path:
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
            writer.write(_head("200 OK", len(body)) + body)
            return
        file = self._folder / path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        if method not in ("GET", "HEAD") or ".." in path or not file.is_file():
            body = b"<Error><Code>NoSuchKey</Code></Error>"
            writer.write(_head("404 Not Found", len(body)) + (body if method != "HEAD" else b""))
            return
        size = file.stat().st_size
        asked = re.search(r"(?im)^range:\s*bytes=(\d+)-(\d*)", head)
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        part = (f"Content-Range: bytes {first}-{last}/{size}",) if asked else ()
        writer.write(_head("206 Partial Content" if asked else "200 OK", last + 1 - first, *part))
        if method == "GET":
            with file.open("rb") as opened:
                await asyncio.get_running_loop().sendfile(writer.transport, opened, first, last + 1 - first)


def _head(status: str, num_bytes: int, *lines: str) -> bytes:
    always = ('ETag: "1"', "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges: bytes")
    return "\r\n".join((f"HTTP/1.1 {status}", *always, f"Content-Length: {num_bytes}", *lines, "", "")).encode()


async def _main(folder: Path, delay_sec: float) -> None:
    async with await asyncio.start_server(Store(folder, delay_sec).serve, "127.0.0.1", 0) as server:
        await server.start_serving()
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone, however that ended
        os._exit(0)  # connections may be open


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
