"""A worker process: transforms the rows it is sent, one chunk at a time, until its loader process is gone."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import TransformError
from headrace.load.channel import Channel, dumps
from headrace.load.job import Array
from headrace.load.launch import watch_parent
from headrace.load.marks import Marks
from headrace.load.rows import Chain, Made, Row, make_rows
from headrace.transform import prepare_worker

_PR_SET_PDEATHSIG = 1


def main(parent: int, channel_fd: int, marks_fd: int) -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(marks_fd, False)
    marks = Marks(marks_fd)
    marks.catch_stacks()
    # The kernel ends it with the loader's thread that started it, even inside a function that holds the lock for long.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    watch_parent(parent, channel_fd)
    prepare_worker()
    channel = Channel(socket.socket(fileno=channel_fd))
    try:
        chain: Chain = channel.receive()[0]
        gc.freeze()
        while True:
            (rows, places, size), (fd,) = channel.receive()
            made = make_rows(chain, [_as_in_the_loader(row) for row in rows], _arrays(fd, size, places), marks.lanes[0])
            channel.send_bytes(_reply(made))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the loader process is gone, and with it whoever wanted the rows


def _arrays(fd: int, size: int, places: dict[str, Array]) -> dict[str, NDArray[Any]]:
    """The batch's tensor fields, over a map of its slot that lives as long as they do."""
    slot = np.frombuffer(mmap.mmap(fd, size), np.uint8) if size else np.empty(0, np.uint8)
    os.close(fd)
    return {name: np.ndarray(place.shape, place.dtype, slot, place.offset) for name, place in places.items()}


def _as_in_the_loader(row: Row) -> Row:
    """Stored bytes as views, which is what functions get in the loader process's own threads."""
    sample = {name: memoryview(value) if isinstance(value, bytes) else value for name, value in row.sample.items()}
    return Row(row.number, row.epoch, row.position, sample)


def _reply(made: list[Made]) -> bytes:
    try:
        return dumps(made)
    except Exception:
        return dumps([_portable(one) for one in made])


def _portable(made: Made) -> Made:
    try:
        dumps(made)
    except Exception as err:  # what a user's function returns may be anything
        reason = f"its values cannot be sent to the loader: {type(err).__name__}: {err}"
        return Made(made.key, None, TransformError(f"sample {made.key!r}: {reason}"))
    return made
