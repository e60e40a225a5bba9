"""From a record to what will lie in shards: load the sample, take it through the steps, check it, encode it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.errors import HeadraceError, SourceError, TransformError
from headrace.formats import Encoded, Field, get_written_format
from headrace.packing.pipeline import Step, name_of
from headrace.packing.source import BAD_SAMPLE, Loader, Sample, check_key
from headrace.storage import quoted
from headrace.transform import probe_image
from headrace.transform.decode import field_kind


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one record: samples for the shards, or an error."""

    key: str
    samples: tuple[Encoded, ...] = ()
    dropped_by: str = ""
    """The step that left nothing of it."""
    error: HeadraceError | None = None


@dataclass(frozen=True, slots=True)
class Preparer:
    """Makes records of one source ready for one format. Safe to call from several threads; picklable."""

    format: str
    loader: Loader
    steps: tuple[Step, ...]
    images: frozenset[str] = frozenset()
    """Fields that hold encoded images whatever their name says."""

    @property
    def holds_lock(self) -> bool:
        """Whether threads would wait for each other."""
        return any(getattr(step, "holds_lock", False) for step in self.steps)

    def __call__(self, key: str, payload: bytes) -> Made:
        """What becomes of a record. A broken sample is no exception here: its error is part of the result."""
        try:
            return self._made(key, payload)
        except BAD_SAMPLE as err:
            if err.__cause__ is not None and not isinstance(err.__cause__, HeadraceError | OSError):
                err.add_note("".join(traceback.format_exception(err.__cause__)))  # causes do not leave their process
            return Made(key, error=err)

    def _made(self, key: str, payload: bytes) -> Made:
        raw = self.loader.load(key, payload)
        samples = [raw]
        for step in self.steps:
            samples = [made for sample in samples for made in _applied(step, sample)]
            if not samples:
                return Made(key, dropped_by=name_of(step))
        return Made(key, tuple(self._encode(sample, raw, payload) for sample in samples))

    def _encode(self, sample: Sample, raw: Sample, payload: bytes) -> Encoded:
        key = check_key(sample["__key__"], "a sample")
        if not all(isinstance(name, str) for name in sample):
            raise SourceError(f"sample {quoted(key)}: fields are named by text, got {[*sample]}")
        kept = {name: value for name, value in sample.items() if not _is_private(name)}
        encode = get_written_format(self.format).encode
        assert encode is not None  # it is a written format
        images = [name for name in kept if name in self.images or field_kind(name) == "image"]
        sizes = {name: self._image_size(name, sample, raw, payload) for name in images}
        encoded = encode(kept)
        fields = {name: self._described(name, field, sizes.get(name)) for name, field in encoded.fields.items()}
        return replace(encoded, fields=fields) if sizes else encoded

    def _described(self, name: str, field: Field, image_size: tuple[int, int] | None) -> Field:
        """A field with what was found of its image; one that only the source calls an image is called so again."""
        if image_size is None:
            return field
        kind = "image" if name in self.images and field.type == "bytes" else field.type
        return replace(field, type=kind, image_size=image_size)

    def _image_size(self, name: str, sample: Sample, raw: Sample, payload: bytes) -> tuple[int, int] | None:
        """Height and width of a field that is named as an image; None if it holds something else than bytes."""
        value = sample[name]
        if not isinstance(value, bytes | bytearray | memoryview):
            return None
        try:
            return probe_image(bytes(value))
        except TransformError as err:
            if value is raw.get(name):
                origin = self.loader.origin(raw["__key__"], payload, name)
            else:
                origin = f"sample {quoted(sample['__key__'])}, field {name!r}, as prepared,"
            raise SourceError(f"{origin} {err}") from err


def _applied(step: Step, sample: Sample) -> Iterator[Sample]:
    made = step(sample)
    if isinstance(made, list):
        yield from made
    elif made is not None:
        yield made


def _is_private(name: str) -> bool:
    # Other loaders put what they know of a sample among its fields: `__url__`, `__local_path__`.
    return name != "__key__" and name.startswith("__") and name.endswith("__")
