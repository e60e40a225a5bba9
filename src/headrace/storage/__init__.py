"""Bytes at a place: read, range-read and write them, and say clearly what the disk refused."""

from headrace.storage.local import LocalFile, open_regular
from headrace.storage.place import local_path, quoted
from headrace.storage.refusal import storage_refusals
from headrace.storage.size import parse_size
from headrace.storage.writing import (
    make_folder,
    remove_file,
    replace_file,
    sync_folder,
    write_all,
    write_file,
)

__all__ = [
    "LocalFile",
    "local_path",
    "make_folder",
    "open_regular",
    "parse_size",
    "quoted",
    "remove_file",
    "replace_file",
    "storage_refusals",
    "sync_folder",
    "write_all",
    "write_file",
]
