"""What lies beside the shards of a finished dataset, besides their indexes: written before the manifest."""

from __future__ import annotations

from headrace.formats import Manifest, get_written_format
from headrace.storage import Place


def write_beside(place: Place, manifest: Manifest) -> None:
    """Write what the format keeps for its own readers. May be done again."""
    finish = get_written_format(manifest.format).finish
    if finish is not None:
        finish(place.path, [manifest.shards.row(k) for k in range(len(manifest.shards))])
