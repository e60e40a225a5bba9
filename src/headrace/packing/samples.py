"""Samples that come once, as a source: an iterable, the rows of a query, a dataset far away.

Such samples can be neither shuffled nor recognised again without seeing all of them. So each is kept as it comes, until
it is written: pickled, in a nameless file that only this process and its own workers read.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cloudpickle
import xxhash

from headrace.errors import HeadraceError, SourceError
from headrace.packing.source import BAD_SAMPLE, Bad, Loader, Sample, Source, check_key
from headrace.packing.spool import Record

_NUMBER = struct.Struct("<q")
_RESERVED_BYTES = 1 << 10
_DIGEST_BITS = 128


class SamplesSource(Source):
    """Dicts in their order; those without a `__key__` are numbered.

    What is broken may come as a `Bad` instead.
    """

    def __init__(
        self,
        samples: Iterable[Any],
        title: str,
        *,
        ordered: bool,
        classes: tuple[str, ...] | None = None,
        num_samples: int | None = None,
    ) -> None:
        """`ordered` says whether the same samples in another order are another source."""
        self.title, self.classes, self.num_records = title, classes, num_samples
        self.loader = PickledLoader(title)
        self._samples, self._ordered = samples, ordered
        self._digest, self._sum = xxhash.xxh3_128(), 0
        self._num_samples = 0

    @property
    def identity(self) -> str:
        digest = self._digest.hexdigest() if self._ordered else f"{self._sum:032x}"
        return f"samples {self._num_samples} {digest} {self.classes}"

    def records(self) -> Iterator[Record | Bad]:
        for number, sample in enumerate(self._samples):
            self._num_samples += 1
            yield sample if isinstance(sample, Bad) else self._record(number, sample)
        if not self._num_samples:
            raise SourceError(f"{self.title} gave nothing to pack: it is empty")

    def close(self) -> None:
        if isinstance(self._samples, Iterator) and hasattr(self._samples, "close"):
            self._samples.close()

    def _record(self, number: int, sample: Any) -> Record | Bad:
        where = _where(number, self.title)
        if not isinstance(sample, dict):
            raise SourceError(f"{where} must be a dict of fields, got {type(sample).__name__}")
        key = f"{number:09d}"
        try:
            key = check_key(sample.get("__key__", key), where)
            content = _pickled(where, {name: value for name, value in sample.items() if name != "__key__"})
        except BAD_SAMPLE as err:
            return Bad(key, err)
        self._note(key, content)
        return Record(key, _NUMBER.pack(number) + content, len(content) + _RESERVED_BYTES)

    def _note(self, key: str, content: bytes) -> None:
        head = f"{key}\n{len(content)}\n".encode()
        if self._ordered:
            self._digest.update(head)
            self._digest.update(content)
        else:
            self._sum = (self._sum + xxhash.xxh3_128_intdigest(head + content)) % (1 << _DIGEST_BITS)


@dataclass(frozen=True)
class PickledLoader(Loader):
    """Unpickles what this process has pickled."""

    title: str

    def load(self, key: str, payload: bytes) -> Sample:
        try:
            sample: Sample = pickle.loads(payload[_NUMBER.size :])  # noqa: S301 - our own process wrote it
        except (Exception, SystemExit) as err:  # of a class that a worker process cannot import, say
            raise SourceError(
                f"{_where(_number(payload), self.title)} does not come back from being kept ({type(err).__name__}: "
                f"{' '.join(str(err).split())}); give bytes, text, numbers, lists, dicts and arrays"
            ) from err
        return {**sample, "__key__": key}

    def origin(self, key: str, payload: bytes, field: str) -> str:
        return f"{_where(_number(payload), self.title)}, field {field!r},"


def _where(number: int, title: str) -> str:
    return f"sample number {number} of {title}"


def _number(payload: bytes) -> int:
    number: int = _NUMBER.unpack_from(payload)[0]
    return number


class _Pickler(pickle.Pickler):
    """Equal values give equal bytes, whichever of them are one object: so it takes no notice of that (`fast`).

    Views are kept as bytes, and what a worker process could not import is left to cloudpickle.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, memoryview):
            return bytes, (bytes(obj),)
        if getattr(obj if isinstance(obj, type) else type(obj), "__module__", "") == "__main__":
            raise pickle.PicklingError("a class of the script itself")
        return NotImplemented


def _pickled(where: str, sample: Sample) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5)
    pickler.fast = True
    try:
        pickler.dump(sample)
        return file.getvalue()
    except Exception:  # functions, classes of the script, values that hold themselves
        return _cloudpickled(where, sample)


def _cloudpickled(where: str, sample: Sample) -> bytes:
    try:
        content: bytes = cloudpickle.dumps(sample)
    except HeadraceError:
        raise
    except Exception as err:  # whatever a value's own pickling raises
        raise SourceError(
            f"{where} cannot be kept until it is written ({type(err).__name__}: {' '.join(str(err).split())}); give "
            "bytes, text, numbers, lists, dicts and arrays"
        ) from err
    return content
