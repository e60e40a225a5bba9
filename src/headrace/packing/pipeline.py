"""What may happen to samples on their way into shards, besides being encoded: the seam for preparing while packing.

A *selection* decides, while the source is looked through in its own order, whether a sample is packed at all. It sees
every sample once, before anything is written, so it may remember: what it keeps depends neither on splits nor on where
an earlier pack was cut off. A *step* makes one sample into another, or into none or several. Steps run later, in the
final order, by several workers, and remember nothing.

The `repr` of either says all that decides its results: the same source, selections, steps and options give the same
shards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from headrace.errors import OptionError, TransformError
from headrace.packing.identity import identity_of
from headrace.packing.source import Sample
from headrace.storage import quoted

Transform = Callable[[Sample], Any]

Step = Callable[[Sample], Sample | list[Sample] | None]
"""What is done to each sample: gives the one to store instead, several, or None to drop it; each has a `__key__`.

It is picklable, is called from several threads at once, and gives the same result for the same sample: what was cut
off is continued. It raises SourceError or TransformError, naming the sample, for one that is broken. One that keeps the
interpreter's lock for long says so by an attribute `holds_lock = True`; then worker processes make the samples ready.
"""


class Selection(ABC):
    """Which samples are packed. Used by one thread, but for `examine`."""

    title: str
    """What samples that it leaves out are counted under."""
    needs_sample: bool = True
    """Whether `examine` looks at the sample; to choose by the key alone costs no reading."""
    fields: frozenset[str] = frozenset()
    """Fields of samples that it speaks of."""
    unseen: Set[str] = frozenset()
    """Those of them that no sample has had so far, where that is no error of its own."""
    seen: Set[str] = frozenset()
    """Names of fields that samples had, or some of them, as long as any is unseen."""

    def examine(self, key: str, sample: Sample | None) -> Any:
        """What `keeps` has to know of a sample; called from several threads. `sample` is None if it is not needed.

        Raises SourceError or TransformError if the sample is broken.
        """
        return None

    @abstractmethod
    def keeps(self, key: str, examined: Any) -> bool:
        """Whether the sample is packed. Asked once for each sample that earlier selections keep, in the source's
        order."""

    def close(self) -> None:  # noqa: B027
        """Let go of temporary files; nothing, unless it says otherwise."""


@dataclass(frozen=True, repr=False)
class UserTransform:
    """The user's function of a sample's dict, which returns a dict, None or a list of dicts."""

    function: Transform
    holds_lock = True
    title = "the transform"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise OptionError(f"transform must be a function of a sample: got {self.function!r}")

    def __repr__(self) -> str:
        return f"UserTransform({identity_of(self.function)})"

    def __call__(self, sample: Sample) -> Sample | list[Sample] | None:
        """What the function makes of the sample. Raises TransformError, naming the sample."""
        key = sample["__key__"]
        try:
            result = self.function(sample)
        except (Exception, SystemExit) as err:  # whatever the user's function raises is about this sample
            reason = " ".join(str(err).encode("utf-8", "backslashreplace").decode().split())
            raise TransformError(
                f"the transform failed on sample {quoted(key)}: {type(err).__name__}: {reason}"
            ) from err
        if result is None:
            return None
        if isinstance(result, dict):
            return {"__key__": key, **result}
        if isinstance(result, list) and all(isinstance(item, dict) for item in result):
            return [_numbered(key, number, item) for number, item in enumerate(result)]
        raise TransformError(
            f"the transform must return a dict, None or a list of dicts: for sample {quoted(key)} it returned "
            f"{type(result).__name__}"
        )


def name_of(stage: Step | Selection) -> str:
    """What samples that it drops are counted under."""
    return str(getattr(stage, "title", type(stage).__name__))


def _numbered(key: str, number: int, item: Sample) -> Sample:
    # Items that kept the sample's key, or have none, would be one sample in a tar.
    own = item.get("__key__", key)
    return {**item, "__key__": f"{key}/{number}" if own == key else own}
