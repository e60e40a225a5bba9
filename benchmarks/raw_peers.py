"""Raw records through the loaders of other libraries: each a folder that it reads, and an iterator of batches from it.

A batch is a list of byte strings in the trainer's memory, or what a function makes of such a list in the workers; one
rank alone has two of these, as headrace has two threads; every epoch is shuffled, without end. A library that asks the
environment for its rank finds it there (`au_ranks.py`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import peers

WORKERS = 2
SHARD_BYTES = 64 << 20
SHUFFLE_BUFFER = 1000

Make: TypeAlias = Callable[[list[Any]], Any]
"""What becomes of the byte strings of a batch."""


class Share(NamedTuple):
    """A rank's part of the data, and the workers that read it."""

    rank: int = 0
    world_size: int = 1
    workers: int = WORKERS


def records(sizes: Iterable[int]) -> Iterator[bytes]:
    """Random bytes of these sizes, the same for every library."""
    rng = random.Random(0)
    return map(rng.randbytes, sizes)


class LooseFiles:
    """A folder of files as a map-style dataset."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(map(str, folder.iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> bytes:
        with open(self.paths[i], "rb") as file:
            return file.read()


def as_list(items: list[Any]) -> list[Any]:
    """A batch as it comes."""
    return items


def write_loose(folder: Path, data: Iterator[bytes]) -> None:
    folder.mkdir()
    for number, record in enumerate(data):
        (folder / f"{number:06d}.bin").write_bytes(record)


def read_loose(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    """PyTorch's DataLoader over loose files."""
    from torch.utils.data import DataLoader, DistributedSampler

    files = LooseFiles(folder)
    sampler = DistributedSampler(files, share.world_size, share.rank, shuffle=True, drop_last=True)
    loader = DataLoader(
        files,
        batch_size,
        sampler=sampler,
        num_workers=share.workers,
        collate_fn=make,
        drop_last=True,
        persistent_workers=True,
    )

    def batches() -> Iterator[list[Any]]:
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    return batches()


def write_webdataset(folder: Path, data: Iterator[bytes]) -> None:
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as writer:
        for number, record in enumerate(data):
            writer.write({"__key__": f"{number:06d}", "bin": record})


def read_webdataset(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    return read_webdataset_urls(sorted(map(str, folder.glob("*.tar"))), batch_size, share, make)


def read_webdataset_urls(urls: list[str], batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    import webdataset

    dataset = webdataset.WebDataset(
        urls, shardshuffle=len(urls), nodesplitter=webdataset.split_by_node, empty_check=False
    )
    samples = dataset.shuffle(SHUFFLE_BUFFER).to_tuple("bin").map(_first).batched(batch_size, collation_fn=make)
    return iter(webdataset.WebLoader(samples.repeat(), batch_size=None, num_workers=share.workers))


def write_mds(folder: Path, data: Iterator[bytes]) -> None:
    write_mds_columns(folder, {"bin": "bytes"}, ({"bin": record} for record in data))


def write_mds_columns(folder: Path, columns: dict[str, str], samples: Iterable[dict[str, Any]]) -> None:
    """Samples whose fields MDS encodes as `columns` says."""
    base = peers.load_streaming()
    with base.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES, progress_bar=False) as writer:
        for sample in samples:
            writer.write(sample)


def read_mds(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    return read_mds_columns(folder, batch_size, share, Column("bin", make))


def read_mds_columns(
    folder: Path, batch_size: int, share: Share, collate: Make | None, **options: Any
) -> Iterator[Any]:
    """`collate` takes a batch's samples, which are dicts; None is PyTorch's own. `options` are the dataset's."""
    from torch.utils.data import DataLoader

    base = peers.load_streaming()
    dataset = base.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=batch_size, num_canonical_nodes=1, **options
    )
    for stream in dataset.streams:
        # Workers are forked, and would share the connection by which the index was fetched, each taking the other's
        # answers.
        stream._downloader.clean_up()
    loader = DataLoader(
        dataset, batch_size, num_workers=share.workers, collate_fn=collate, drop_last=True, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def write_litdata(folder: Path, data: Iterable[Any], **options: Any) -> None:
    """Anything that LitData can store; `options` are its writer's."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=SHARD_BYTES, **options)
    for number, record in enumerate(data):
        writer[number] = record
    writer.done()
    writer.merge()


def read_litdata(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    return read_litdata_items(folder, batch_size, share, AsBytes(make))


def read_litdata_items(
    folder: Path | str, batch_size: int, share: Share, collate: Make | None, **options: Any
) -> Iterator[Any]:
    """`collate` takes a batch's items; None is PyTorch's own. `options` are the dataset's."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, **options)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=share.workers, collate_fn=collate, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def write_grain(folder: Path, data: Iterator[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "data.array_record"), "group_size:1,uncompressed")
    for record in data:
        writer.write(record)
    writer.close()


def read_grain(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    import grain.python as grain

    source = grain.ArrayRecordDataSource([str(folder / "data.array_record")])
    dataset = grain.MapDataset.source(source).shuffle(seed=0)[share.rank :: share.world_size].repeat().to_iter_dataset()
    batches = dataset.batch(batch_size, batch_fn=_AsArray(make))
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=share.workers)))


def read_spdl(folder: Path, batch_size: int, share: Share, make: Make = as_list) -> Iterator[Any]:
    """SPDL over loose files: a pipeline of threads that read and put together."""
    from spdl.pipeline import PipelineBuilder

    paths = sorted(map(str, folder.iterdir()))
    source = itertools.islice(_endless(paths), share.rank, None, share.world_size)
    builder = PipelineBuilder().add_source(source).pipe(_read_file, concurrency=share.workers)
    batched = builder.aggregate(batch_size, drop_last=True).pipe(make, concurrency=share.workers)
    pipeline = batched.add_sink(4).build(num_threads=share.workers)

    def batches() -> Iterator[Any]:
        with pipeline.auto_stop():
            yield from pipeline

    return batches()


class Peer(NamedTuple):
    """A library, the name of the folder that it reads, what writes records there, and what reads batches of them."""

    module: str
    stored: str
    write: Callable[[Path, Iterator[bytes]], None]
    read: Callable[..., Iterator[Any]]
    """`read(folder, batch_size, share, make)`: `make` is what workers do with the byte strings of a batch."""


PEERS = {
    "DataLoader over loose files": Peer("torch", "loose", write_loose, read_loose),
    "WebDataset": Peer("webdataset", "webdataset", write_webdataset, read_webdataset),
    "MDS": Peer("streaming", "mds", write_mds, read_mds),
    "LitData": Peer("litdata", "litdata", write_litdata, read_litdata),
    "Grain": Peer("grain", "grain", write_grain, read_grain),
    "SPDL": Peer("spdl", "loose", write_loose, read_spdl),
}


def installed(names: Iterable[str] = PEERS) -> list[str]:
    """Those of the peers that are here."""
    return peers.installed({name: PEERS[name].module for name in names})


def write_peers(folder: Path, names: Iterable[str], sizes: list[int]) -> None:
    """The same records for each of some peers, each in its `stored` folder."""
    for peer in map(PEERS.__getitem__, names):
        if not (folder / peer.stored).exists():
            peer.write(folder / peer.stored, records(sizes))


@dataclass(frozen=True)
class Column:
    """What is made of one field of a batch's samples."""

    field: str
    make: Make

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        return self.make([item[self.field] for item in items])


def _first(values: tuple[Any, ...]) -> Any:
    return values[0]


@dataclass(frozen=True)
class AsBytes:
    """Views of a chunk cannot be sent from a worker."""

    make: Make

    def __call__(self, items: list[Any]) -> Any:
        return self.make(list(map(bytes, items)))


@dataclass(frozen=True)
class _AsArray:
    """Grain sends arrays through shared memory, tensors it does not."""

    make: Make

    def __call__(self, items: list[Any]) -> Any:
        made = self.make(items)
        return made if isinstance(made, list) else made.numpy()


def _endless(paths: list[str]) -> Iterator[str]:
    rng = random.Random(0)
    while True:
        yield from rng.sample(paths, len(paths))


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
