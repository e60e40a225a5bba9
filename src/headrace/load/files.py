"""Open shards: the few that are in use, so that a dataset of many shards does not exhaust descriptors."""

from __future__ import annotations

import threading
from collections import OrderedDict

from headrace.dataset import Dataset, Joined
from headrace.storage import File

MAX_OPEN = 256


class OpenFiles:
    """Shards by number, opened when first asked for; the least recently used are let go. Thread-safe."""

    def __init__(self, dataset: Dataset | Joined) -> None:
        self._dataset = dataset
        self._files: OrderedDict[int, File] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int) -> File:
        """The open shard. One that is let go stays readable for whoever still holds it."""
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = self._dataset.open_shard(shard)
                if len(self._files) > MAX_OPEN:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard)
            return file

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            self._files.clear()
