"""What is to be streamed: a frozen description that starts nothing."""

from __future__ import annotations

import multiprocessing.context
import pickle
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import cloudpickle
from torch import distributed
from torch.utils.data import IterableDataset

from headrace.dataset import Dataset, Joined
from headrace.errors import OptionError
from headrace.formats.tokens.bins import Layout
from headrace.load.mixture import Mixture
from headrace.load.options import check_flag, optional_number, whole_number
from headrace.load.samples import Samples
from headrace.load.start import Start
from headrace.load.state import MAX_PARTITIONS, partitions_of
from headrace.order import MixedOrder, Order, default_partitions, derive_key
from headrace.rank import Rank, resolve_rank
from headrace.storage import parse_size
from headrace.transform import Cast, Decode, Filter, Op, Sample, with_step
from headrace.transform.chain import Shape, as_op
from headrace.transform.pixels import Color


@dataclass(frozen=True)
class Stream(IterableDataset[Sample]):
    """A dataset, the order in which its samples come, and what happens to each. A `Loader` runs it.

    It can be printed, compared and pickled, and is an IterableDataset for PyTorch's own DataLoader: iterating gives
    the rank's samples, in a DataLoader's worker that worker's share of them. Raises OptionError for values out of
    range.
    """

    dataset: Dataset | Joined
    """What `headrace.open` gives; the datasets of a mixture."""
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
    mixture: Mixture | None = None
    """How several datasets are mixed; made by `headrace.mix`."""
    first_epoch: int = 0
    """The epoch that is the first; 0 <= first_epoch < 2^53."""
    start: Start | None = None
    """Where a DataLoader's iteration begins in these epochs; set by `resume`. None: with their first sample."""
    ops: tuple[Op, ...] = ()
    """What happens to each sample, in order; added by `decode`, `map` and `filter`."""

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, Dataset if self.mixture is None else Joined):
            raise OptionError(f"a stream needs a dataset from headrace.open: got {type(self.dataset).__name__}")
        check_flag("shuffle", self.shuffle)
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0, 2**63 - 1))
        for name, least, most in (("window", 0, None), ("partitions", 1, MAX_PARTITIONS), ("epochs", 1, None)):
            object.__setattr__(self, name, optional_number(name, getattr(self, name), least, most))
        object.__setattr__(self, "first_epoch", whole_number("first_epoch", self.first_epoch, 0, 2**53 - 1))
        if self.block_size is not None:
            object.__setattr__(self, "block_size", parse_size(self.block_size, "block_size"))
        if self.start is not None and self.has_filter:
            raise OptionError("a stream that goes on after a number of batches has no filter: got one after resume()")
        if len(self.dataset) == 0:
            raise OptionError(f"a stream needs samples: {self.dataset.url} has none")

    def decode(self, *, color: Color = "rgb", scaled: bool = False) -> Stream:
        """Turn stored fields into values by their extension: images to uint8 (height, width, channels), and so on.

        What the dataset's schema calls an image is decoded whatever its name. `color` is "rgb" (3 channels) or "gray"
        (1 channel). `scaled=True` decodes JPEGs at 1/2, 1/4 or 1/8 of their size where `RandomResizedCrop` or `Resize`
        follows directly and needs no more: less work, and pixels that differ a little.
        """
        check_flag("scaled", scaled)
        images = frozenset(name for name, field in self.dataset.schema.items() if field.type == "image")
        return replace(self, ops=(*self.ops, Decode(color, images, scaled)))

    def map(self, fn: Callable[..., Any], *, shapes: Mapping[str, Shape] | None = None) -> Stream:
        """Apply `fn(sample)` or `fn(sample, rng)`, which returns the new sample (a dict).

        `rng` is a numpy Generator keyed by seed, epoch and position: what is drawn from it is as exact as the order.
        A field becomes a tensor when its shape is known. For a plain function that is learned from three samples of
        the dataset (first, middle, last); `shapes` declares it: field -> (dtype, sizes), or None for a list.
        """
        return replace(self, ops=with_step(self.ops, as_op(fn, shapes)))

    def cast(self, dtypes: Mapping[str, Any]) -> Stream:
        """Give fields of numbers other types: `{"tokens": "int64", "price": torch.float32}`.

        Whole numbers become wider ones or floats; floats may be rounded. Raises OptionError for what is no such type.
        """
        return replace(self, ops=(*self.ops, Cast.of(dtypes)))

    def filter(self, fn: Callable[..., Any]) -> Stream:
        """Keep a sample where `fn(sample)` or `fn(sample, rng)` is true.

        The batch that it falls in shrinks; no other sample moves, and the number of steps stays.
        """
        return replace(self, ops=(*self.ops, Filter(fn)))

    def __iter__(self) -> Samples:
        """The samples of this process's share; every time the same ones: a description does not move on."""
        return Samples(self)

    def from_epoch(self, epoch: int) -> Stream:
        """The same stream with `epoch` as the first: what each turn of a loop over epochs of a DataLoader wants."""
        return replace(self, first_epoch=epoch, start=None)

    def state_after(
        self, batches: int, *, batch_size: int, num_workers: int = 0, drop_last: bool = False
    ) -> dict[str, Any]:
        """Where PyTorch's DataLoader stands after it gave so many batches of this stream: JSON, the same on every rank.

        The numbers are those that the DataLoader was made with. Raises OptionError for a stream with a filter, whose
        batches do not tell how many samples were read: use torchdata's StatefulDataLoader or a headrace.Loader then.
        """
        if self.has_filter:
            raise OptionError(
                "the batches of a DataLoader do not tell how many samples a filter read: use torchdata's "
                "StatefulDataLoader, or headrace.Loader"
            )
        batches = whole_number("batches", batches, 0) + (self.start.batches if self.start else 0)
        batch_size, num_workers = whole_number("batch_size", batch_size, 1), whole_number("num_workers", num_workers, 0)
        check_flag("drop_last", drop_last)
        rank = self.resolve_rank()
        order = self.order(rank.world_size, self.start.partitions if self.start else None)
        start = Start(batches, batch_size, num_workers, drop_last, rank.world_size, order.partitions)
        start.place(0, order, rank, self.epochs)
        return start.state(self.first_epoch, self.order_state(order))

    def resume(self, state: Mapping[str, Any]) -> Stream:
        """The stream from where `state_after` says on, for a DataLoader made with the same numbers.

        Raises StateError if what decides the order differs, or is no such state; so does the DataLoader where the
        number of workers or ranks differs.
        """
        order = self.order(self.resolve_rank().world_size, partitions_of(state))
        start = Start.loaded(state, self.order_state(order))
        return replace(self, first_epoch=state["first_epoch"], start=start)

    @property
    def has_filter(self) -> bool:
        """Whether batches may shrink."""
        return any(isinstance(op, Filter) for op in self.ops)

    def pack_tokens(self, length: int) -> Stream:
        """Rows of `length` tokens from the documents of a dataset of tokens, several in a row; longer ones are cut.

        Which go together is planned once, from their lengths in the index, and kept beside the manifest; rows are then
        shuffled as samples are, so that steps are equal and nothing is planned per epoch. A sample has, as tensors of
        `length`: `tokens` (0 where nothing is left to fill a row), `positions` (int32, from 0 in each document) and
        `segments` (int32: 1 for the first document, 2 for the next, 0 for what is empty), and as a list `cu_seqlens`
        (int32: where documents begin, and the last ends). Raises OptionError for what has no documents of tokens.
        """
        return self._of_documents("rows", length, "pack_tokens")

    def batch_tokens(self, budget: int) -> Stream:
        """Padded batches of documents of much the same length: each takes at most `budget` tokens, padding included.

        Planned and shuffled as by `pack_tokens`; to a `Loader` each is one sample, so `batch_size=1` gives one a rank
        and step. Fields are lists: `tokens` of shape (documents, longest), padded with 0, and `lengths` (int32).
        """
        return self._of_documents("padded", budget, "batch_tokens")

    def _of_documents(self, layout: Layout, capacity: int, what: str) -> Stream:
        if not isinstance(self.dataset, Dataset):
            raise OptionError(
                f"{what} puts the documents of one dataset together: mix what was put together, as "
                f'headrace.mix([(dataset.binned("{layout}", {capacity}), weight), ...])'
            )
        if self.ops or self.start is not None:
            raise OptionError(f"{what} puts stored documents together: call it before map, filter, decode and resume")
        return replace(self, dataset=self.dataset.binned(layout, capacity))

    def order(
        self,
        world_size: int,
        partitions: int | None = None,
        global_batch_size: int | None = None,
        drop_last: bool = True,
    ) -> Order | MixedOrder:
        """The order of the samples; `partitions` (a loaded state's) counts where the stream names none.

        The batch size and what becomes of the last batch matter to a mixture whose weights change at some step.
        """
        partitions = self.partitions or partitions or default_partitions(world_size)
        if isinstance(self.dataset, Dataset):
            return self._source_order(self.dataset, self.seed, partitions)
        assert self.mixture is not None
        sources = tuple(
            self._source_order(part, derive_key(self.seed, number) >> 1, partitions)
            for number, part in enumerate(self.dataset.parts)
        )
        return self.mixture.order(sources, self.seed, global_batch_size, drop_last)

    def _source_order(self, dataset: Dataset, seed: int, partitions: int) -> Order:
        return Order(
            piece_samples=dataset.pieces.samples,
            piece_bytes=dataset.pieces.bytes,
            seed=seed,
            shuffle=self.shuffle,
            partitions=partitions,
            block_size=self._block_bytes(dataset),
            window=self.window,
        )

    def order_state(self, order: Order | MixedOrder) -> dict[str, Any]:
        """What decides an order of this stream: JSON, for a state to compare."""
        return {
            "dataset": self.dataset.fingerprint,
            "samples": order.num_samples,
            "seed": order.seed,
            "shuffle": order.shuffle,
            "partitions": order.partitions,
            **order.facts(),
            "filter": self.has_filter,
        }

    def resolve_rank(self) -> Rank:
        """This process's rank; in a worker that a DataLoader spawned, that of the process which made it."""
        spawner: Rank | None = getattr(self, "_spawner", None)
        return spawner or resolve_rank()

    def __reduce__(self) -> tuple[Any, ...]:
        """With functions by value, so that lambdas and closures reach spawned workers."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "ops"}
        return _restored, (plain, cloudpickle.dumps(self.ops), _spawners_rank())

    def _block_bytes(self, dataset: Dataset) -> int | None:
        """A block holds whatever is unpacked as a whole. Raises OptionError for a block that is smaller."""
        least = dataset.pieces.largest_whole_bytes
        if self.block_size is None:
            return dataset.least_block_bytes or None
        block_bytes = parse_size(self.block_size, "block_size")
        if block_bytes < least:
            raise OptionError(
                f"block_size must be at least {least:,}: {dataset.url} has compressed shards or row groups of that "
                f"size, which are unpacked as a whole; got {block_bytes:,}; leave it out, or repack"
            )
        return block_bytes


def _restored(plain: dict[str, Any], ops: bytes, spawner: Rank | None) -> Stream:
    stream = Stream(**plain, ops=pickle.loads(ops))  # noqa: S301 - part of a pickle that is being loaded already
    object.__setattr__(stream, "_spawner", spawner)
    return stream


def _spawners_rank() -> Rank | None:
    """This process's rank, where it pickles for a process that it spawns and that cannot know it; else None.

    A forked worker inherits torch.distributed, a spawned one the launcher's environment at most.
    """
    is_known = distributed.is_available() and distributed.is_initialized()
    return resolve_rank() if is_known and multiprocessing.context.get_spawning_popen() is not None else None
