"""`headrace inspect` and `headrace index`: what is in a dataset, whether it is whole, and adopting an ordinary one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.output import FAILED, Json, complain, emit, printable, stopped_by_sigterm
from headrace.cli.pack import parse_names
from headrace.errors import OptionError
from headrace.storage import quoted

if TYPE_CHECKING:
    from headrace.dataset import Dataset

_PREVIEW_CHARS = 40
_PREVIEW_ITEMS = 8
_SHOWN_ERRORS = 20
_URL_HELP = "A folder, a store's URL, a file, or files by braces: train-{000..099}.tar."


def inspect(
    url: Annotated[str, typer.Argument(help=_URL_HELP, show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and check every checksum.")] = False,
    show: Annotated[int, typer.Option(metavar="N", help="Show the first N samples.")] = 0,
    fields: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="Show these fields only: a,b.", show_default="all")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is in a dataset, and prove that it is whole.

    With --verify, damage is listed in full, of whichever fields, and the exit code is 1.
    """
    from headrace.dataset import open as open_dataset

    if show < 0:
        raise OptionError(f"--show must be at least 0: got {show}")
    with stopped_by_sigterm():
        dataset = open_dataset(url, fields=None if fields is None else parse_names(fields))
        errors = _verify(dataset) if verify else []
    result = _describe(dataset)
    result["verified"] = not errors if verify else None
    result["errors"] = errors
    if show and not errors:
        result["shown"] = [_preview(dataset[i]) for i in range(min(show, len(dataset)))]
    emit(result, json, _text(result))
    if errors:
        complain(f"{quoted(dataset.url)} is damaged ({len(errors):,} errors): restore what they name, or make it again")
        raise typer.Exit(FAILED)


def index(
    url: Annotated[str, typer.Argument(help=_URL_HELP, show_default=False)],
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of the tokens in .bin files: uint16 or uint32.", show_default="from their names"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Folder for manifest and indexes, where the dataset's own place takes no files."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a manifest and indexes for an ordinary dataset; its shards stay as they are, and are read through once."""
    from headrace.dataset import index as index_dataset

    with stopped_by_sigterm():
        manifest = index_dataset(url, dtype=dtype, target=target)
    shown = printable(target or url)
    result = {
        "target": shown,
        "format": manifest.format,
        "shards": len(manifest.shards),
        "samples": manifest.samples,
        "bytes": manifest.bytes,
    }
    emit(
        result,
        json,
        f"{shown}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, {manifest.bytes:,} bytes",
    )


def _verify(dataset: Dataset) -> list[str]:
    from headrace.telemetry import progress

    with progress("verifying", len(dataset), "samples") as advance:
        return dataset.verify(advance)


def _describe(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "target": printable(dataset.url),
        "format": manifest.format,
        "shards": len(manifest.shards),
        "samples": manifest.samples,
        "bytes": manifest.bytes,
        "fields": {name: field.to_json() for name, field in dataset.schema.items()},
        "classes": manifest.classes,
        "class_field": None if manifest.classes is None else manifest.class_field,
        "fingerprint": manifest.fingerprint,
    }


def _preview(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "__key__" else _value(value) for name, value in sample.items()}


def _value(value: Any) -> str:
    """A field's value in a few words: what it is, or how large."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        first = value.reshape(-1)[:_PREVIEW_ITEMS].tolist()
        return f"{value.dtype} {value.shape} {first}{' ...' if value.size > _PREVIEW_ITEMS else ''}"
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes(value)
    text = value if isinstance(value, str) else repr(value)
    return text if text.isprintable() and len(text) <= _PREVIEW_CHARS else repr(text[:_PREVIEW_CHARS]) + "..."


def _bytes(value: bytes | bytearray | memoryview) -> str:
    try:
        text = bytes(value[: 4 * _PREVIEW_CHARS]).decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable() and len(text) <= _PREVIEW_CHARS:
        return text
    return f"{len(value):,} bytes"


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['target']}: {result['format']}, {result['samples']:,} samples in {result['shards']:,} shards, "]
    lines[0] += f"{result['bytes']:,} bytes"
    lines += [f"  field {quoted(name)}: {_field(field)}" for name, field in result["fields"].items()]
    if result["classes"]:
        names = result["classes"]
        more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
        where = quoted(result["class_field"])
        lines.append(f"  {len(names):,} classes in {where}: {', '.join(map(quoted, names[:10]))}{more}")
    lines += [
        "  " + "  ".join(f"{quoted(name)}={quoted(value)}" for name, value in sample.items())
        for sample in result.get("shown", [])
    ]
    return "\n".join([*lines, *_verdict(result)])


def _field(field: dict[str, Any]) -> str:
    words = [field["type"]]
    if "dtype" in field:
        words.append(f"of {field['dtype']}")
    if "image_size" in field:
        words.append("(images of {} x {}, height x width)".format(*field["image_size"]))
    return " ".join(words)


def _verdict(result: dict[str, Any]) -> list[str]:
    errors = result["errors"]
    if result["verified"] is None:
        return []
    if not errors:
        return ["verified: every byte and checksum is right"]
    more = [f"and {len(errors) - _SHOWN_ERRORS:,} more (--json lists all)"] if len(errors) > _SHOWN_ERRORS else []
    return ["DAMAGED:", *errors[:_SHOWN_ERRORS], *more]
