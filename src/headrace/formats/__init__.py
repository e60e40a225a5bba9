"""On-disk formats: what a shard, its index and a dataset's manifest are, reader and writer together."""

from headrace.formats.index import ShardIndex, key_hash
from headrace.formats.manifest import (
    INDEX_SUFFIX,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Field,
    Manifest,
    Shard,
    Shards,
    shard_name,
)
from headrace.formats.registry import FORMATS, Format, get_format
from headrace.formats.shard import Encoded, ShardWriter

__all__ = [
    "FORMATS",
    "INDEX_SUFFIX",
    "MANIFEST_NAME",
    "MANIFEST_VERSION",
    "Encoded",
    "Field",
    "Format",
    "Manifest",
    "Shard",
    "ShardIndex",
    "ShardWriter",
    "Shards",
    "get_format",
    "key_hash",
    "shard_name",
]
