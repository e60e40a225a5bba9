"""On-disk formats: what a shard, its index and a dataset's manifest are, reader and writer together."""

from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.index import Opened, ShardIndex, key_hash, sample_checksum
from headrace.formats.manifest import (
    CLASS_FIELD,
    INDEX_SUFFIX,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    shard_name,
)
from headrace.formats.registry import FORMATS, get_format, get_written_format
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard, Shards
from headrace.formats.table import Table, objects

__all__ = [
    "CLASS_FIELD",
    "FORMATS",
    "INDEX_SUFFIX",
    "MANIFEST_NAME",
    "MANIFEST_VERSION",
    "Encoded",
    "Field",
    "Format",
    "Found",
    "Listing",
    "Manifest",
    "Opened",
    "ScanOptions",
    "Shard",
    "ShardIndex",
    "ShardWriter",
    "Shards",
    "Table",
    "get_format",
    "get_written_format",
    "key_hash",
    "objects",
    "sample_checksum",
    "shard_name",
]
