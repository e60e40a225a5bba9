"""Tar shards as WebDataset lays them out: neighbours whose names differ only behind the first dot are one sample.

A sample's bytes reach from its first header to the next sample's: the checksum covers headers and padding too. Shards
are written as plain USTAR; compressed ones (gz, bz2, xz, zst) are read as well, each unpacked as a whole.
"""

from headrace.formats.format import Format
from headrace.formats.tar.find import find_tars
from headrace.formats.tar.index import TarIndex, read_tar_index
from headrace.formats.tar.scan import scan_tar
from headrace.formats.tar.writer import TarWriter, encode_tar

TAR = Format("tar", ".tar", find_tars, scan_tar, read_tar_index, encode_tar, TarWriter, shards_share_keys=True)

__all__ = ["TAR", "TarIndex", "TarWriter", "encode_tar", "find_tars", "read_tar_index", "scan_tar"]
