"""The report's page of a run under way, made anew as the run goes on, for a browser that asks again and again.

Making it takes a moment on a long run, and the machine is busy with the run itself. So it is made only when somebody
asks and something is new, and then not for twenty times the time that it took.
"""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from headrace.report import formatting as fmt
from headrace.report.growing import GrowingRun
from headrace.report.page import POLICY, asset, content, document

_REST = 20
"""Seconds of rest for each second of work: at most a twentieth of a core."""
_OVER = ("complete", "stopped", "failed", "gone")
_SLOWEST_SEC = 10.0


class LivePage:
    """What to answer to a browser. Any thread may use it."""

    def __init__(self, run: str | Path, every_sec: float = 1.0) -> None:
        """`run`: its folder, which may hold no events yet, or its file of events; `every_sec`: the least seconds
        between two looks at it. Reads what there is. Raises StorageError where there is no run."""
        self._growing = GrowingRun(run)
        self._every_sec = every_sec
        self._lock = threading.Lock()
        self._due = 0.0
        self._series = secrets.token_hex(4)  # another process of the same address counts from the beginning too
        self._number = 0
        self._title, self._body = content(self._growing.run, self._growing.beside())
        self._refresh()

    def whole(self) -> bytes:
        """The page, to begin with. Raises StorageError where the events cannot be read."""
        with self._lock:
            self._refresh()
            return frame(self._title, self._body, self._version).encode()

    def update(self, known: str) -> bytes:
        """What is new since the version that a browser has, as JSON.

        `version`, `title`, `html` (of what is in <main>; null where the browser has it), `state`, `progress`, and
        `next_ms`, after which to ask again. Raises StorageError where the events cannot be read.
        """
        with self._lock:
            self._refresh()
            present = self._growing.present
            wait_sec = max(self._every_sec, self._due - time.monotonic())
            if present.state in _OVER:
                wait_sec = max(wait_sec, _SLOWEST_SEC)
            answer: dict[str, Any] = {
                "version": self._version,
                "title": self._title,
                "html": None if known == self._version else self._body,
                "state": present.state,
                "progress": self._progress(),
                "next_ms": round(1000 * wait_sec),
            }
        return orjson.dumps(answer)

    @property
    def _version(self) -> str:
        return f"{self._series}-{self._number}"

    def _refresh(self) -> None:
        if time.monotonic() < self._due:
            return
        began = time.thread_time()
        if self._growing.update():
            self._title, self._body = content(self._growing.run, self._growing.beside())
            self._number += 1
        took_sec = time.thread_time() - began
        self._due = time.monotonic() + max(self._every_sec, _REST * took_sec)

    def _progress(self) -> str:
        present = self._growing.present
        done = 0 if present.step is None else present.step["step"]
        of = f" of {fmt.count(present.total_steps)}" if present.total_steps else ""
        left = f", {fmt.seconds(present.sec_left)} left" if present.state == "running" and present.sec_left else ""
        return f"step {fmt.count(done)}{of}{left}"


def frame(title: str, body: str, version: str) -> str:
    """The page around a body, which asks for updates; its scripts and its style are the same for every run."""
    return document(
        title,
        body,
        policy=f"{POLICY}; connect-src 'self'",
        style=asset("live.css"),
        script=asset("live.js"),
        above=f'<div id="live" data-version="{version}"></div>',
    )
