"""Windows of tokens into the trainer's memory: GB/s of 2,048 tokens as int64 in batches of 256, beside other loaders.

    python benchmarks/feed_tokens.py [--dtype uint16|uint32] [--deliver int64|int32] [--tokens 400000000]
                                     [--batch-size 256] [--threads 2] [--processes 2] [--rounds 5]

GB/s are of delivered bytes, so int64 has twice those of int32 at as many windows/s. uint32 as int32 is a function's
work in headrace, sample by sample, since its cast never cuts numbers off. The ceiling is what numpy alone makes of a
memory map: windows drawn at random, cast into as many batches as a loader has, by one process and by as many as the
loaders have; none of these is handed to anybody. headrace verifies a checksum of every 64 KiB, the others none.

Everybody shuffles windows and delivers one array a batch. MDS has a sample a window, an array column of fixed shape;
LitData has documents laid end to end, cut by its TokensLoader. All data lies on the local disk and, after the first
pass, in the page cache. Every measurement is a process of its own; candidates take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headrace as hr
from measure import SECONDS, Spread, delivered, finish, given, in_own_process, ratio, rounds, scaled, together
from peers import installed, versions
from raw_peers import Column, Share, read_litdata_items, read_mds_columns, write_litdata, write_mds_columns

LENGTH = 2048
DOCUMENT = 20_000
"""Tokens of each, those of a long article: how long they are decides nothing where windows run over their ends."""
NUM_BATCHES = 5
"""Those of the ceiling, as many as a loader has slots."""
VOCABULARY = {"uint16": 50_257, "uint32": 151_936}


@dataclass(frozen=True)
class Stacked:
    """Windows of a batch as one tensor of another type, made in the worker."""

    dtype: str

    def __call__(self, windows: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(windows, dtype=self.dtype, casting="same_kind"))


def mapped(folder: Path, options: argparse.Namespace) -> Any:
    """All tokens, as numpy maps them."""
    return np.memmap(folder / "tokens.bin", options.dtype, "r")


def gathered_rate(folder: Path, options: argparse.Namespace, seed: int = 0) -> float:
    """Windows/s of one process that draws them from the memory map and casts them into batches."""
    tokens, rng = mapped(folder, options), np.random.default_rng(seed)
    batches = np.ones((NUM_BATCHES, options.batch_size, LENGTH), options.deliver)  # zeros would be touched meanwhile
    count, began = 0, time.perf_counter()
    for batch in itertools.cycle(batches):
        for row, window in zip(batch, rng.integers(len(tokens) // LENGTH, size=len(batch)).tolist(), strict=True):
            row[:] = tokens[window * LENGTH : (window + 1) * LENGTH]
        count += len(batch)
        if time.perf_counter() - began > SECONDS:
            break
    return count / (time.perf_counter() - began)


def gathered_by_processes(folder: Path, options: argparse.Namespace) -> float:
    """Windows/s of several such processes together."""
    return together(partial(gathered_rate, folder, options), options.processes)


def headrace_batches(folder: Path, options: argparse.Namespace, **workers: int) -> Iterator[Any]:
    """What a `headrace.Loader` gives."""
    stream = hr.Stream(hr.open(folder / "headrace").windows(LENGTH), epochs=None)
    if (options.dtype, options.deliver) == ("uint32", "int32"):
        stream = stream.map(signed, shapes={"tokens": ("int32", (LENGTH,))})  # a cast never cuts numbers off
    else:
        stream = stream.cast({"tokens": options.deliver})
    with hr.Loader(stream, batch_size=options.batch_size, **workers) as loader:
        for batch in loader:
            yield batch["tokens"]


def signed(sample: dict[str, Any]) -> dict[str, Any]:
    """Tokens of uint32 as int32."""
    return {**sample, "tokens": sample["tokens"].view(np.int32)}


def write_headrace(folder: Path, tokens: Any, options: argparse.Namespace) -> None:
    documents = (tokens[at : at + DOCUMENT] for at in range(0, len(tokens), DOCUMENT))
    hr.pack(({"tokens": document} for document in documents), folder, format="tokens")


def write_mds(folder: Path, tokens: Any, options: argparse.Namespace) -> None:
    windows = (np.asarray(tokens[at : at + LENGTH]) for at in range(0, len(tokens) - LENGTH + 1, LENGTH))
    columns = {"tokens": f"ndarray:{options.dtype}:{LENGTH}"}
    write_mds_columns(folder, columns, ({"tokens": window} for window in windows))


def mds_batches(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    collate = Column("tokens", Stacked(options.deliver))
    return read_mds_columns(folder, options.batch_size, Share(workers=options.processes), collate)


def write_litdata_tokens(folder: Path, tokens: Any, options: argparse.Namespace) -> None:
    from litdata.streaming.item_loader import TokensLoader

    documents = (np.asarray(tokens[at : at + DOCUMENT]) for at in range(0, len(tokens), DOCUMENT))
    write_litdata(folder, documents, item_loader=TokensLoader())


def litdata_batches(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    from litdata import TokensLoader

    share, collate = Share(workers=options.processes), Stacked(options.deliver)
    return read_litdata_items(folder, options.batch_size, share, collate, item_loader=TokensLoader(block_size=LENGTH))


PEERS: dict[str, tuple[str, Callable[..., None], Callable[..., Iterator[Any]]]] = {
    "MDS": ("streaming", write_mds, mds_batches),
    "LitData TokensLoader": ("litdata", write_litdata_tokens, litdata_batches),
}
"""The module of each, what writes tokens into a folder, and what reads batches of windows from there."""
CEILINGS = {"memory map, one process": gathered_rate, "memory map, processes": gathered_by_processes}
OURS = {"headrace by processes": "processes", "headrace by threads": "threads"}


def measure_here(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Windows/s of one candidate, in this process."""
    if name in CEILINGS:
        return CEILINGS[name](folder, options)
    if name in OURS:
        batches = headrace_batches(folder, options, **{OURS[name]: getattr(options, OURS[name])})
    else:
        batches = PEERS[name][2](folder / name, options)
    return delivered(batches, partial(checked, options))


def checked(options: argparse.Namespace, batch: torch.Tensor) -> int:
    """Windows of a batch that is what was asked for."""
    assert batch.shape == (options.batch_size, LENGTH)
    assert batch.dtype == getattr(torch, options.deliver)
    return len(batch)


def write_all(folder: Path, names: list[str], options: argparse.Namespace) -> None:
    """The same tokens for everybody."""
    rng = np.random.default_rng(0)
    rng.integers(0, VOCABULARY[options.dtype], options.tokens, options.dtype).tofile(folder / "tokens.bin")
    tokens = mapped(folder, options)
    write_headrace(folder / "headrace", tokens, options)
    for name in names:
        PEERS[name][1](folder / name, tokens, options)


def compared(rates: dict[str, Spread], names: list[str]) -> dict[str, Spread]:
    """Shares of the ceilings and ratios to the peers, of headrace by processes and by threads."""
    others = [*CEILINGS, *names]
    return {f"{ours} / {other}": ratio(rates[ours], rates[other]) for ours in OURS for other in others}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=VOCABULARY, default="uint16", help="of the stored tokens")
    parser.add_argument("--deliver", choices=["int64", "int32"], default="int64", help="type of the batches")
    parser.add_argument("--tokens", type=int, default=400_000_000, help="tokens in the dataset")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2, help="of headrace's loader process")
    parser.add_argument("--processes", type=int, default=2, help="workers of headrace, of peers and of the ceiling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.here[0], Path(options.here[1]), options)))
        return
    names = installed({name: module for name, (module, _, _) in PEERS.items()})
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), names, options)
        candidates = [*CEILINGS, *OURS, *names]
        measures = {name: partial(in_own_process, __file__, options, name, folder) for name in candidates}
        rates = rounds(measures, options.rounds)
    gigabytes = LENGTH * np.dtype(options.deliver).itemsize / 1e9
    finish(
        f"windows of {LENGTH:,} tokens, {options.dtype} at rest, delivered as {options.deliver}",
        {
            **{f"{name}, windows/s": rate for name, rate in rates.items()},
            **{f"{name}, GB/s": scaled(rate, gigabytes) for name, rate in rates.items()},
            **compared(rates, names),
        },
        versions=versions("mosaicml-streaming", "litdata"),
        **given(options),
    )


if __name__ == "__main__":
    main()
