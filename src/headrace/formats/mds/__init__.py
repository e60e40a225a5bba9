"""MDS, the shards of mosaicml-streaming: typed columns, one sample behind the other, and `index.json` beside them."""

from headrace.formats.format import Format
from headrace.formats.mds.encode import encode_mds
from headrace.formats.mds.index import MdsIndex
from headrace.formats.mds.listed import INDEX_NAME, SUFFIX, find_mds, make_index
from headrace.formats.mds.scan import scan_mds
from headrace.formats.mds.writer import MdsWriter

MDS = Format(
    "mds", SUFFIX, find_mds, scan_mds, MdsIndex.from_file, encode_mds, MdsWriter, make_index, beside=(INDEX_NAME,)
)

__all__ = ["MDS", "MdsIndex", "MdsWriter", "encode_mds", "find_mds", "make_index", "scan_mds"]
