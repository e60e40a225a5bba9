"""What lies beside the shards of a finished dataset, besides their indexes: written before the manifest."""

from __future__ import annotations

from headrace.dataset import Dataset
from headrace.dataset.lookup import save_keys
from headrace.dataset.shard_files import ShardFiles
from headrace.formats import Manifest, get_written_format
from headrace.storage import Place, write_bytes, write_file

_NO_SAMPLE_BYTES = 1  # none is read here


def write_beside(place: Place, manifest: Manifest) -> None:
    """Write what the format keeps for its own readers, and the index of keys. May be done again."""
    format_ = get_written_format(manifest.format)
    if format_.finish is not None:
        rows = [manifest.shards.row(k) for k in range(len(manifest.shards))]
        for name, content in format_.finish(place, rows).items():
            write_whole(place / name, content)
    files = ShardFiles(place.text, place, place)
    dataset = Dataset(files, manifest, _NO_SAMPLE_BYTES)
    save_keys(place, manifest, (dataset.stored_index(k).key_hashes() for k in range(len(manifest.shards))))


def write_whole(place: Place, content: bytes) -> None:
    """Write a file whole or not at all; what a crash leaves of it is overwritten when it is written again."""
    if place.is_local:
        write_file(place.path, content)
    else:
        write_bytes(place, content)
