"""LitData chunks, as `litdata.optimize` writes them. Only read, and without running anything that is in them."""

from headrace.formats.format import Format
from headrace.formats.litdata.index import LitDataIndex, find_litdata
from headrace.formats.litdata.scan import join_fields, scan_litdata

LITDATA = Format("litdata", ".bin", find_litdata, scan_litdata, LitDataIndex.from_file, join=join_fields)

__all__ = ["LITDATA", "LitDataIndex", "find_litdata", "join_fields", "scan_litdata"]
