"""From a raw sample to what will lie in shards: transform, check, encode, and measure images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from headrace.errors import SourceError, TransformError
from headrace.formats import Encoded, Field, Format
from headrace.packing.options import Transform, identity_of
from headrace.packing.source import check_key
from headrace.storage import quoted
from headrace.transform.decode import field_kind
from headrace.transform.probe import probe_image

Origin = Callable[[str], str]
"""What to call a field of the sample at hand in an error: its file, say."""


@dataclass(frozen=True, slots=True)
class Preparer:
    """Makes samples ready for one format. Safe to call from several threads if the transform is."""

    format: Format
    transform: Transform | None

    @property
    def identity(self) -> str:
        """A text that changes when the transform does."""
        return "" if self.transform is None else identity_of(self.transform)

    def __call__(self, sample: dict[str, Any], origin: Origin) -> list[Encoded]:
        """A sample as it will lie in shards. Raises SourceError or TransformError, naming the sample."""
        if self.transform is None:
            return [self._encode(sample, origin)]
        key = sample["__key__"]
        return [self._encode(made, partial(_field_of, made)) for made in self._transformed(key, sample)]

    def _transformed(self, key: str, sample: dict[str, Any]) -> list[dict[str, Any]]:
        assert self.transform is not None
        try:
            result = self.transform(sample)
        except (Exception, SystemExit) as err:  # whatever the user's function raises is about this sample
            reason = " ".join(str(err).encode("utf-8", "backslashreplace").decode().split())
            raise TransformError(
                f"the transform failed on sample {quoted(key)}: {type(err).__name__}: {reason}"
            ) from err
        if result is None:
            return []
        if isinstance(result, dict):
            return [{"__key__": key, **result}]
        if isinstance(result, list) and all(isinstance(item, dict) for item in result):
            return [_numbered(key, number, item) for number, item in enumerate(result)]
        raise TransformError(
            f"the transform must return a dict, None or a list of dicts: for sample {quoted(key)} it returned "
            f"{type(result).__name__}"
        )

    def _encode(self, sample: dict[str, Any], origin: Origin) -> Encoded:
        check_key(sample["__key__"], "a sample")
        if not all(isinstance(name, str) for name in sample):
            raise SourceError(f"sample {quoted(sample['__key__'])}: fields are named by text, got {[*sample]}")
        assert self.format.encode is not None  # `get_written_format` gave it
        encoded = self.format.encode({name: value for name, value in sample.items() if not _is_private(name)})
        view = memoryview(encoded.blob)
        fields = dict(encoded.fields)
        for name, offset, length in encoded.members:
            if field_kind(name) == "image":
                fields[name] = _measured(fields[name], view[offset : offset + length], origin(name))
        return replace(encoded, fields=fields)


def _field_of(sample: dict[str, Any], name: str) -> str:
    return f"sample {sample['__key__']!r} from the transform, field {name!r},"


def _measured(field: Field, data: memoryview, origin: str) -> Field:
    try:
        return replace(field, image_size=probe_image(data))
    except TransformError as err:
        raise SourceError(f"{origin} {err}") from err


def _numbered(key: str, number: int, item: dict[str, Any]) -> dict[str, Any]:
    # Items that kept the sample's key, or have none, would be one sample in a tar.
    own = item.get("__key__", key)
    return {**item, "__key__": f"{key}/{number}" if own == key else own}


def _is_private(name: str) -> bool:
    # Other loaders put what they know of a sample among its fields: `__url__`, `__local_path__`.
    return name != "__key__" and name.startswith("__") and name.endswith("__")
