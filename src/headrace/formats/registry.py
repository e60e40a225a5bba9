"""The formats there are, in the order in which a folder is asked for them. A new one is a module and a line here."""

from __future__ import annotations

from headrace.errors import OptionError
from headrace.formats.csv import CSV
from headrace.formats.format import Format
from headrace.formats.jsonl import JSONL
from headrace.formats.litdata import LITDATA
from headrace.formats.mds import MDS
from headrace.formats.parquet import PARQUET
from headrace.formats.tar import TAR
from headrace.formats.tfrecord import TFRECORD
from headrace.formats.tokens import TOKENS

FORMATS = {format_.name: format_ for format_ in (TAR, PARQUET, TFRECORD, MDS, LITDATA, TOKENS, JSONL, CSV)}


def get_format(name: str) -> Format:
    """The format of this name. Raises OptionError if there is none."""
    if name not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}: got {name!r}")
    return FORMATS[name]


def get_written_format(name: str) -> Format:
    """The format of this name, if headrace writes it. Raises OptionError otherwise."""
    written = [format_.name for format_ in FORMATS.values() if format_.writer is not None]
    if name not in written:
        raise OptionError(f"format must be one of {', '.join(written)}: got {name!r}")
    return FORMATS[name]
