"""Some columns of Parquet shards in a store: what of them is asked for, with and without a cache."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from faulty import FaultyServer

NUM_ROWS, GROUP_ROWS, PHOTO_BYTES = 48, 8, 500_000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """An indexed Parquet file of six row groups: in each a column of 4 MB lies between small ones."""
    folder = tmp_path_factory.mktemp("columns") / "table"
    folder.mkdir()
    rng = np.random.default_rng(0)
    columns = {
        "id": range(NUM_ROWS),
        "photo": [rng.bytes(PHOTO_BYTES) for _ in range(NUM_ROWS)],
        "label": [i % 3 for i in range(NUM_ROWS)],
        "text": [f"row {i}" for i in range(NUM_ROWS)],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=GROUP_ROWS)
    hr.index(folder)
    return folder


@pytest.fixture
def server(table):
    with FaultyServer({f"/{path.name}": path.read_bytes() for path in table.iterdir()}) as server:
        yield server


def asked(server):
    """(first, last + 1) of every range of the shard that was asked for."""
    spans = [span for _, path, span in server.requests if path == "/rows.parquet" and span is not None]
    pairs = (map(int, span.removeprefix("bytes=").split("-")) for span in spans)
    return [(first, last + 1) for first, last in pairs]


def photos(table):
    """(first, last + 1) of every chunk of photos."""
    found = pq.ParquetFile(table / "rows.parquet").metadata
    chunks = [found.row_group(k).column(1) for k in range(found.num_row_groups)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return [(start, start + chunk.total_compressed_size) for start, chunk in zip(starts, chunks, strict=True)]


def num_bytes(ranges):
    return sum(last - first for first, last in ranges)


def ids(loader):
    return sorted(i for batch in loader for i in batch["id"].tolist())


def test_a_large_column_between_wanted_ones_is_not_asked_for(server, table):
    """Each row group takes one request before the large column and one behind it, and these hold little else."""
    ds = hr.open(server.url, fields=["text", "id"])
    with hr.Loader(hr.Stream(ds, seed=1, partitions=4), batch_size=12) as loader:
        assert ids(loader) == list(range(NUM_ROWS))
        read_bytes = loader.meters()["stages"]["read"]["bytes"]
    assert ds[20] == {"__key__": "rows:20", "id": 20, "text": "row 20"}
    ranges, large = set(asked(server)), photos(table)
    assert len(ranges) == 2 * len(large)
    assert read_bytes == num_bytes(ranges) < 20_000 < num_bytes(large)
    assert all(last <= start or end <= first for first, last in ranges for start, end in large)


def test_a_cache_asks_for_the_blocks_that_hold_them(server, table, tmp_path):
    """A row group is over two of the cache's blocks of 2 MiB: those inside of the large column stay away."""
    ds = hr.open(server.url, fields=["text", "id"], cache=tmp_path / "cache")
    with hr.Loader(hr.Stream(ds, seed=1, partitions=4, epochs=2), batch_size=12) as loader:
        assert ids(loader) == sorted([*range(NUM_ROWS)] * 2)
    size = (table / "rows.parquet").stat().st_size
    assert num_bytes(asked(server)) < 0.7 * size


def test_columns_garbled_on_their_way_are_fetched_again(server, table):
    garbled = bytearray(server.files["/rows.parquet"])
    at = photos(table)[0][1] + 10  # behind the photos, in the second range
    garbled[at] ^= 1

    def fault(handler):
        if (
            handler.path == "/rows.parquet"
            and handler.span() is not None
            and handler.span()[0] <= at < handler.span()[1]
        ):
            server.always = None
            first, end = handler.span()
            return handler.send(206, bytes(garbled[first:end]), promised=(first, end))
        return False

    server.always = fault
    ds = hr.open(server.url, fields=["label", "id"])
    assert ds[0] == {"__key__": "rows:0", "id": 0, "label": 0}
    assert server.always is None
    with hr.Loader(hr.Stream(ds), batch_size=12) as loader:
        assert ids(loader) == list(range(NUM_ROWS))
