"""The formats there are. A new one is a module with an encoder, a writer, an index and a scan, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import OptionError
from headrace.formats.index import StoredIndex
from headrace.formats.manifest import Field, Shard
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.tar import TarIndex, TarWriter, encode_tar, scan_tar
from headrace.formats.tokens import TokensIndex, TokensWriter, encode_tokens, scan_tokens


@dataclass(frozen=True, slots=True)
class Format:
    """One on-disk format, reader and writer together."""

    name: str
    suffix: str
    """Of the shards' names."""
    encode: Callable[[Mapping[str, Any]], Encoded]
    """A sample as it will lie in a shard; may be called from several threads."""
    writer: Callable[[Path, Mapping[str, Field]], ShardWriter]
    read_index: Callable[[memoryview, str, int], StoredIndex]
    """The index in a file's content, the file's name and its shard's length."""
    scan: Callable[[Path, str | None], tuple[StoredIndex, Shard]]
    """The index of an ordinary shard; the second argument is the type of its elements, where files do not say it."""


def _scan_tar(path: Path, dtype: str | None) -> tuple[StoredIndex, Shard]:
    if dtype is not None:
        raise OptionError(f"dtype is for token files (.bin), and {path.name} is a tar: leave it out")
    return scan_tar(path)


FORMATS = {
    "tar": Format("tar", ".tar", encode_tar, TarWriter, TarIndex.from_file, _scan_tar),
    "tokens": Format("tokens", ".bin", encode_tokens, TokensWriter, TokensIndex.from_file, scan_tokens),
}


def get_format(name: str) -> Format:
    """The format of this name. Raises OptionError if there is none."""
    if name not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}: got {name!r}")
    return FORMATS[name]
