"""TensorBoard's event files, written by its own record writer and messages; needs no torch and no TensorFlow."""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from headrace.sinks.history import History
from headrace.sinks.points import Point
from headrace.sinks.sink import Event, Memory, Output, check_every, need
from headrace.telemetry.secrets import cleaned

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event as Message

_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class TensorBoard:
    """Event files that TensorBoard shows: `tensorboard --logdir runs`. Needs `pip install 'headrace[tensorboard]'`.

    Args:
        dir: the folder they go to; None: `tensorboard` in the run's folder.
        every_sec: steps that end within so many seconds become one point, their mean; 0: every step is a point.
    """

    name: ClassVar[str] = "tensorboard"
    keeps: ClassVar[bool] = True

    dir: str | Path | None = None
    every_sec: float = 1.0

    def check(self) -> None:
        """Raise OptionError for a wrong `every_sec`, or without the library."""
        check_every(self.every_sec, self.name)
        need("tensorboard", self.name)

    def target(self, run_dir: Path) -> str:
        """The folder."""
        return str(self._folder(run_dir))

    def open(self, run_dir: Path, memory: Memory) -> Output:
        """Begin another file in the folder, which TensorBoard reads as one with those before."""
        folder = self._folder(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return _EventFile(folder, self.every_sec, memory)

    def _folder(self, run_dir: Path) -> Path:
        return run_dir / "tensorboard" if self.dir is None else Path(self.dir).absolute()


class _EventFile(History):
    def __init__(self, folder: Path, every_sec: float, memory: Memory) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Message
        from tensorboard.summary.writer.record_writer import RecordWriter

        super().__init__(str(folder), every_sec, memory)
        # As TensorBoard's own writers name them, since it reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        self._unwritten = io.BytesIO()
        self._records = RecordWriter(self._unwritten)
        self._message = Message
        self._put(Message(wall_time=time.time(), file_version="brain.Event:2"))
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115 - closed by `end`
        try:
            self._write()
        except OSError:
            self._file.close()
            (folder / name).unlink()  # else there would be one for every try
            raise

    def started(self, event: Event) -> None:
        """What lies beyond the step that the run resumed from is hidden by TensorBoard."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.text.summary import text_pb

        step = event.get("step") or 0
        told = {name: event.get(name) for name in ("config", "mesh", "precision", "versions", "machine")}
        text = json.dumps(cleaned(told), indent=1, ensure_ascii=False)
        log = SessionLog(status=SessionLog.START)
        self._put(self._message(wall_time=event["time"], step=step + 1, session_log=log))
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown for text as it is
        self._put(self._message(wall_time=event["time"], step=step + 1, summary=text_pb("run", indented)))
        self._write()  # nothing else may follow

    def deliver(self, points: Sequence[Point]) -> None:
        """Scalars, at the time at which the step ended."""
        for point in points:
            message = self._message(wall_time=point.time, step=point.step)
            for name, value in point.values.items():
                message.summary.value.add(tag=name, simple_value=value)
            self._put(message)
        self._write()

    def end(self, outcome: str | None) -> None:
        """TensorBoard has no word for how a run ended."""
        self._file.close()

    def free(self) -> None:
        """A record that is cut off there is passed over by TensorBoard."""
        self._file.close()

    def _put(self, message: Message) -> None:
        self._records.write(message.SerializeToString())

    def _write(self) -> None:
        """Write what was put; a disk that fills up takes a part first, and says why with the rest."""
        left = self._unwritten.getvalue()
        self._unwritten.seek(0)
        self._unwritten.truncate()
        while left:
            left = left[self._file.write(left) :]
