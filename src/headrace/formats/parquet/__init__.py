"""Parquet: a row is a sample, a column a field, and a row group is read and unpacked as a whole.

thrift, pages, footer, schema   what files say of themselves, read and checked here
unpack, columns, fields         row groups to Arrow columns, these to values of samples
index, scan                     the index of a shard, and how it is made for an ordinary file
kinds, encode, table, writer    samples to columns, these to files
"""

from headrace.formats.format import Format
from headrace.formats.parquet.encode import encode_parquet
from headrace.formats.parquet.index import ParquetIndex
from headrace.formats.parquet.scan import find_parquet, scan_parquet
from headrace.formats.parquet.writer import ParquetWriter

PARQUET = Format(
    "parquet", ".parquet", find_parquet, scan_parquet, ParquetIndex.from_file, encode_parquet, ParquetWriter
)

__all__ = ["PARQUET", "ParquetIndex", "ParquetWriter", "encode_parquet", "find_parquet", "scan_parquet"]
