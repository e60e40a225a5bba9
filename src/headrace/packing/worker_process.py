"""A worker process: prepares the records it is sent, a chunk at a time, until the process that packs is gone."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket

from headrace.errors import HeadraceError, TransformError
from headrace.load.channel import Channel, dumps
from headrace.load.launch import watch_parent
from headrace.packing.prepare import Made, Preparer
from headrace.transform import prepare_worker

_PR_SET_PDEATHSIG = 1


def main(parent: int, channel_fd: int) -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The kernel ends it with the thread that started it, even inside a function that holds the lock for long.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    watch_parent(parent, channel_fd)
    prepare_worker()
    channel = Channel(socket.socket(fileno=channel_fd))
    try:
        preparer = _received(channel)
        gc.freeze()
        while True:
            records = channel.receive()[0]
            channel.send_bytes(_answer(preparer, records))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the process that packs is gone, and with it whoever wanted the samples


def _received(channel: Channel) -> Preparer:
    try:
        preparer: Preparer = channel.receive()[0]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except BaseException as err:  # a module that the transform needs fails here, or ends the process
        failure = TransformError(f"a worker process cannot load the transform: {type(err).__name__}: {_line(err)}")
        channel.receive()  # the records, which the answer is to
        channel.send(failure)
        raise EOFError from err
    return preparer


def _answer(preparer: Preparer, records: list[tuple[str, bytes]]) -> bytes:
    try:
        made: list[Made] | HeadraceError = [preparer(*record) for record in records]
    except HeadraceError as err:
        made = err
    except BaseException as err:  # a fault of ours, or of what a value does when it is encoded
        made = TransformError(f"a worker process failed: {type(err).__name__}: {_line(err)}")
    return dumps(made)


def _line(err: BaseException) -> str:
    return " ".join(str(err).encode("utf-8", "backslashreplace").decode().split())
