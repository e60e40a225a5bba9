"""Saving: all ranks write their shares, and one of them makes the checkpoint complete.

Asynchronously the ranks stop only to copy their shares; a thread of each writes the copies, and the threads speak to
each other in a group of their own, so that nothing of theirs meets what the training sends. One save is under way at a
time: the next one waits for it. That one failed is known to all threads alike, and is raised where all ranks wait for
it, so that it ends on every rank with one message.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.errors import CheckpointError, HeadraceError
from headrace.storage import Place
from headrace.train.background import Background
from headrace.train.checkpoint import name_of, sealed, shown
from headrace.train.homes import Home
from headrace.train.shares import HostCopies, Share, Written, layout, plan_share, write_share, write_table
from headrace.train.world import World

logger = logging.getLogger("headrace.train")

_PATIENCE_SEC = 60.0
"""How long a run that ends with an error lets a save that is under way come to its end."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was just committed."""

    step: int
    path: Path | Place
    bytes: int
    sec: float
    """Seconds that writing it took, whether training waited for it or not."""
    best: int | None
    """The step of the best one, where the run keeps it."""


class Checkpoints:
    """Writes the checkpoints of one run to their home."""

    def __init__(self, home: Home, world: World, keep: int, *, is_async: bool) -> None:
        self.home = home
        self._world = world
        self._keep = keep
        self._apart: World | None = None
        self._planned: tuple[object, Share] | None = None
        self._copies = HostCopies() if is_async else None
        self._under_way: Background[Saved] = Background()
        self._saved: list[Saved] = []

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], best: int | None = None) -> None:
        """Write and commit a checkpoint, and remove those beyond the newest and the one of step `best`. Collective.

        Asynchronously it returns when the tensors may change. Waits for an earlier save; errors as for `wait`.
        """
        self.wait()
        began = time.perf_counter()
        share = self._share(tensors)
        text = json.dumps(state)  # what a loader or optimizer gave may change, too
        parts = share.of(tensors)
        apart = self._apart = self._apart or self._world.apart()
        if self._copies is None:
            self._saved.append(self._write(apart, step, share, parts, text, best, began))
            return
        copies = self._copies.of(parts)
        self._under_way.begin(
            lambda: self._write(apart, step, share, copies, text, best, began), f"checkpoint {name_of(step)}"
        )

    @property
    def failed(self) -> bool:
        """Whether a save under way has come to its end by an error, which `wait` raises."""
        return self._under_way.failed

    def finished(self) -> list[Saved]:
        """Those committed since the last call."""
        if self._under_way.is_done:
            self.wait()
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Wait for the save under way, if any. All ranks must: raises CheckpointError on all when it failed."""
        saved = self._under_way.wait()
        if saved is not None:
            self._saved.append(saved)

    def give_up(self) -> None:
        """Let the save under way end, where another error ends the run; its own error is only logged."""
        try:
            self._under_way.wait(_PATIENCE_SEC)
        except Exception as err:
            logger.warning("the checkpoint under way was lost: %s", err)
        if self._under_way.is_under_way:
            logger.warning("the checkpoint under way was left after %.0f s without an end", _PATIENCE_SEC)

    def _share(self, tensors: Mapping[str, Tensor]) -> Share:
        key = layout(tensors)
        if self._planned is None or self._planned[0] != key:
            self._planned = key, plan_share(tensors, self._world)
        return self._planned[1]

    def _write(
        self,
        world: World,
        step: int,
        share: Share,
        parts: Mapping[str, Tensor],
        state: str,
        best: int | None,
        began: float,
    ) -> Saved:
        try:
            world.agree(lambda: self.home.begin(step))
            shares = world.gather(self._written(world.rank, step, share, parts))
            refusals = [one for one in shares if isinstance(one, str)]
            if refusals:
                raise CheckpointError(refusals[0])
            written = [one for one in shares if isinstance(one, Written)]
            size = world.agree(lambda: self._commit(step, share, written, json.loads(state), best))
        except HeadraceError as err:
            if world.rank == 0:
                self.home.abandon(step)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.home.place}: {err}; "
                "earlier checkpoints are intact: make room, or choose another place, and go on from them"
            ) from err
        return Saved(step, shown(self.home.place / name_of(step)), size, time.perf_counter() - began, best)

    def _written(self, rank: int, step: int, share: Share, parts: Mapping[str, Tensor]) -> Written | str:
        """What this rank has written, or why it could not: whatever it is, all ranks must come to know it."""
        try:
            desk = self.home.desk(step)
            written = write_share(share, parts, desk)
            self.home.hand_in(step, written.files)
        except Exception as err:
            return f"{_reason(err)} (rank {rank})"
        return written

    def _commit(self, step: int, share: Share, written: list[Written], state: dict[str, Any], best: int | None) -> int:
        try:
            table = write_table(share, [one.results for one in written], self.home.desk(step))
            self.home.hand_in(step, table)
            files = {name: facts for one in written for name, facts in one.files.items()} | table
            self.home.commit(step, sealed({**state, "files": files}))
            self.home.keep(self._keep, best)
        except OSError as err:
            raise CheckpointError(_reason(err)) from err
        return sum(facts["bytes"] for facts in files.values())


def _reason(error: Exception) -> str:
    """One line on what went wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if _is_short_write(error):
        return f"{os.strerror(errno.ENOSPC)}, or a limit on file sizes"
    words = str(error).splitlines()[0] if str(error) else ""
    return words if isinstance(error, HeadraceError) else f"{type(error).__name__}: {words}"


def _is_short_write(error: Exception) -> bool:
    """torch's zip writer says only that a write went wrong, in words of its own."""
    return isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error)
