"""Datasets that the real litdata package writes, in a process of its own: it imports torch, and warns as it does."""

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest

NUM_SAMPLES = 25
PER_CHUNK = 10
JPEG = b"\xff\xd8\xff\xe0 not a picture, but nobody looks"

needs_litdata = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("litdata", "torch", "zstd", "PIL")),
    reason="litdata is not installed",
)


def array(i):
    return np.arange(i + 1, dtype=np.int16)


def rows(i):
    return {"id": i, "name": f"äö {i}", "score": i / 2, "ok": i % 2 == 0, "tags": ["t"] * (i % 3), "at": {"x": i}}


def pixels(i):
    return np.full((4, 6, 3), i, np.uint8)


# What a dataset's samples are for litdata, and what they read back as here; the options it is written with.
KINDS = {
    "plain": (
        lambda torch, _: (
            lambda i: {"a": i, "b": i / 2, "c": array(i), "s": f"é{i}", "t": i % 2 == 0, "raw": bytes([i])}
        ),
        lambda i: {"a": i, "b": i / 2, "c": array(i), "s": f"é{i}", "t": i % 2 == 0, "raw": bytes([i])},
        {},
    ),
    "arrays": (
        lambda torch, _: (
            lambda i: {
                "n": np.full((2, i), i, np.float32),
                "t": torch.full((i, 3), i, dtype=torch.int64),
                "flat": torch.arange(i, dtype=torch.uint8),
            }
        ),
        lambda i: {
            "n": np.full((2, i), i, np.float32),
            "t": np.full((i, 3), i, np.int64),
            "flat": np.arange(i, dtype=np.uint8),
        },
        {},
    ),
    "nested": (
        lambda torch, _: lambda i: {"a": {"x": array(i), "y": [i, torch.zeros(2)]}, "b": (i, 2.5)},
        lambda i: {"a.x": array(i), "a.y.0": i, "a.y.1": np.zeros(2, np.float32), "b.0": i, "b.1": 2.5},
        {},
    ),
    "tuple": (lambda torch, _: lambda i: (i, array(i)), lambda i: {"0": i, "1": array(i)}, {}),
    "leaf": (lambda torch, _: lambda i: torch.ones(2, 3), lambda i: {"0": np.ones((2, 3), np.float32)}, {}),
    "keys": (
        lambda torch, _: lambda i: {"__key__": f"k/{i}", "c": array(i)},
        lambda i: {"__key__": f"k/{i}", "c": array(i)},
        {},
    ),
    "media": (
        lambda torch, types: (
            lambda i: {
                "jpg": types.Jpeg(bytes=JPEG, max_quality=None),
                "img": types.Image(bytes=JPEG),
                "clip": types.Video(bytes=b"mp4" * i),
                "file": types.File(bytes=bytes([i]), path="a.bin"),
                "text": types.Text(text=f"ö{i}"),
                "list": [{"x": i, "y": None}, {"x": -1, "y": "z"}] * (i % 3),
                "map": {
                    "names": ["a", "ö"],
                    "nums": [i],
                    "floats": [0.5],
                    "flags": [True, False],
                    "deep": {"k": [[1], "x"]},
                },
            }
        ),
        lambda i: {
            "jpg": JPEG,
            "img": JPEG,
            "clip": b"mp4" * i,
            "file": bytes([i]),
            "text": f"ö{i}",
            "list": [{"x": i, "y": None}, {"x": -1, "y": "z"}] * (i % 3),
            "map.names": ["a", "ö"],
            "map.nums": [i],
            "map.floats": [0.5],
            "map.flags": [True, False],
            "map.deep.k": [[1], "x"],
        },
        {},
    ),
    "pil": (
        lambda torch, types: lambda i: {"p": types.Pil(array=pixels(i)), "i": i},
        lambda i: {"p": pixels(i), "i": i},
        {},
    ),
    "jpegs": (
        lambda torch, types: lambda i: {"j": types.JpegArray([types.Jpeg(bytes=JPEG, max_quality=None)] * (i % 3 + 1))},
        lambda i: {"j": [JPEG] * (i % 3 + 1)},
        {},
    ),
    "table": (lambda torch, _: rows, rows, {}),
    "table zstd": (lambda torch, _: rows, rows, {"compression": "zstd"}),
    "table keys": (
        lambda torch, _: lambda i: {"__key__": f"k/{i}", "x": i},
        lambda i: {"__key__": f"k/{i}", "x": i},
        {},
    ),
    "tokens": (lambda torch, _: lambda i: torch.arange(i % 7 + 1), lambda i: {"tokens": np.arange(i % 7 + 1)}, {}),
} | {
    f"zstd {level}": (
        lambda torch, _: lambda i: {"a": i, "c": array(i)},
        lambda i: {"a": i, "c": array(i)},
        {"compression": "zstd:3", "compression_level": level, **more},
    )
    for level, more in (("chunk", {}), ("batch", {"compression_batch_size": 4}), ("sample", {}))
}


def expected(kind):
    return [KINDS[kind][1](i) for i in range(NUM_SAMPLES)]


def write_all(folder):
    """Write a dataset of each kind below a folder, and one with a pickle."""
    subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(folder)], check=True, timeout=300, capture_output=True
    )


def _write(folder, samples, **options):
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(folder, **{"chunk_size": PER_CHUNK, **options})
    for i, one in enumerate(samples):
        writer[i] = one
    writer.done()
    writer.merge(1)


def _main(folder):
    import litdata.types as types
    import torch
    from litdata.streaming.item_loader import TokensLoader

    for kind, (make, _, options) in KINDS.items():
        more = {"item_loader": TokensLoader(), "chunk_size": 50} if kind == "tokens" else {}
        sample = make(torch, types)
        _write(f"{folder}/{kind}", [sample(i) for i in range(NUM_SAMPLES)], **options, **more)
    _write(f"{folder}/pickle", [{"a": {1, 2}, "b": io.StringIO} for _ in range(3)])


if __name__ == "__main__":
    _main(sys.argv[1])
