"""A store in bad weather: a share of its answers is wrong, in ways and places drawn from a seed."""

import random
import socket
import threading
import time
from collections import Counter

from faulty import hang, reset_after, short, status

GARBLED_APART = 60
"""Requests of a file between two that are garbled: what comes garbled again when it is asked for anew is damaged."""


class Weather:
    """A fault for `FaultyServer.always`: each kind as often as any other, in an order drawn from the seed."""

    def __init__(self, seed, share):
        """`share` of the requests, 0 to 1, are answered wrongly."""
        self._rng = random.Random(seed)
        self._share = share
        self._lock = threading.Lock()
        self._deck = []
        self._requests, self._garbled = Counter(), {}
        self.counts = Counter()

    def __call__(self, handler):
        with self._lock:
            kind, place = self._kind_for(handler), self._rng.random()
            self.counts[kind] += 1
        return KINDS[kind](handler, place) if kind else False

    def _kind_for(self, handler):
        """The fault that this request gets; None for most."""
        path = handler.path
        self._requests[path] += 1
        if handler.command != "GET" or self._rng.random() >= self._share:
            return None
        self._deck = self._deck or self._rng.sample(sorted(KINDS), len(KINDS))
        kind = self._deck.pop()
        if kind == "garbled":
            if self._requests[path] - self._garbled.get(path, -GARBLED_APART) < GARBLED_APART:
                return None
            self._garbled[path] = self._requests[path]
        return kind


def _span(handler):
    return handler.span() or (0, len(handler.content))


def _amount(handler, place):
    first, end = _span(handler)
    return int(place * (end - first))


def _garbled(handler, place):
    first, end = _span(handler)
    body = bytearray(handler.content[first:end])
    body[int(place * len(body))] ^= 16
    handler.send(206 if handler.span() else 200, bytes(body), promised=handler.span())


def _cut(handler, place):
    """Promise everything, send a part, and close the connection in order."""
    first, end = _span(handler)
    body = handler.content[first : first + _amount(handler, place)]
    handler.send(206 if handler.span() else 200, body, promised=handler.span(), length=end - first)
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_WR)
    handler.close_connection = True


def _short(handler, place):
    return short(_amount(handler, place))(handler) if handler.span() else False


def _slow(handler, place):
    time.sleep(place / 2)
    return False


def _silent(handler, place):
    """Silence, sometimes, would take most of the time of a soak: a tenth are so, the others slow."""
    return hang(handler) if place < 0.1 else _slow(handler, place)


KINDS = {
    "408": lambda handler, _: status(408)(handler),
    "429": lambda handler, _: status(429, Retry_After="1")(handler),
    "500": lambda handler, _: status(500)(handler),
    "503": lambda handler, _: status(503)(handler),
    "reset": lambda handler, place: reset_after(_amount(handler, place) if place > 0.3 else 0)(handler),
    "cut": _cut,
    "short": _short,
    "garbled": _garbled,
    "slow": _slow,
    "silent": _silent,
}
