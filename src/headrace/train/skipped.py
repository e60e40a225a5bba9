"""The samples that ranks left out as damaged, listed in the run's folder: `skipped/rank0.jsonl` and so on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.errors import StorageError
from headrace.storage import make_folder, storage_refusals
from headrace.train.contract import LoaderLike

FOLDER = "skipped"


class SkippedList:
    """Within its `with` block, appends what the loader skips: one JSON object a line, with `key` and `reason`.

    Nothing is made where nothing is skipped, or where the run has no folder.
    """

    def __init__(self, run_dir: Path | None, rank: int, loader: LoaderLike) -> None:
        self._path = None if run_dir is None else run_dir / FOLDER / f"rank{rank}.jsonl"
        self._loader = loader
        self._num_written = len(self._skipped())

    def update(self) -> None:
        """Append what was skipped since. Raises StorageError where the disk refuses."""
        new = self._skipped()[self._num_written :]
        if self._path is None or not new:
            return
        lines = [json.dumps({"key": one.key, "reason": one.reason}) + "\n" for one in new]
        make_folder(self._path.parent)
        with storage_refusals("write", self._path), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        self._num_written += len(new)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*() if err is None else (StorageError,)):  # what went wrong first is what should be seen
            self.update()

    def _skipped(self) -> list[Any]:
        skipped: list[Any] = getattr(self._loader, "skipped", [])  # a loader of the user's need not know of it
        return skipped
