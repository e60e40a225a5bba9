"""Alarms of a run that is under way: a thread that reads each event as it is written, and looks at the machine.

It follows the run's file as whoever else does, four times a second, so the training pays nothing for it. Once a second
it tells the rules the time, every ten seconds what the machine has left and what other ranks say.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from pathlib import Path
from typing import Self

from headrace.alarms.judge import Alarm, Judge
from headrace.alarms.options import Alarms
from headrace.alarms.probe import probe
from headrace.alarms.rule import Event
from headrace.alarms.webhook import Webhook, body_of
from headrace.errors import StorageError
from headrace.telemetry import RANKS, EventWriter, Tail, num_bytes

_log = logging.getLogger("headrace.alarms")

_EVERY_SEC, _TICK_SEC, _PROBE_SEC = 0.25, 1.0, 10.0


class Watcher:
    """Rings for the events of one writer, from its making until it is closed. Close it before the writer."""

    def __init__(self, alarms: Alarms, record: EventWriter) -> None:
        """Starts a thread."""
        self._record = record
        self._folder = record.path.parent
        self._judge = Judge(alarms)
        self._webhook = Webhook(alarms.webhook) if alarms.webhook is not None else None
        self._events = Tail(record.path, num_bytes(record.path))
        self._ranks: dict[Path, Tail] = {}
        self._is_told = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-alarms", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Judge what was written so far, and end the thread; waits for the webhook for some seconds at most."""
        try:
            self._record.flush()
        finally:
            self._over.set()
            self._thread.join()
            if self._webhook is not None:
                self._webhook.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        tick = probed = time.monotonic()
        over = False
        while not over:
            over = self._over.wait(_EVERY_SEC)
            self._follow(self._events)
            now = time.monotonic()
            if now >= tick:
                tick = now + _TICK_SEC
                self._take({"event": "tick", "time": time.time()})
            if now >= probed or over:
                probed = now + _PROBE_SEC
                self._take({"event": "probe", "time": time.time(), **probe(self._folder)})
                self._take_ranks()

    def _take_ranks(self) -> None:
        """What other ranks have written of their own time."""
        for path in sorted((self._folder / RANKS).glob("rank-*.jsonl")):
            self._follow(self._ranks.setdefault(path, Tail(path)), "rank")

    def _follow(self, tail: Tail, kind: str | None = None) -> None:
        """Take what is new, of this kind only, if one is given."""
        try:
            for event in tail.new_events():
                if kind in (None, event["event"]) and isinstance(event.get("time"), int | float):
                    self._take(event)
        except StorageError as err:
            if not self._is_told:
                _log.warning("alarms do not see what is written: %s", err)
            self._is_told = True

    def _take(self, event: Event) -> None:
        for alarm in self._judge.take(event):
            self._ring(alarm)

    def _ring(self, alarm: Alarm) -> None:
        fields = alarm.fields()
        _log.warning("alarm at step %d: %s", alarm.step, alarm.message)
        if self._webhook is not None:
            self._webhook.send(body_of(self._folder.name, platform.node(), fields))
        try:
            self._record.write("alarm", **fields)
        except StorageError as err:  # the disk is full, which may be what it rings for: the run itself will say so
            _log.warning("the alarm is not in the record: %s", err)
