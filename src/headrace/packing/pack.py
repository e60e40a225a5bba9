"""`pack`: look through the source, say what is asked for, and write what is not there yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from headrace.dataset import Dataset
from headrace.errors import TargetError
from headrace.formats import Manifest, get_written_format
from headrace.packing.appending import joined_classes, note_keys, note_keys_of_shard
from headrace.packing.fields import check_fields, unseen_fields
from headrace.packing.nearest import scratch_folder
from headrace.packing.options import OnError, Options, usable_cpus
from headrace.packing.pipeline import Transform
from headrace.packing.preparation import Preparation
from headrace.packing.prepare import Preparer
from headrace.packing.seen import Seen
from headrace.packing.source import Source
from headrace.packing.sources import SourceLike, open_source
from headrace.packing.survey import Part, Survey
from headrace.packing.target import SKIPPED_NAME, Target, check_holds_parts, check_usable, find_base, find_finished
from headrace.packing.targets import open_target, settle, sweep
from headrace.packing.writing import DatasetWriter
from headrace.storage import Place, locate, parse_size, storage_refusals

_log = logging.getLogger("headrace.packing")


class _Others(TypedDict, total=False):
    """The options that do not decide what `pack` returns."""

    format: str
    shard_size: int | str
    transform: Transform | None
    shuffle: bool
    seed: int
    workers: int | None
    resume: bool
    overwrite: bool
    append: bool
    on_error: OnError
    files: str | None
    query: str | None
    where: str | None
    require: Sequence[str]
    fill: Mapping[str, Any] | None
    dedup: bool | Sequence[str]
    sample: float | None
    stratify: str | None
    resize_short: int | None
    max_side: int | None
    quality: int | None
    drop_broken: bool
    tokenizer: str | None
    text_field: str | None


@overload
def pack(
    source: SourceLike, target: str | os.PathLike[str], *, split: None = None, **others: Unpack[_Others]
) -> Manifest: ...


@overload
def pack(
    source: SourceLike, target: str | os.PathLike[str], *, split: Mapping[str, float], **others: Unpack[_Others]
) -> dict[str, Manifest]: ...


def pack(
    source: SourceLike,
    target: str | os.PathLike[str],
    *,
    format: str = "tar",
    shard_size: int | str = "64MiB",
    transform: Transform | None = None,
    split: Mapping[str, float] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    append: bool = False,
    on_error: OnError = "raise",
    files: str | None = None,
    query: str | None = None,
    where: str | None = None,
    require: Sequence[str] = (),
    fill: Mapping[str, Any] | None = None,
    dedup: bool | Sequence[str] = False,
    sample: float | None = None,
    stratify: str | None = None,
    resize_short: int | None = None,
    max_side: int | None = None,
    quality: int | None = None,
    drop_broken: bool = False,
    tokenizer: str | None = None,
    text_field: str | None = None,
) -> Manifest | dict[str, Manifest]:
    """Pack a source into shards at `target`; returns the manifest, or with `split` a manifest for each name.

    source: a folder of files, a table (.csv, .jsonl, .parquet) or any other dataset that `headrace.open` opens, or its
        path or URL; a Hugging Face dataset or the folder that one was saved in; or an iterable of dicts.
    format: one of those that headrace writes; `tar` is WebDataset's.
    shard_size: bytes of a shard, as a number or like `64MiB`; exceeded only by a single larger sample. Of tiny samples
        a shard has 262,144 at most.
    transform: function(sample dict) -> a dict, None to drop it, or a list of dicts, called in worker processes. It
        must give the same result for the same sample. Items of a list that keep the sample's key get `/0`, `/1`, ...
        behind it.
    split: names and fractions that add up to 1, such as {"train": 0.9, "test": 0.1}. Samples are dealt by a hash of
        their key in the source, into datasets in folders of these names.
    shuffle, seed: the order of samples in the shards; without shuffling that of keys or of the iterable.
    workers: threads that read, prepare and check, or processes if there is a transform; None is one a usable
        processor.
    resume: go on with a pack of the same source and options that was cut off; False starts it over.
    overwrite: replace a dataset that is there, once the new one is whole. Nothing but what headrace wrote is removed.
    append: add to a dataset that is there: shards of new numbers, and the manifest's next revision. Keys must be new.
        Where there is none yet it is made, so that the first run of a periodic job is like all others.
    on_error: what to do about a broken sample: "raise", or "skip" and list it in `headrace.skipped.jsonl`.

    files: the column of a table whose values name files, relative to the table's folder: each file's bytes become a
        field called by its extension, instead of the column.
    query: SQL over tables or a DuckDB database (extra `sql`), such as "SELECT id AS __key__, text FROM source WHERE
        n > 3"; it needs a `__key__` or an ORDER BY.

    Which samples are packed, decided in this order, while the source is looked through:
    where: an expression over fields that must be true, such as "label in (3, 5) and len(text) > 100".
    require: fields that must not be missing (None, NaN, empty).
    dedup: True: of samples with equal fields, byte for byte, the first; or the fields that must be equal.
    sample, stratify: a fraction of what is left, drawn by `seed`; with `stratify` the same of each value of a field.

    What is done to each of them, in this order, before `transform`:
    fill: fields and the values that missing ones get; conditions see them too.
    drop_broken: decode every image to its end, and skip samples with one that is broken.
    resize_short, max_side, quality: images with a longer shorter (longer) side than so many pixels are made smaller and
        encoded again in their own format; JPEG and WebP with this quality, 1 to 100, by default 90.
    tokenizer, text_field: the one text field becomes `tokens`, by a tokenizer.json, a name on the Hugging Face hub
        (extra `text`), or "bytes".

    Packing again with the same source and options does nothing. Raises OptionError, SourceError, TargetError,
    TransformError, StorageError or DatasetError; what has been written is kept to go on from, and does not open as a
    dataset before it is whole.
    """
    preparation = Preparation(
        where=where,
        require=require,
        fill=fill,
        dedup=dedup,
        sample=sample,
        stratify=stratify,
        resize_short=resize_short,
        max_side=max_side,
        quality=quality,
        drop_broken=drop_broken,
        tokenizer=tokenizer,
        text_field=text_field,
        transform=transform,
    )
    place = locate(target)
    scratch = scratch_folder(place)
    options = Options(
        format=get_written_format(format),
        shard_size=parse_size(shard_size, "shard_size"),
        selections=preparation.selections(seed, scratch),
        steps=preparation.steps(),
        split=split,
        shuffle=shuffle,
        seed=seed,
        workers=usable_cpus() if workers is None else workers,
        resume=resume,
        overwrite=overwrite,
        append=append,
        files=files,
        query=query,
        on_error="skip" if drop_broken else on_error,
    )
    places = [place] if split is None else [place / name for name in split]
    if split is not None:
        check_holds_parts(place)
    for one in places:
        _check_apart(source, one)
        check_usable(one, options)
        settle(one)
    with ExitStack() as stack:
        for selection in options.selections:
            stack.callback(selection.close)
        opened = stack.enter_context(closing(open_source(source, scratch, options)))
        check_fields(opened, options.selections)
        options = replace(options, steps=preparation.steps(opened.images))
        manifests = _Packing(opened, places, scratch, options).run()
    return manifests[0] if split is None else dict(zip(split, manifests, strict=True))


class _Packing:
    """One call of `pack`, from the opened source on."""

    def __init__(self, source: Source, places: Sequence[Place], scratch: Path, options: Options) -> None:
        self._source, self._places, self._scratch, self._options = source, places, scratch, options

    def run(self) -> list[Manifest]:
        """Pack what is not there yet; a manifest for each place."""
        bases = [find_base(place) if self._options.append else None for place in self._places]
        self._classes = joined_classes(self._source, [base for base in bases if base is not None])
        appended = [place for place, base in zip(self._places, bases, strict=True) if base is not None]
        if self._options.append and len(appended) < len(self._places):
            missing = [str(place) for place in self._places if place not in appended]
            _log.warning("there is nothing to append to yet, so it is made: %s", ", ".join(missing))
        with closing(Survey(self._source, self._options, self._scratch, appended)) as survey:
            if unseen := unseen_fields(self._options.selections):
                _log.warning("%s", unseen)
            return self._carry_out(survey, bases)

    def _carry_out(self, survey: Survey, bases: Sequence[Manifest | None]) -> list[Manifest]:
        requests = [self._options.request(self._source.identity, part.name) for part in survey.parts]
        found = [self._finished(*where) for where in zip(self._places, requests, strict=True)]
        if survey.clash and not all(found) and self._options.on_error == "raise":
            raise survey.clash.error
        for number, base in enumerate(bases):
            found[number] = found[number] or (base if not survey.spool.num_records(number) else None)
        if any(found):
            _log.info("nothing to do where the same has been packed before")
        made = self._write(survey, requests, found)
        return [manifest or next(made) for manifest in found]

    def _finished(self, place: Place, request: str) -> Manifest | None:
        manifest = find_finished(place, request, self._options)
        if manifest is not None:
            sweep(place, request)
        return manifest

    def _write(self, survey: Survey, requests: Sequence[str], found: Sequence[Manifest | None]) -> Iterator[Manifest]:
        """What is not found, all parts of it before any takes the place of what was there.

        All are marked as unfinished before the first is written: else a new training set might meet an old test set.
        """
        missing = [part for part in survey.parts if found[part.number] is None]
        with ExitStack() as stack:
            targets = [stack.enter_context(closing(self._open(part, requests[part.number]))) for part in missing]
            for part, target in zip(missing, targets, strict=True):
                if target.ready is None:
                    self._write_part(survey, part, target, requests[part.number])
            for target in targets:
                target.mark()
            for target in targets:
                target.commit()
            for target in targets:
                target.release()
        return iter([target.ready for target in targets if target.ready is not None])

    def _open(self, part: Part, request: str) -> Target:
        return open_target(self._places[part.number], request, self._options)

    def _write_part(self, survey: Survey, part: Part, target: Target, request: str) -> None:
        preparer = Preparer(self._options.format.name, self._source.loader, self._options.steps, self._source.images)
        with closing(Seen(self._scratch)) as seen:
            if self._options.steps:
                self._note_keys(seen, part, target)
            writer = DatasetWriter(target, survey.spool, part, seen if self._options.steps else None, self._options)
            writer.write(preparer)
        writer.make_ready(request, self._classes)
        self._say_what_is_missing(part, writer, survey)

    def _note_keys(self, seen: Seen, part: Part, target: Target) -> None:
        """Note the keys that samples must not have, since what steps make may have other keys than the source."""
        if target.base is not None:
            note_keys(seen, self._places[part.number])
        for milestone in target.milestones():
            note_keys_of_shard(seen, target.shards, milestone.shard, self._options.format.name)

    def _say_what_is_missing(self, part: Part, writer: DatasetWriter, survey: Survey) -> None:
        for name, count in sorted((survey.dropped + writer.dropped).items()):
            _log.info("%s samples were left out by %s", f"{count:,}", name)
        if len(part.skipped):
            where = self._places[part.number] / SKIPPED_NAME
            _log.warning("%s broken samples were skipped: see %s", f"{len(part.skipped):,}", where)


def _check_apart(source: SourceLike, target: Place) -> None:
    if isinstance(source, Dataset):
        source = source.url
    if not isinstance(source, str | os.PathLike):
        return
    place = locate(source)
    if not place.is_local or not target.is_local:
        return
    with storage_refusals("find", target.path):  # what a relative path is relative to may be gone
        inner, outer = Path(os.path.realpath(target.path)), Path(os.path.realpath(place.path))
    if inner == outer or outer in inner.parents:
        raise TargetError(
            f"the target {target} lies inside the source {place}, and would be packed with it: choose a place outside"
        )
