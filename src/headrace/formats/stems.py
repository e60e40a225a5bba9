"""Keys for samples that have none: their shard's name and their number in it, as `part-7:42`."""

from __future__ import annotations

import re

_EXTENSIONS = re.compile(
    r"(?i)(?:\.(?:parquet|pq|tfrecords?|mds|bin|jsonl|ndjson|json|csv|tsv|gz|bz2|xz|zstd?|br|snappy))+$"
)


def key_stem(file: str) -> str:
    """What begins the keys of a shard whose samples have none: `shard.00000.mds.zstd` gives `shard-00000`.

    `file` is the shard's name in the dataset, with the folders it lies in, so that shards have different ones. The
    stem has no dots: a key with one in its last part could not be one in a tar.
    """
    folder, slash, name = file.rpartition("/")
    return folder + slash + (_EXTENSIONS.sub("", name) or name).replace(".", "-")
