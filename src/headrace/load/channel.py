"""What the trainer, its loader process and that one's workers say to each other.

Two one-way lines between processes that one of them started, so both ends run our own code and may pickle:

- a `Channel`: messages of any size over a Unix socket, with file descriptors where a message needs them;
- *orders*: frames of fixed size over a pipe. A frame is written by one system call that takes no lock, so it may be
  sent from a finaliser, wherever the garbage collector happens to run it.
"""

from __future__ import annotations

import io
import os
import pickle
import select
import socket
import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

MAX_FDS = 64
ALIVE_CHECK_MS = 500
_HEADER = struct.Struct("<QB")  # bytes of the message, descriptors with it


class _Pickler(pickle.Pickler):
    """Views of a loader's memory travel as bytes, wherever in a value they are."""

    def reducer_override(self, obj: Any) -> Any:
        return (bytes, (bytes(obj),)) if isinstance(obj, memoryview) else NotImplemented


def dumps(message: Any) -> bytes:
    """A message's body. Whatever error pickling a value of the user's raises comes out as it is."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(message)
    return file.getvalue()


class Channel:
    """One end of a line of messages. `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket, alive: Callable[[], bool] = lambda: True) -> None:
        """`alive` says whether the other end still runs: a process that it forked may keep the line open without it.

        It is asked twice a second while nothing comes or goes; what it raises comes out of the call that waits.
        """
        self._socket = sock
        self._alive = alive
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._room = select.poll()
        self._room.register(sock, select.POLLOUT)

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send one message; raises OSError when the other end is gone."""
        self.send_bytes(dumps(message), fds)

    def send_bytes(self, body: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send a message that is pickled already."""
        header = _HEADER.pack(len(body), len(fds))
        with self._lock:
            if fds:
                socket.send_fds(self._socket, [header], list(fds))
                self._send(body)
            else:
                self._send(header + body)

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and the descriptors that came with it; raises EOFError when the other end is gone."""
        header = bytearray()
        fds: list[int] = []
        while len(header) < _HEADER.size:
            self._wait()
            part, new_fds, _, _ = socket.recv_fds(self._socket, _HEADER.size - len(header), MAX_FDS)
            for fd in new_fds:
                os.set_inheritable(fd, False)
            if not part:
                raise EOFError
            header += part
            fds += new_fds
        body = bytearray(_HEADER.unpack(header)[0])
        self._fill(memoryview(body))
        return pickle.loads(body), fds  # noqa: S301 - written by a process of our own

    def has_message(self) -> bool:
        """Whether `receive` would find something at once."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _wait(self) -> None:
        while not self._poll.poll(ALIVE_CHECK_MS):
            if not self._alive() and not self._poll.poll(0):
                raise EOFError

    def _send(self, data: bytes) -> None:
        """Send all of it; the other end may be slow to take it, and may end or hang meanwhile."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if not self._room.poll(ALIVE_CHECK_MS) and not self._alive():
                    raise BrokenPipeError from None

    def _fill(self, view: memoryview) -> None:
        while view:
            self._wait()
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]


class Kind(IntEnum):
    """What an order asks for."""

    START = 1
    """Deliver batches from (epoch, step) on, without end; the number is the generation they carry."""
    RELEASE = 2
    """Nobody holds the batch in this slot any more; the number is the slot."""
    END = 3
    """Nothing more is wanted."""


class Frame(NamedTuple):
    """One order from the trainer to its loader process."""

    kind: Kind
    number: int
    epoch: int = 0
    step: int = 0


_FRAME = struct.Struct("<4q")


def send_frame(fd: int, frame: Frame) -> None:
    """Write a frame; a reader that is gone is no error here, it shows where batches are awaited."""
    try:
        os.write(fd, _FRAME.pack(*frame))
    except BrokenPipeError:
        return


def receive_frame(fd: int) -> Frame:
    """The next frame; raises EOFError when the writer is gone."""
    data = os.read(fd, _FRAME.size)
    while 0 < len(data) < _FRAME.size:
        data += os.read(fd, _FRAME.size - len(data)) or b""
    if not data:
        raise EOFError
    kind, number, epoch, step = _FRAME.unpack(data)
    return Frame(Kind(kind), number, epoch, step)
