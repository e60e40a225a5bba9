"""Writing one dataset: samples in their order into shards, and after each shard a line in the journal.

Where a shard ends depends on the samples alone, so a pack that is continued behind any finished shard writes the same
bytes as one that was never cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.errors import SourceError
from headrace.formats import INDEX_SUFFIX, Encoded, Field, Manifest, Shard, Shards, ShardWriter, key_hash, shard_name
from headrace.formats.columns import I64
from headrace.packing.journal import Done
from headrace.packing.options import Options
from headrace.packing.source import BAD_SAMPLE, WAY_OUT, Skipped, Source
from headrace.packing.target import Target
from headrace.packing.workers import ordered_map
from headrace.storage import LocalFile, quoted
from headrace.telemetry.progress import Advance, progress


class DatasetWriter:
    """Writes a target from where it stands to its end."""

    def __init__(self, target: Target, source: Source, found: Sequence[Skipped], order: I64, options: Options) -> None:
        """`order` are the numbers of the source's samples; `found` is what was broken before any was read."""
        self._target, self._source, self._order, self._options = target, source, order, options
        self._num_found = len(found)
        done = target.done
        self._shards = list(done.shards)
        self._fields: dict[str, Field] = dict(done.fields)
        self._skipped = list(done.skipped) if done.shards else list(found)
        self._start, self._drop = done.item, done.within
        self._keys = self._written_keys()
        self._writer: ShardWriter | None = None

    def write(self, request: str, title: str) -> Manifest:
        """Write what is missing, then the manifest. Raises SourceError if no sample is left."""
        try:
            with progress(title, len(self._order), "samples") as advance:
                advance(self._start)
                self._write_all(advance)
        finally:
            if self._writer is not None:
                self._writer.abandon()
        if not self._shards:
            raise SourceError(self._nothing_left())
        manifest = Manifest(
            self._options.format.name,
            self._fields,
            Shards.of(self._shards),
            classes=self._source.classes if "cls" in self._fields else None,
            request=request,
            skipped=len(self._skipped),
        )
        self._target.finish(manifest, self._done(len(self._order), 0))
        return manifest

    def _nothing_left(self) -> str:
        total, broken = len(self._order) + self._num_found, len(self._skipped)
        first = f" (the first: {self._skipped[0].reason})" if broken else ""
        rest = "" if broken == total else " and the transform dropped the rest"
        return f"nothing is left to pack: of {total:,} samples {broken:,} are broken{first}{rest}"

    def _write_all(self, advance: Advance) -> None:
        numbers = self._order[self._start :].tolist()
        results = ordered_map(self._encoded, numbers, self._options.workers, self._source.size)
        for item, result in enumerate(results, self._start):
            if isinstance(result, Skipped):
                self._skipped.append(result)
            else:
                self._add_results(item, result)
            self._drop = 0
            advance()
        self._end_shard(len(self._order), 0)

    def _encoded(self, number: int) -> list[Encoded] | Skipped:
        try:
            return self._source.encoded(number)
        except BAD_SAMPLE as err:
            return self._bad(self._source.keys[number], err)

    def _bad(self, key: str, err: Exception) -> Skipped:
        if self._options.on_error == "raise":
            raise type(err)(f"{err}{WAY_OUT}") from err
        return Skipped(key, str(err))

    def _add_results(self, item: int, results: list[Encoded]) -> None:
        for number, sample in enumerate(results[self._drop :], self._drop):
            try:
                self._add(sample, item, number)
            except BAD_SAMPLE as err:
                self._skipped.append(self._bad(sample.key, err))

    def _add(self, sample: Encoded, item: int, number: int) -> None:
        hashed = key_hash(sample.key)
        if hashed in self._keys:
            raise SourceError(f"the key {quoted(sample.key)} is there twice: give every sample a `__key__` of its own")
        if self._writer is not None and self._writer.size_with(sample) > self._options.shard_size:
            self._end_shard(item, number)
        if self._writer is None:
            path = self._target.folder / shard_name(len(self._shards), self._options.format.suffix)
            assert self._options.format.writer is not None
            self._writer = self._options.format.writer(path, self._fields)
        self._writer.add(sample)
        self._keys.add(hashed)
        for name, field in sample.fields.items():
            self._fields[name] = self._fields[name].merged(field) if name in self._fields else field

    def _end_shard(self, item: int, number: int) -> None:
        """Finish the shard, if one is begun; the next one begins with this result of this item."""
        if self._writer is None or not self._writer.num_samples:
            return
        self._shards.append(self._writer.finish())
        self._writer = None
        self._target.record(self._done(item, number))

    def _done(self, item: int, within: int) -> Done:
        return Done(item, within, tuple(self._shards), dict(self._fields), tuple(self._skipped))

    def _written_keys(self) -> set[int]:
        """Hashes of the keys in finished shards. A tar with a key twice would be two samples, or none, to readers."""
        keys: set[int] = set()
        for shard in self._shards:
            keys.update(_key_hashes(self._target.folder, shard, self._options))
        return keys


def _key_hashes(folder: Path, shard: Shard, options: Options) -> list[int]:
    name = str(folder / shard.file) + INDEX_SUFFIX
    with LocalFile(name) as file:
        index = options.format.read_index(file.read(0, file.size), name, shard.bytes)
    hashes: list[int] = index.key_hashes().tolist()
    return hashes
