"""`headrace pack`: a folder of files, or a dataset, into shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.functions import load_function
from headrace.cli.output import Json, emit, printable, stopped_by_sigterm
from headrace.errors import OptionError

if TYPE_CHECKING:
    from headrace.formats import Manifest

_TRANSFORM_HELP = "Function of a sample's dict, as FILE.py:function or module:function; returns a dict, None or a list."


def pack(
    source: Annotated[
        str, typer.Argument(help="A folder of files, a table, a dataset, or its URL.", show_default=False)
    ],
    target: Annotated[str, typer.Argument(help="The folder or URL to make; new or empty.", show_default=False)],
    format: Annotated[
        str, typer.Option("--format", help="tar (WebDataset's), parquet, tfrecord, mds or tokens.")
    ] = "tar",
    shard_size: Annotated[str, typer.Option(help="Largest shard, in bytes or like 64MiB or 100MB.")] = "64MiB",
    split: Annotated[
        str | None, typer.Option(help="Names and fractions that add up to 1, like train=0.9,test=0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of samples.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Shuffle, or keep the order of keys.")] = True,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read, transform and check.", show_default="one a processor")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a pack that was cut off, or start it over.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset at the target.")] = False,
    on_error: Annotated[str, typer.Option(help="What to do about a broken sample: raise or skip.")] = "raise",
    transform: Annotated[str | None, typer.Option(help=_TRANSFORM_HELP)] = None,
    files: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of a table whose values name files to be packed.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Pack what this selects FROM source, by DuckDB; needs __key__ or ORDER BY."),
    ] = None,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add shards to the dataset at the target, or make it; keys must be new."),
    ] = False,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Keep samples of which this is true: 'label in (3, 5)'.")
    ] = None,
    require: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="Leave out samples in which one of these is missing: a,b.")
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Give a missing field this value (JSON or text); may be repeated."),
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Of samples with equal fields keep the first.")] = False,
    dedup_by: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="Of samples that are equal in these fields keep the first.")
    ] = None,
    sample: Annotated[
        float | None, typer.Option(metavar="FRACTION", help="Keep this share of the samples, drawn by --seed.")
    ] = None,
    stratify: Annotated[
        str | None, typer.Option(metavar="FIELD", help="With --sample: the same share of each value of a field.")
    ] = None,
    resize_short: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Make images smaller whose shorter side is longer.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Make images smaller whose longer side is longer.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="1 to 100, of JPEG and WebP images that are made smaller.", show_default="90"),
    ] = None,
    drop_broken: Annotated[
        bool, typer.Option("--drop-broken", help="Decode every image to its end; leave out what is broken.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Text to tokens: a tokenizer.json, a hub's name, or bytes.")
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="The field to tokenize.", show_default="the only text")] = None,
    json: Json = False,
) -> None:
    """Pack a folder of files, a table or a dataset into shards.

    Files of one stem are one sample; folders one deep are classes. What was cut off goes on when run again. Samples are
    chosen first (--where, --require, --dedup, --sample), then changed (--fill, images, --tokenizer, --transform).
    """
    from headrace.packing import pack as pack_source

    if dedup and dedup_by is not None:
        raise OptionError("--dedup compares all fields and --dedup-by those that it names: give one of them")
    if on_error not in ("raise", "skip"):
        raise OptionError(f"--on-error must be raise or skip: got {on_error!r}")
    options: dict[str, Any] = {
        "format": format,
        "shard_size": shard_size,
        "transform": None if transform is None else load_function(transform),
        "shuffle": shuffle,
        "seed": seed,
        "workers": workers,
        "resume": resume,
        "overwrite": overwrite,
        "on_error": on_error,
        "files": files,
        "query": query,
        "append": append,
        "where": where,
        "require": () if require is None else parse_names(require),
        "fill": _filled(fill or ()),
        "dedup": dedup if dedup_by is None else parse_names(dedup_by),
        "sample": sample,
        "stratify": stratify,
        "resize_short": resize_short,
        "max_side": max_side,
        "quality": quality,
        "drop_broken": drop_broken,
        "tokenizer": tokenizer,
        "text_field": text_field,
    }
    began = time.perf_counter()
    with stopped_by_sigterm():
        if split is None:
            manifests = {"": pack_source(source, target, **options)}
        else:
            manifests = pack_source(source, target, split=parse_split(split), **options)
    _report(printable(target), split is not None, manifests, time.perf_counter() - began, json)


def parse_names(text: str) -> tuple[str, ...]:
    """The names in `a,b`."""
    return tuple(name.strip() for name in text.split(","))


def _filled(texts: Sequence[str]) -> dict[str, Any] | None:
    from headrace.packing.steps.missing import parse_fill

    filled: dict[str, Any] = {}
    for text in texts:
        name, value = parse_fill(text)
        if name in filled:
            raise OptionError(f"--fill gives the field {name!r} two values: give one")
        filled[name] = value
    return filled or None


def parse_split(text: str) -> dict[str, float]:
    """Names and fractions from text like `train=0.9,test=0.1`."""
    split: dict[str, float] = {}
    for part in text.split(","):
        name, equals, fraction = part.partition("=")
        try:
            value = float(fraction)
        except ValueError:
            equals, value = "", 0.0
        if not equals or not name.strip() or name.strip() in split:
            raise OptionError(f"--split must be names and fractions like train=0.9,test=0.1: got {text!r}")
        split[name.strip()] = value
    return split


def _report(target: str, is_split: bool, manifests: dict[str, Manifest], seconds: float, as_json: bool) -> None:
    parts = {
        name: _part(f"{target.rstrip('/')}/{name}" if name else target, manifest)
        for name, manifest in manifests.items()
    }
    totals = {key: sum(part[key] for part in parts.values()) for key in ("shards", "samples", "bytes")}
    result = {
        "target": target,
        "format": next(iter(manifests.values())).format,
        **totals,
        "skipped": sum(manifest.skipped for manifest in manifests.values()),
        "seconds": round(seconds, 3),
        "samples_per_sec": round(totals["samples"] / seconds, 1),
    }
    if is_split:
        result["splits"] = parts
    emit(result, as_json, _text(list(parts.values()), result["skipped"], seconds))


def _part(target: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "target": target,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
    }


def _text(parts: Sequence[dict[str, Any]], skipped: int, seconds: float) -> str:
    lines = [
        f"{part['target']}: {part['samples']:,} samples in {part['shards']:,} shards, {part['bytes']:,} bytes"
        for part in parts
    ]
    if skipped:
        lines.append(f"{skipped:,} broken samples were skipped")
    return "\n".join([*lines, f"{seconds:.1f} s"])
