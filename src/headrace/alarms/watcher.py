"""Alarms of a run that is under way: a thread that reads each event as it is written, and looks at the machine.

The training's thread lays the written lines down and goes on. This one comes by four times a second, so that no step
has to wake it. Once a second it tells the rules the time, every ten seconds what the machine has left.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

from headrace.alarms.judge import Alarm, Judge
from headrace.alarms.options import Alarms
from headrace.alarms.probe import probe
from headrace.alarms.rule import Event
from headrace.alarms.webhook import Webhook, body_of
from headrace.errors import StorageError
from headrace.report.follow import Follower
from headrace.telemetry import RANKS, EventWriter, parse_event

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
        self._written: deque[bytes] = deque()  # which one thread may add to while another takes out
        self._ranks: dict[Path, Follower] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-alarms", daemon=True)
        record.observe(self._written.append)
        self._thread.start()

    def close(self) -> None:
        """Judge what was written so far, and end the thread; waits for the webhook for some seconds at most."""
        try:
            self._record.flush()
        finally:
            self._record.unobserve(self._written.append)
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
            while self._written:
                for line in self._written.popleft().splitlines():
                    if (event := parse_event(line)) is not None:
                        self._take(event)
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
            for event in self._ranks.setdefault(path, Follower(path)).new_events():
                if event["event"] == "rank":
                    self._take(event)

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
