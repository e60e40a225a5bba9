"""What a LitData dataset says of itself in `index.json`: its chunks, and what the leaves of a sample are.

A sample was a tree of dicts, lists and tuples; a chunk holds its leaves, each in one encoding. A leaf is a field,
called by its way through the tree: `a`, `a.b`, or by numbers where there are no names (`0`, `boxes.1`). The tree is
described in JSON; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.errors import DatasetError
from headrace.formats.checking import Checked
from headrace.formats.litdata.leaves import check_encoding

NAME = "index.json"
TOKENS = "tokens"
"""The field of a dataset of bare tokens."""

_ITEMS, _TOKENS, _PARQUET = "PyTreeLoader", "TokensLoader", "ParquetLoader"
_LEVELS = ("chunk", "batch", "sample")
_DEEPEST = 32
_NAMED = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One shard, and what must be known to read it."""

    file: str
    samples: int
    names: tuple[str, ...]
    """Of a sample's leaves."""
    encodings: tuple[str, ...]
    """Of a sample's leaves, such as `no_header_numpy:1`."""
    is_tokens: bool
    """Whether an item is its one leaf, without a length in front."""
    packing: str | None
    """`chunk`: the file is packed as a whole; `sample`: each item is; `batch`: runs of items are, and show it."""


def chunks_in(data: bytes, name: str) -> list[Chunk] | None:
    """The chunks of an `index.json`; None if it is none of LitData, or one of Parquet files.

    Raises DatasetError for what is not read: encryption, pickled leaves, layouts of other loaders.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    parts = (value.get("chunks"), value.get("config")) if isinstance(value, dict) else (None, None)
    if not isinstance(parts[0], list) or not isinstance(parts[1], dict):
        return None
    index = Checked(value, name)
    config = index["config"]
    if config.get("item_loader").value == _PARQUET:
        return None
    _check_readable(config, name)
    encodings = tuple(encoding.text() for encoding in config.get("data_format").optional(Checked.elements) or ())
    for encoding in encodings:
        check_encoding(encoding, name)
    is_tokens = _is_tokens(config, encodings)
    names = (TOKENS,) if is_tokens else leaf_names(config.get("data_spec").value, len(encodings))
    packings = _packings(config, name)
    chunks = []
    for chunk in index["chunks"].elements():
        file, samples = chunk["filename"].file_name(), chunk["chunk_size"].integer()
        chunks.append(Chunk(file, samples, names, encodings, is_tokens, packings(file)))
    return chunks


def leaf_names(spec: Any, num_leaves: int) -> tuple[str, ...]:
    """The leaves' names from the tree's description; numbers if it gives no good ones."""
    numbers = tuple(map(str, range(num_leaves)))
    try:
        ways = _ways(orjson.loads(spec)[1], (), 0)
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
        return numbers
    names = tuple(".".join(way) or "0" for way in ways)
    return names if len(set(names)) == len(names) == num_leaves else numbers


def _ways(node: Any, way: tuple[str, ...], depth: int) -> list[tuple[str, ...]]:
    """The ways from the top of a tree to its leaves."""
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if node["type"] is None:
        return [way]
    children: Sequence[Any] = node["children_spec"]
    names = _child_names(node, len(children))
    pairs = zip(children, names, strict=True)
    return [found for child, name in pairs for found in _ways(child, (*way, name), depth + 1)]


def _child_names(node: Mapping[str, Any], num_children: int) -> list[str]:
    if node["type"] not in _NAMED:
        return list(map(str, range(num_children)))
    context = orjson.loads(node["context"])
    # A defaultdict has what makes its values in front of its keys.
    keys = context[1] if node["type"].endswith("defaultdict") else context
    if not all(isinstance(key, str | int) for key in keys):
        raise ValueError("keys that are no names")
    return list(map(str, keys))


def _check_readable(config: Checked, name: str) -> None:
    if config.get("encryption").value is not None:
        raise DatasetError(f"{name}: the dataset is encrypted; write it without encryption, or as another format")
    loader = config.get("item_loader").value
    if loader not in (None, _ITEMS, _TOKENS):
        raise DatasetError(
            f"{name}: chunks for the item loader {loader!r} are not read, only those for {_ITEMS} and {_TOKENS}: write "
            "them anew with one of these, or pack the dataset from its samples"
        )


def _is_tokens(config: Checked, encodings: tuple[str, ...]) -> bool:
    loader = config.get("item_loader").value
    if loader is None:  # older releases did not say; they asked for the loader of tokens where there was such a leaf
        return len(encodings) == 1 and encodings[0].startswith("no_header_tensor")
    return bool(loader == _TOKENS)


def _packings(config: Checked, name: str) -> Callable[[str], str | None]:
    """How a file of a name is packed: of a packed dataset single chunks, those with a table, may be plain."""
    compression = config.get("compression").optional(Checked.text)
    if not compression:
        return lambda file: None
    if compression.partition(":")[0] != "zstd":
        raise DatasetError(f"{name}: chunks are packed by {compression!r}, which is not known, only zstd: unpack them")
    level = config.get("compression_level").optional(Checked.text) or "chunk"
    if level not in _LEVELS:
        raise config["compression_level"].error(f"must be one of {', '.join(_LEVELS)}")
    if level == "chunk":
        return lambda file: level if file.endswith(f".{compression}.bin") else None
    return lambda file: level
