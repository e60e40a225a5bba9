"""Rows of a Parquet table through the loaders of other libraries: batches of columns, shuffled, without end.

MDS and LitData have formats of their own, and get fewer of the rows, as writing takes them long; the others read the
same files as headrace. WebDataset and SPDL have no tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, get_worker_info

from raw_peers import (
    SHUFFLE_BUFFER,
    Share,
    read_litdata_items,
    read_mds_columns,
    write_litdata,
    write_mds_columns,
)

NUM_FLOATS = 8
NUM_FILES, GROUPS_OF_A_FILE = 16, 4
FEW_ROWS = 200_000
"""Of peers that have a format of their own."""


def write_table(folder: Path, num_rows: int) -> None:
    """The table: eight columns of float32 and one of int64, in files of several row groups, of equally many rows."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    count = num_rows // NUM_FILES
    for number in range(NUM_FILES):
        columns = {f"f{k}": rng.random(count, np.float32) for k in range(NUM_FLOATS)}
        table = pa.table(columns | {"label": rng.integers(0, 1000, count)})
        pq.write_table(table, folder / f"part-{number:02d}.parquet", row_group_size=-(-count // GROUPS_OF_A_FILE))


def files(folder: Path) -> list[str]:
    """Those of the table."""
    return sorted(map(str, folder.glob("*.parquet")))


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The first rows one by one, for those that write them anew."""
    table = pa.concat_tables(pq.read_table(path) for path in files(folder)).slice(0, FEW_ROWS)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


class TableFiles(IterableDataset[dict[str, Any]]):
    """Batches out of whole files: each worker shuffles its files, and the rows of each."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._paths, self._batch_size = files(folder), batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        paths, rng = self._paths[worker.id :: worker.num_workers], np.random.default_rng(worker.id)
        while True:
            for path in rng.permutation(paths).tolist():
                yield from self._batches(pq.read_table(path), rng)

    def _batches(self, table: pa.Table, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        order, size = rng.permutation(len(table)), self._batch_size
        columns = {name: table.column(name).to_numpy()[order] for name in table.column_names}
        for at in range(0, len(table) - size + 1, size):
            yield {name: column[at : at + size] for name, column in columns.items()}


def read_tables(folder: Path, batch_size: int, share: Share) -> Iterator[Any]:
    loader = DataLoader(TableFiles(folder, batch_size), batch_size=None, num_workers=share.workers)
    return iter(loader)


def read_huggingface(folder: Path, batch_size: int, share: Share) -> Iterator[Any]:
    """Rows of a batch are asked for together, out of the copy that it keeps as Arrow files."""
    import datasets

    datasets.disable_progress_bars()
    kept = str(folder.parent / "huggingface")
    dataset = datasets.load_dataset("parquet", data_files=files(folder), split="train", cache_dir=kept)
    batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last=True)
    loader = DataLoader(
        dataset.with_format("torch"),
        batch_size=None,
        sampler=batches,
        num_workers=share.workers,
        persistent_workers=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def write_mds_rows(folder: Path, table: Path) -> None:
    columns = {f"f{k}": "float32" for k in range(NUM_FLOATS)} | {"label": "int64"}
    write_mds_columns(folder, columns, rows(table))


def write_litdata_rows(folder: Path, table: Path) -> None:
    """A row's floats are one array: as numbers they would be eight of them, each with its own length."""
    floats = [f"f{k}" for k in range(NUM_FLOATS)]
    made = ([np.array([row[name] for name in floats], np.float32), int(row["label"])] for row in rows(table))
    write_litdata(folder, made)


def read_grain_rows(folder: Path, batch_size: int, share: Share) -> Iterator[Any]:
    import grain

    table: Any = grain.experimental.ParquetIterDataset(files(folder))
    shuffled = grain.experimental.WindowShuffleIterDataset(table, window_size=SHUFFLE_BUFFER, seed=0)
    batches = grain.experimental.RepeatIterDataset(shuffled).batch(batch_size)
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=share.workers)))


class RowPeer(NamedTuple):
    """A library, the name of the folder that it reads, what writes that from the table's (if so), and what reads it."""

    module: str
    stored: str
    write: Callable[[Path, Path], None] | None
    read: Callable[[Path, int, Share], Iterator[Any]]


ROW_PEERS = {
    "DataLoader over pyarrow": RowPeer("torch", "table", None, read_tables),
    "Hugging Face datasets": RowPeer("datasets", "table", None, read_huggingface),
    "MDS": RowPeer("streaming", "mds", write_mds_rows, partial(read_mds_columns, collate=None)),
    "LitData": RowPeer("litdata", "litdata", write_litdata_rows, partial(read_litdata_items, collate=None)),
    "Grain": RowPeer("grain", "table", None, read_grain_rows),
}


def write_row_peers(folder: Path, names: list[str]) -> None:
    """The rows for those that do not read the table."""
    for peer in map(ROW_PEERS.__getitem__, names):
        if peer.write is not None:
            peer.write(folder / peer.stored, folder / "table")
