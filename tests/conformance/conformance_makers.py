"""Datasets of every format for the conformance suite: the same samples, written by headrace or by others."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.formats import FORMATS

NUM_SAMPLES = 60
SHARD_BYTES = {"tar": 40_000}


def sample(i):
    """What every format that has types can hold; keys in storage order."""
    return {
        "__key__": f"d/k{i:03d}",
        "label": i * 7 - 3,
        "text": f"sample {i} äö",
        "data": bytes([i, 0, 255]) * (i % 9 + 1),
    }


SAMPLES = [sample(i) for i in range(NUM_SAMPLES)]


def plain(value):
    """A value as it can be compared: bytes for views, lists for arrays."""
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def plain_sample(one):
    return {name: plain(value) for name, value in one.items()}


def packed(format_name):
    def make(folder):
        # The samples as they are, in several shards, without our manifest: an ordinary dataset of the format.
        hr.pack(list(SAMPLES), folder, format=format_name, shard_size=SHARD_BYTES.get(format_name, 1500), shuffle=False)

    return make


def tar_bytes(samples):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in samples:
            for name in ("data", "label", "text"):
                data = plain(one[name])
                data = data if isinstance(data, bytes) else str(data).encode()
                info = tarfile.TarInfo(f"{one['__key__']}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def thirds():
    for k in range(3):
        yield k, SAMPLES[k * 20 : k * 20 + 20]


def compressed_tars(ending):
    def make(folder):
        folder.mkdir()
        for k, part in thirds():
            (folder / f"part-{k}.tar.{ending}").write_bytes(COMPRESSIONS[ending](tar_bytes(part)))

    return make


def jsonl(folder):
    folder.mkdir()
    for k, part in thirds():
        lines = [json.dumps({**one, "data": one["data"].hex()}) for one in part]
        (folder / f"part-{k}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def csv_table(folder):
    folder.mkdir()
    for k, part in thirds():
        with open(folder / f"part-{k}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ["__key__", "label", "text", "data"])
            rows.writeheader()
            rows.writerows({**one, "data": "x" + one["data"].hex()} for one in part)


def expected(kind, one):
    """What a sample reads back as."""
    if kind.startswith("tar"):
        return {**one, "label": str(one["label"]).encode(), "text": one["text"].encode()}
    if kind == "tfrecord":
        return {**one, "text": one["text"].encode()}
    if kind == "jsonl":
        return {**one, "data": one["data"].hex()}
    if kind == "csv":
        return {**one, "data": "x" + one["data"].hex()}
    return one


MAKERS = {name: packed(name) for name, format_ in FORMATS.items() if format_.writer and name != "tokens"}
MAKERS |= {f"tar.{ending}": compressed_tars(ending) for ending in COMPRESSIONS}
MAKERS |= {"jsonl": jsonl, "csv": csv_table}

KINDS = [pytest.param(kind, id=kind) for kind in MAKERS]


def make_ordinary(kind, folder):
    """An ordinary dataset of this kind: no manifest, no indexes of ours."""
    MAKERS[kind](folder)
    for path in [*folder.rglob("headrace*"), *folder.rglob("*.idx")]:
        path.unlink()
