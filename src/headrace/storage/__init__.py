"""Bytes at a place: read, range-read, write and list them, and say clearly what a disk or a store refused."""

from headrace.storage.braces import expand_braces
from headrace.storage.file import File
from headrace.storage.lease import Lease
from headrace.storage.local import LocalFile, open_regular
from headrace.storage.operations import (
    exists,
    file_version,
    is_folder,
    list_folder,
    open_file,
    put_if_absent,
    read_bytes,
    remove,
    upload,
    walk,
    write_bytes,
)
from headrace.storage.place import Place, local_path, locate, quoted
from headrace.storage.queries import child_environment
from headrace.storage.refusal import storage_refusals
from headrace.storage.retrying import ReadOptions
from headrace.storage.size import parse_size
from headrace.storage.store import Entry
from headrace.storage.writing import (
    make_folder,
    remove_file,
    replace_file,
    sync_folder,
    write_all,
    write_file,
    write_parts,
)

__all__ = [
    "Entry",
    "File",
    "Lease",
    "LocalFile",
    "Place",
    "ReadOptions",
    "child_environment",
    "exists",
    "expand_braces",
    "file_version",
    "is_folder",
    "list_folder",
    "local_path",
    "locate",
    "make_folder",
    "open_file",
    "open_regular",
    "parse_size",
    "put_if_absent",
    "quoted",
    "read_bytes",
    "remove",
    "remove_file",
    "replace_file",
    "storage_refusals",
    "sync_folder",
    "upload",
    "walk",
    "write_all",
    "write_bytes",
    "write_file",
    "write_parts",
]
