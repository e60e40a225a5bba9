"""Documents in rows of tokens: how full the rows are, and how fast they come, beside Grain's and TRL's packing.

    python benchmarks/pack_tokens.py [--tokens 10000000] [--rounds 2] [--lengths 2048 8192]

Documents have lengths as web text has (lognormal), as instructions and their answers have (two lognormals), and as the
standard library's sources have, by files and by paragraphs, a byte a token. All libraries get the same documents, and
each measurement is a fresh process, from opening the dataset to the last batch of 8 rows; imports are done before. The
share of slots that hold tokens tells how full rows are; a cut is needless in a document that is no longer than a row.

Grain refuses a document longer than a row, so it is given them cut as headrace cuts them; its own packers split none,
and `concat` splits at the end of every row. It reads from a memory map, shuffled, in the process that is measured, as
TRL does; headrace's loader process comes on top of it, checks every checksum, and counts in the memory as a whole.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from measure import Spread, finish, rounds
from order_scale import peak_mib
from peers import versions

BATCH_SIZE, MANY_BINS = 8, 1024
CORPORA = ("web text", "instructions", "files", "paragraphs")
# Tokens and segments (1, 2 and so on for the documents of a row, 0 where it is empty), both of shape (rows, length).
Batch = tuple[Any, Any]


def documents(corpus: str, num_tokens: int) -> tuple[Any, Any]:
    """Tokens of all documents, and where each begins and the last ends."""
    if corpus in ("files", "paragraphs"):
        texts = sources(corpus, num_tokens)
        lengths = np.array([len(text) for text in texts])
        tokens = np.frombuffer(b"".join(texts), np.uint8).astype(np.uint16)
    else:
        rng = np.random.default_rng(0)
        lengths = drawn(rng, corpus, num_tokens)
        tokens = rng.integers(1, 50_000, lengths.sum(), np.uint16)
    return tokens, np.concatenate(([0], np.cumsum(lengths)))


def sources(corpus: str, num_bytes: int) -> list[bytes]:
    """Files, or paragraphs of them, of the standard library's sources until there are so many bytes."""
    texts: list[bytes] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if size < num_bytes and "site-packages" not in path.parts:
            content = path.read_bytes()
            texts += filter(None, [content] if corpus == "files" else re.split(rb"\n\s*\n", content))
            size += len(content)
    return texts


def drawn(rng: np.random.Generator, corpus: str, num_tokens: int) -> Any:
    """Lengths of web text (median 450 tokens), or of instructions (130) with some long answers (700)."""
    most = num_tokens // 50
    lengths = rng.lognormal(np.log(450), 1.1, most)
    if corpus == "instructions":
        short, long = rng.lognormal(np.log(130), 0.8, most), rng.lognormal(np.log(700), 0.7, most)
        lengths = np.where(rng.random(most) < 0.8, short, long)
    lengths = np.maximum(1, lengths).astype(np.int64)
    return lengths[: np.searchsorted(np.cumsum(lengths), num_tokens)]


def write(folder: Path, corpus: str, num_tokens: int) -> None:
    """A corpus as a packed dataset, and as two arrays for the peers."""
    import headrace as hr

    tokens, starts = documents(corpus, num_tokens)
    folder.mkdir()
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "starts.npy", starts)
    each = (tokens[first:last] for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    hr.pack(({"tokens": document} for document in each), folder / "packed", format="tokens")


class Documents:
    """The documents, none or all cut to rows' length, for Grain."""

    def __init__(self, folder: Path, most: int | None) -> None:
        self._tokens, starts = np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "starts.npy")
        if most is not None:
            each = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            starts = np.array([at for first, last in each for at in range(first, last, most)] + [starts[-1]])
        self._starts = starts.tolist()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"tokens": self._tokens[self._starts[i] : self._starts[i + 1]]}


def headrace_rows(folder: Path, length: int) -> Iterator[Batch]:
    """Rows of headrace, planned anew."""
    import headrace as hr

    for path in (folder / "packed").glob(f"*rows-{length}*"):
        path.unlink()
    stream = hr.Stream(hr.open(folder / "packed")).pack_tokens(length)

    def batches() -> Iterator[Batch]:
        with hr.Loader(stream, batch_size=BATCH_SIZE, drop_last=False) as loader:
            for batch in loader:
                yield batch["tokens"].numpy(), batch["segments"].numpy()

    return batches()


def grain_fit(packer: str, num_bins: int, folder: Path, length: int) -> Iterator[Batch]:
    """Rows of Grain's first fit or best fit over so many bins."""
    import grain

    kind = getattr(grain.experimental, packer)
    return grain_batches(
        kind(documents_in_grain(folder, length), length_struct={"tokens": length}, num_packing_bins=num_bins)
    )


def grain_concat(folder: Path, length: int) -> Iterator[Batch]:
    """Rows of Grain's documents laid end to end."""
    import grain

    source = documents_in_grain(folder, None)
    return grain_batches(grain.experimental.ConcatThenSplitIterDataset(source, length_struct={"tokens": length}))


def documents_in_grain(folder: Path, most: int | None) -> Any:
    """The documents, shuffled; without threads, as what is read is in memory."""
    import grain

    source: Any = grain.MapDataset.source(Documents(folder, most))
    return source.shuffle(seed=0).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def grain_batches(rows: Any) -> Iterator[Batch]:
    """Rows in batches."""
    return ((batch["tokens"], batch["tokens_segment_ids"]) for batch in rows.batch(BATCH_SIZE))


def trl_rows(folder: Path, length: int) -> Iterator[Batch]:
    """Rows of TRL's best fit of 1,000 documents at a time, filled up to their length."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    starts, tokens = np.load(folder / "starts.npy"), np.load(folder / "tokens.npy", mmap_mode="r")
    column = pa.ListArray.from_arrays(starts.astype(np.int32), pa.array(tokens))
    source = datasets.Dataset(pa.table({"input_ids": column})).shuffle(seed=0, keep_in_memory=True)
    packed = pack_dataset(source, length, "bfd_split", {"keep_in_memory": True}).with_format("arrow")
    return (filled_up(batch, length) for batch in packed.iter(BATCH_SIZE))


def filled_up(batch: Any, length: int) -> Batch:
    """Rows of TRL as tokens and segments."""
    tokens, segments = (np.zeros((len(batch), length), dtype) for dtype in (np.uint16, np.int32))
    for k in range(len(batch)):
        row, parts = batch["input_ids"][k].values.to_numpy(), batch["seq_lengths"][k].values.to_numpy()
        tokens[k, : len(row)] = row
        segments[k, : len(row)] = np.repeat(np.arange(1, len(parts) + 1), parts)
    return tokens, segments


PACKERS: dict[str, tuple[str, Callable[[Path, int], Iterator[Batch]]]] = {
    "headrace": ("headrace", headrace_rows),
    "Grain first fit, 8 bins": ("grain", partial(grain_fit, "FirstFitPackIterDataset", 8)),
    f"Grain first fit, {MANY_BINS:,} bins": ("grain", partial(grain_fit, "FirstFitPackIterDataset", MANY_BINS)),
    "Grain best fit, 8 bins": ("grain", partial(grain_fit, "BestFitPackIterDataset", 8)),
    f"Grain best fit, {MANY_BINS:,} bins": ("grain", partial(grain_fit, "BestFitPackIterDataset", MANY_BINS)),
    "Grain concat": ("grain", grain_concat),
    "TRL bfd_split": ("trl", trl_rows),
}
IMPORTS = {"headrace": "headrace.load.client", "grain": "grain.experimental", "trl": "trl.data_utils"}


def copied(folder: Path, length: int) -> float:
    """Tokens/s of one core that copies tokens into rows and numbers them, wherever documents end."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    began, batch_tokens = time.perf_counter(), BATCH_SIZE * length
    row, numbers = np.empty(batch_tokens, np.uint16), np.empty((2, batch_tokens), np.int32)
    last = len(tokens) // batch_tokens * batch_tokens
    for at in range(0, last, batch_tokens):
        row[:] = tokens[at : at + batch_tokens]
        numbers[:] = np.arange(batch_tokens)
    return last / (time.perf_counter() - began)


def measured(folder: Path, packer: str, length: int) -> dict[str, float]:
    """What one fresh process finds of one packing. Raises AssertionError unless every token came once."""
    module, rows = PACKERS[packer]
    import_module(IMPORTS[module])
    before, began = peak_mib(), time.perf_counter()
    batches = rows(folder, length)
    planned = time.perf_counter()
    first, slots, used, total, parts = 0.0, 0, 0, 0, 0
    for tokens, segments in batches:
        first = first or time.perf_counter() - planned
        slots += tokens.size
        used += int(np.count_nonzero(segments))
        total += int(tokens.sum(dtype=np.int64))
        parts += int(segments.max(axis=1).sum())
    seconds = time.perf_counter() - began
    lengths = np.diff(np.load(folder / "starts.npy"))
    assert used == lengths.sum()
    assert total == int(np.load(folder / "tokens.npy").sum(dtype=np.int64))
    loader_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "slots that hold tokens, %": 100 * used / slots,
        "needless cuts per 100 documents": 100 * (parts - int((-(-lengths // length)).sum())) / len(lengths),
        "planning, s": planned - began,
        "first batch after that, s": first,
        "tokens/s, planning and first batch included": used / seconds,
        "memory, MB (10^6 bytes)": (peak_mib() - before + loader_mib) * 2**20 / 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of each corpus")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens of a row")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, packer, length = options.one
        print(json.dumps(measured(Path(folder), packer, int(length))))
        return
    missing = {module for module in ("grain", "trl") if importlib.util.find_spec(module) is None}
    if missing:
        print(f"not installed, left out: {', '.join(sorted(missing))}", file=sys.stderr)
    packers = [packer for packer, (module, _) in PACKERS.items() if module not in missing]
    figures: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as name:
        for corpus in CORPORA:
            folder = Path(name) / corpus
            write(folder, corpus, options.tokens)
            for length in options.lengths:
                for figure, spread in compared(folder, packers, length, options.rounds).items():
                    figures[f"{corpus} in rows of {length:,}: {figure}"] = spread
    inputs = {name: value for name, value in vars(options).items() if name != "one"}
    finish("documents in rows of tokens", figures, **inputs, peers=versions("grain", "trl"))


def compared(folder: Path, packers: Sequence[str], length: int, num_rounds: int) -> dict[str, Spread]:
    """The figures of all packers on one corpus, by turns."""
    results: dict[str, list[dict[str, float]]] = {packer: [] for packer in packers}

    def fresh(packer: str) -> float:
        command = [sys.executable, __file__, "--one", str(folder), packer, str(length)]
        results[packer].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        return results[packer][-1]["tokens/s, planning and first batch included"]

    candidates = {"ceiling: copying, tokens/s": lambda: copied(folder, length)}
    rates = rounds(candidates | {packer: partial(fresh, packer) for packer in packers}, num_rounds)
    return {name: rates[name] for name in candidates} | {
        f"{packer}: {figure}": Spread(tuple(result[figure] for result in kept[1:]))
        for packer, kept in results.items()
        for figure in kept[0]
    }


if __name__ == "__main__":
    main()
