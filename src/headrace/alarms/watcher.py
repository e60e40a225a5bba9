"""Alarms of a run that is under way: a thread that reads each event as it is written, and looks at the machine.

The training's thread hands the written lines over and goes on. Once a second time is told to the rules, every ten
seconds what the machine has left.
"""

from __future__ import annotations

import logging
import platform
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from headrace.alarms.judge import Alarm, Judge
from headrace.alarms.options import Alarms
from headrace.alarms.probe import probe
from headrace.alarms.rule import Event
from headrace.alarms.webhook import Webhook, body_of
from headrace.errors import StorageError
from headrace.telemetry import EventWriter, parse_event

_log = logging.getLogger("headrace.alarms")

_TICK_SEC, _PROBE_SEC = 1.0, 10.0


class Watcher:
    """Rings for the events of one writer, from its making until it is closed. Close it before the writer."""

    def __init__(self, alarms: Alarms, record: EventWriter, look: Callable[[Path], dict[str, Any]] = probe) -> None:
        """Starts a thread. `look(folder)` gives the fields of a probe of the run's folder."""
        self._record = record
        self._folder = record.path.parent
        self._look = look
        self._judge = Judge(alarms)
        self._webhook = Webhook(alarms.webhook) if alarms.webhook is not None else None
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headrace-alarms", daemon=True)
        record.observe(self._lines.put)
        self._thread.start()

    def close(self) -> None:
        """Judge what was written so far, and end the thread; waits for the webhook for some seconds at most."""
        try:
            self._record.flush()
        finally:
            self._record.unobserve(self._lines.put)
            self._lines.put(None)
            self._thread.join()
            if self._webhook is not None:
                self._webhook.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        tick = probe_at = time.monotonic()
        while True:
            try:
                lines = self._lines.get(timeout=max(0.0, tick - time.monotonic()))
            except queue.Empty:
                lines = b""
            if lines is None:
                return
            for line in lines.splitlines():
                if (event := parse_event(line)) is not None:
                    self._take(event)
            now = time.monotonic()
            if now >= tick:
                tick = now + _TICK_SEC
                self._take({"event": "tick", "time": time.time()})
            if now >= probe_at:
                probe_at = now + _PROBE_SEC
                self._take({"event": "probe", "time": time.time(), **self._look(self._folder)})

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
