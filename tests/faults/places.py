"""Where the data lies: on the local disk, in an S3 store, on a web server, or there behind a cache."""

import http.client
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import feeding

from faulty import FaultyProxy, FaultyServer
from servers import BUCKET

NAMES = ("local", "s3", "http", "cache")
STALL_AFTER_SEC = 5
TIMEOUT_SEC = 4 * STALL_AFTER_SEC
"""What the reader's patience is set to: a quarter of it without a byte is a stall."""


@dataclass
class Place:
    """A dataset where it can be disturbed."""

    name: str
    url: str
    folder: Path | None = None
    """The dataset's own files, where they are on the local disk."""
    server: FaultyServer | None = None
    """Between the reader and the data, where there is a network between."""
    cache: Path | None = None

    def loader(self, **options):
        """A loader over the dataset."""
        return feeding.loader(self.url, self.cache, **options)

    def shards(self):
        """The shards on the local disk, in order."""
        return sorted(self.folder.glob("*.tar"))

    def blocks(self):
        """The files of what is in the cache."""
        return sorted(self.cache.glob("headrace-cache-*/blocks/*/*"))

    def empty_cache(self):
        """Remove all that is in the cache, if there is one, so that the store is asked again."""
        for block in self.blocks() if self.cache else ():
            block.unlink(missing_ok=True)


@contextmanager
def opened(name, packed, folder, request):
    """The place of that name with the dataset that was packed; `folder` is for what belongs to this run alone."""
    if name == "local":
        yield Place(name, str(shutil.copytree(packed, folder / "data")), folder / "data")
    elif name == "s3":
        request.getfixturevalue("s3_strict")
        port = request.getfixturevalue("packed_on_s3")
        with FaultyProxy(port) as server:
            request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", server.url)
            yield Place(name, f"s3://{BUCKET}/packed", server=server)
    else:
        with FaultyServer({f"/d/{path.name}": path.read_bytes() for path in packed.iterdir()}) as server:
            cache = folder / "cache" if name == "cache" else None
            yield Place(name, f"{server.url}/d", server=server, cache=cache)


def upload(packed, port):
    """Put a packed dataset into the bucket of the S3 server at the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path in packed.iterdir():
        connection.request("PUT", f"/{BUCKET}/packed/{path.name}", path.read_bytes())
        assert connection.getresponse().read() is not None
    connection.close()
