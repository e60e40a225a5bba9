"""What is to be streamed: a frozen description that starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from headrace.dataset import Dataset
from headrace.errors import OptionError
from headrace.load.options import check_flag, optional_number, whole_number
from headrace.order import Order, default_partitions
from headrace.storage import parse_size
from headrace.transform import Decode, Filter, Op
from headrace.transform.chain import Shape, as_op
from headrace.transform.pixels import Color

MAX_PARTITIONS = 1 << 20


@dataclass(frozen=True)
class Stream:
    """A dataset, the order in which its samples come, and what happens to each. A `Loader` runs it.

    It can be printed, compared and pickled. Raises OptionError for values out of range.
    """

    dataset: Dataset
    """What `headrace.open` gives."""
    _: KW_ONLY
    seed: int = 0
    """Decides the order and the randomness of the transforms; 0 <= seed < 2^63."""
    shuffle: bool = True
    """False gives storage order: position g of an epoch is sample g."""
    block_size: int | str | None = None
    """Bytes, such as "1MiB", that are read by one request and stay together in the shuffle. None: 4 MiB, or less for a
    small dataset (its bytes / 3,072, at least one sample), so that it is shuffled finely. At most 2^30 a dataset."""
    window: int | None = None
    """How many neighbouring samples of one partition are shuffled among themselves. None: those of a block."""
    partitions: int | None = None
    """Into how many parts an epoch is cut; every world size that divides it gives the same batches. None: the least
    common multiple of 48 and the world size that the run starts with."""
    epochs: int | None = 1
    """Epochs of one iteration; None is endless."""
    ops: tuple[Op, ...] = ()
    """What happens to each sample, in order; added by `decode`, `map` and `filter`."""

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, Dataset):
            raise OptionError(f"a stream needs a dataset from headrace.open: got {type(self.dataset).__name__}")
        check_flag("shuffle", self.shuffle)
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0, 2**63 - 1))
        for name, least, most in (("window", 0, None), ("partitions", 1, MAX_PARTITIONS), ("epochs", 1, None)):
            object.__setattr__(self, name, optional_number(name, getattr(self, name), least, most))
        if self.block_size is not None:
            object.__setattr__(self, "block_size", parse_size(self.block_size, "block_size"))
        if len(self.dataset) == 0:
            raise OptionError(f"a stream needs samples: {self.dataset.url} has none")

    def decode(self, *, color: Color = "rgb") -> Stream:
        """Turn stored fields into values by their extension: images to uint8 (height, width, channels), and so on.

        What the dataset's schema calls an image is decoded whatever its name. `color` is "rgb" (3 channels) or "gray"
        (1 channel).
        """
        images = frozenset(name for name, field in self.dataset.schema.items() if field.type == "image")
        return replace(self, ops=(*self.ops, Decode(color, images)))

    def map(self, fn: Callable[..., Any], *, shapes: Mapping[str, Shape] | None = None) -> Stream:
        """Apply `fn(sample)` or `fn(sample, rng)`, which returns the new sample (a dict).

        `rng` is a numpy Generator keyed by seed, epoch and position: what is drawn from it is as exact as the order.
        A field becomes a tensor when its shape is known. For a plain function that is learned from three samples of
        the dataset (first, middle, last); `shapes` declares it: field -> (dtype, sizes), or None for a list.
        """
        return replace(self, ops=(*self.ops, as_op(fn, shapes)))

    def filter(self, fn: Callable[..., Any]) -> Stream:
        """Keep a sample where `fn(sample)` or `fn(sample, rng)` is true.

        The batch that it falls in shrinks; no other sample moves, and the number of steps stays.
        """
        return replace(self, ops=(*self.ops, Filter(fn)))

    @property
    def has_filter(self) -> bool:
        """Whether batches may shrink."""
        return any(isinstance(op, Filter) for op in self.ops)

    def order(self, world_size: int, partitions: int | None = None) -> Order:
        """The order of the samples; `partitions` (a loaded state's) counts where the stream names none."""
        pieces = self.dataset.pieces
        return Order(
            piece_samples=pieces.samples,
            piece_bytes=pieces.bytes,
            seed=self.seed,
            shuffle=self.shuffle,
            partitions=self.partitions or partitions or default_partitions(world_size),
            block_size=self._block_bytes(pieces.largest_whole_bytes),
            window=self.window,
        )

    def _block_bytes(self, largest_whole_bytes: int) -> int | None:
        """A block holds whatever is unpacked as a whole. Raises OptionError for a block that is smaller."""
        if self.block_size is None:
            return largest_whole_bytes or None
        block_bytes = parse_size(self.block_size, "block_size")
        if block_bytes < largest_whole_bytes:
            raise OptionError(
                f"block_size must be at least {largest_whole_bytes:,}: {self.dataset.url} has compressed shards or row "
                f"groups of that size, which are unpacked as a whole; got {block_bytes:,}; leave it out, or repack"
            )
        return block_bytes
