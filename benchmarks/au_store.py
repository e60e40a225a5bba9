"""The loaders that read from a store, and the ceiling there: what requests alone bring."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore

from au_ranks import Feed
from measure import SECONDS
from peers import load_streaming
from raw_peers import AsBytes, Column, Share, as_list, read_litdata_items, read_mds_columns, read_webdataset_urls
from s3_server import BUCKET

RANGE_BYTES, REQUESTS = 4 << 20, 16
"""Of the ceiling: bytes of each, and how many at once."""


def store_rate(folder: Path) -> float:
    """GB/s of one process that reads the shards in this folder of the bucket forwards, many ranges at once."""
    store = obstore.store.S3Store(BUCKET, client_options={"allow_http": True}, virtual_hosted_style_request=False)
    ranges = (
        (f"{folder.name}/{path.name}", start)
        for path in sorted(folder.glob("*.tar"))
        for start in range(0, path.stat().st_size - RANGE_BYTES, RANGE_BYTES)
    )
    began = time.perf_counter()

    def read(at: tuple[str, int]) -> int:
        if time.perf_counter() - began > SECONDS:
            return 0
        return len(obstore.get_range(store, at[0], start=at[1], length=RANGE_BYTES))

    with ThreadPoolExecutor(REQUESTS) as pool:
        num_bytes = sum(pool.map(read, ranges))
    return num_bytes / (time.perf_counter() - began) / 1e9


def webdataset_feed(place: str, batch_size: int, share: Share) -> Iterator[Any]:
    """WebDataset fetches http URLs by curl."""
    names = sorted(path.name for path in Path(place, "webdataset").glob("*.tar"))
    urls = [f"{os.environ['AWS_ENDPOINT_URL']}/{BUCKET}/webdataset/{name}" for name in names]
    return read_webdataset_urls(urls, batch_size, share)


def mds_feed(place: str, batch_size: int, share: Share) -> Iterator[Any]:
    """MDS fetches whole shards into a folder that all ranks have in common.

    Ranks that were killed leave names in shared memory, by which the next would take shards for fetched that are not.
    """
    load_streaming()
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    local, remote = Path(os.environ["TMPDIR"], "mds"), f"s3://{BUCKET}/mds"
    return read_mds_columns(local, batch_size, share, Column("bin", as_list), remote=remote)


def litdata_feed(place: str, batch_size: int, share: Share) -> Iterator[Any]:
    """LitData fetches whole chunks into a folder that all ranks have in common."""
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS = downloader._OBSTORE_CLIENT_OPTIONS | {
        "allow_http": True
    }  # it knows https only
    local, remote = str(Path(os.environ["TMPDIR"], "litdata")), f"s3://{BUCKET}/litdata"
    return read_litdata_items(remote, batch_size, share, AsBytes(as_list), cache_dir=local)


STORE_PEERS: dict[str, Feed] = {"WebDataset": webdataset_feed, "MDS": mds_feed, "LitData": litdata_feed}
"""Those that read from a store by themselves. A DataLoader over files, Grain's ArrayRecord and SPDL do not."""
