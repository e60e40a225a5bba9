"""A worker process: answers the orders of one thread of its loader process, until that is gone."""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from headrace.load.channel import Channel
from headrace.load.launch import watch_parent
from headrace.load.marks import Lane, Marks
from headrace.load.slots import Slot

_PR_SET_PDEATHSIG = 1
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class Task(Protocol):
    """What a worker process does; it comes by the channel first."""

    @property
    def num_lanes(self) -> int:
        """How many of its threads mark what they are at."""

    def answer(self, order: Any, slot: Slot, lanes: Sequence[Lane]) -> bytes:
        """Do what the order says with the batch in this slot; the pickled answer."""


def main(parent: int, channel_fd: int, marks_fd: int) -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(marks_fd, False)
    marks = Marks(marks_fd)
    marks.catch_stacks()
    # The kernel ends it with the loader's thread that started it, even inside a function that holds the lock for long.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    watch_parent(parent, channel_fd, marks.beat)
    channel = Channel(socket.socket(fileno=channel_fd))
    try:
        task: Task = channel.receive()[0]
        gc.freeze()
        _answer(task, channel, marks.lanes)
    except _GONE:
        os._exit(0)  # the loader process is gone, and with it whoever wanted the rows


def _answer(task: Task, channel: Channel, lanes: Sequence[Lane]) -> None:
    # Orders are taken in as they come, also amid an answer: two that only send would wait for each other.
    orders: queue.SimpleQueue[tuple[Any, list[int]]] = queue.SimpleQueue()
    threading.Thread(target=_take_orders, args=(channel, orders), name="orders", daemon=True).start()
    slots: dict[int, Slot] = {}
    while True:
        (order, number), fds = orders.get()
        for fd in fds:
            slots[number] = Slot(number, is_shared=True, fd=fd)
        channel.send_bytes(task.answer(order, slots[number], lanes))


def _take_orders(channel: Channel, orders: queue.SimpleQueue[tuple[Any, list[int]]]) -> None:
    try:
        while True:
            orders.put(channel.receive())
    except _GONE:
        os._exit(0)
