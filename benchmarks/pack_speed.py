"""Packing 3,000 JPEGs of 117 KB from loose files into shards, beside the writers of WebDataset, MDS and LitData.

    python benchmarks/pack_speed.py [--images FOLDER] [--rounds 5] [--workers 2]

All read the same files out of the page cache, in one random order, and write bytes and a class into shards of 64 MiB on
the same disk. headrace checks every image's structure, writes checksums of every sample and shard, and flushes what it
wrote to the disk; the others do as their defaults are. The ceiling is one thread that reads each file and writes its
bytes, with nothing around them. Peers that are not installed are left out (pip install --no-deps -r tests/peers.txt).

Then headrace alone packs them with `resize_short=256`: images/s, and how much of all cores it kept busy all along, from
the first look at the source to the manifest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import random
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import headrace as hr
from make_images import write_images
from measure import Spread, finish, ratio, rounds

SHARD_BYTES = 64 << 20


def write_raw(paths: list[Path], target: Path, workers: int) -> None:
    """Every file's bytes, one behind the other."""
    written, fd = SHARD_BYTES, -1
    target.mkdir()
    for number, path in enumerate(paths):
        data = path.read_bytes()
        if written + len(data) > SHARD_BYTES:
            if fd >= 0:
                os.close(fd)
            fd, written = os.open(target / f"{number}.bin", os.O_WRONLY | os.O_CREAT, 0o644), 0
        os.write(fd, data)
        written += len(data)
    os.close(fd)


def write_headrace(paths: list[Path], target: Path, workers: int) -> None:
    """`hr.pack` of the folder of class folders."""
    hr.pack(paths[0].parents[1], target, workers=workers)


def write_webdataset(paths: list[Path], target: Path, workers: int) -> None:
    """`webdataset.ShardWriter`."""
    import webdataset

    target.mkdir()
    with webdataset.ShardWriter(str(target / "%06d.tar"), maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as writer:
        for path in paths:
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": class_of(path)})


def write_mds(paths: list[Path], target: Path, workers: int) -> None:
    """`MDSWriter`, without hashes and compression."""
    with_streaming()
    from streaming.base import MDSWriter

    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(target), columns=columns, size_limit=SHARD_BYTES, progress_bar=False) as writer:
        for path in paths:
            writer.write({"jpg": path.read_bytes(), "cls": class_of(path)})


def write_litdata(paths: list[Path], target: Path, workers: int) -> None:
    """`litdata.optimize`, with as many worker processes as headrace has threads."""
    import litdata

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        litdata.optimize(
            fn=litdata_sample,
            inputs=[str(path) for path in paths],
            output_dir=str(target),
            chunk_bytes=SHARD_BYTES,
            num_workers=workers,
            verbose=False,
        )


def litdata_sample(path: str) -> dict[str, object]:
    """A sample as LitData's workers make it."""
    return {"jpg": Path(path).read_bytes(), "cls": class_of(Path(path))}


def class_of(path: Path) -> int:
    """The number of a class folder."""
    return int(path.parent.name.rpartition("-")[2])


def with_streaming() -> None:
    """Import `streaming.base` alone: the package's own `__init__` asks for torchvision, which writing MDS does not."""
    if "streaming" in sys.modules:
        return
    package = types.ModuleType("streaming")
    package.__path__ = list(importlib.util.find_spec("streaming").submodule_search_locations)
    sys.modules["streaming"] = package
    for module, name in (("feature_extraction_utils", "BatchFeature"), ("tokenization_utils_base", "BatchEncoding")):
        sys.modules.setdefault("transformers", types.ModuleType("transformers"))
        sys.modules["transformers." + module] = types.ModuleType("transformers." + module)
        setattr(sys.modules["transformers." + module], name, type(name, (), {}))


CANDIDATES: dict[str, tuple[str | None, Callable[[list[Path], Path, int], None]]] = {
    "ceiling: read and write the bytes": (None, write_raw),
    "headrace": (None, write_headrace),
    "webdataset.ShardWriter": ("webdataset", write_webdataset),
    "MDSWriter": ("streaming", write_mds),
    "litdata.optimize": ("litdata", write_litdata),
}


def rate_of(write: Callable[[list[Path], Path, int], None], paths: list[Path], folder: Path, workers: int) -> float:
    """Images a second of one candidate."""
    target = folder / "out"
    began = time.perf_counter()
    write(paths, target, workers)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return len(paths) / seconds


def resized(paths: list[Path], folder: Path, workers: int) -> tuple[float, float]:
    """Images a second with `resize_short=256`, and the share of all cores that this process kept busy."""
    target = folder / "out"
    began, began_busy = time.perf_counter(), time.process_time()
    hr.pack(paths[0].parents[1], target, workers=workers, resize_short=256)
    seconds, busy = time.perf_counter() - began, time.process_time() - began_busy
    shutil.rmtree(target)
    return len(paths) / seconds, busy / seconds / len(os.sched_getaffinity(0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder that make_images.py made; else one is made")
    parser.add_argument("--count", type=int, default=3000, help="images to make")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="threads of headrace, processes of LitData")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.images is None:
            options.images = folder / "images"
            write_images(options.images, options.count)
        paths = sorted(options.images.rglob("*.jpg"))
        random.Random(0).shuffle(paths)
        usable = {
            title: write
            for title, (module, write) in CANDIDATES.items()
            if module is None or importlib.util.find_spec(module) is not None
        }
        rates = rounds(
            {
                title: lambda write=write: rate_of(write, paths, folder, options.workers)
                for title, write in usable.items()
            },
            options.rounds,
        )
        resizing = [resized(paths, folder, options.workers) for _ in range(options.rounds + 1)][1:]
    ours = rates["headrace"]
    shares = {f"headrace / {title}": ratio(ours, rate) for title, rate in rates.items() if title != "headrace"}
    finish(
        f"packing {len(paths):,} JPEGs into shards, images/s",
        {
            **rates,
            **shares,
            "headrace, resize_short=256": Spread(tuple(rate for rate, _ in resizing)),
            "  of it: share of all cores busy": Spread(tuple(share for _, share in resizing)),
        },
        rounds=options.rounds,
        workers=options.workers,
    )


if __name__ == "__main__":
    main()
