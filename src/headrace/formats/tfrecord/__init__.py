"""TFRecord shards: records with two checksums each, usually a `tf.train.Example`; plain, or packed by gzip or zlib.

A record is a length of 64 bits, the crc32c of it, the data, and the crc32c of that. Both are checked when a shard is
first read through, and when it is written; later the xxh3_64 in the index stands for them, over the same bytes. So only
scanning and writing need the package google-crc32c.

In a shard that holds no Example at all each sample has one field, `record`. A record that is none among others that are
is a damaged sample, and so is one of which the data's checksum is wrong. Where a length is wrong nothing behind it can
be found, unless a `.tfrecord.idx` as DALI's tfrecord2idx writes it says where records lie.
"""

from headrace.formats.format import Format
from headrace.formats.tfrecord.find import find_tfrecords
from headrace.formats.tfrecord.index import TFRecordIndex, join_fields
from headrace.formats.tfrecord.scan import scan_tfrecord
from headrace.formats.tfrecord.writer import TFRecordWriter, encode_tfrecord

TFRECORD = Format(
    "tfrecord",
    ".tfrecord",
    find_tfrecords,
    scan_tfrecord,
    TFRecordIndex.from_file,
    encode_tfrecord,
    TFRecordWriter,
    join=join_fields,
)

__all__ = ["TFRECORD", "TFRecordIndex", "TFRecordWriter", "encode_tfrecord", "find_tfrecords", "scan_tfrecord"]
