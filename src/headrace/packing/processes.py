"""Worker processes for steps that hold the interpreter's lock: the user's own function, above all.

Each is a fresh interpreter that gets the preparation by cloudpickle, so scripts without a main guard, lambdas and
closures work. It ends when this process does, however that ends. A process that dies is replaced once; its records are
then prepared one by one, so that the sample it dies of has a name.
"""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import cloudpickle

from headrace.errors import HeadraceError, OptionError, TransformError
from headrace.load.channel import Channel
from headrace.load.launch import exit_reason, start_interpreter
from headrace.packing.pipeline import UserTransform
from headrace.packing.prepare import Made, Preparer
from headrace.storage import quoted

Records = Sequence[tuple[str, bytes]]

_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class Processes:
    """Some worker processes, each started when first needed; used by as many threads."""

    def __init__(self, preparer: Preparer, num: int) -> None:
        """Raises OptionError for a function that cannot be sent to another process."""
        self._description = _described(preparer)
        self._processes = [_Process(self._description) for _ in range(num)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def prepare(self, records: Records) -> list[Made]:
        """Have a process prepare records. Safe to call from `num` threads.

        Raises TransformError naming the sample that ends processes, and whatever else fails there.
        """
        process = self._idle.get()
        try:
            return process.prepare(records)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes, in the middle of what they do."""
        for process in self._processes:
            process.close()


class _Process:
    """One worker process, used by one thread at a time."""

    def __init__(self, description: bytes) -> None:
        self._description = description
        self._starting, self._busy = threading.Lock(), threading.Lock()
        self._closed = False
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, records: Records) -> list[Made]:
        with self._busy:
            try:
                return self._ask(records)
            except _GONE:
                reason = self._ended()
            return [self._alone(record, reason) for record in records]

    def close(self) -> None:
        with self._starting:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        with self._busy:  # whoever waited for the process has seen its end
            self._ended()

    def _alone(self, record: tuple[str, bytes], before: str) -> Made:
        try:
            return self._ask([record])[0]
        except _GONE:
            raise TransformError(
                f"worker processes ended ({before}, then {self._ended()}) over sample {quoted(record[0])}: look at "
                "what the transform does with it, and at the memory it takes"
            ) from None

    def _ask(self, records: Records) -> list[Made]:
        channel = self._channel or self._start()
        channel.send(records)
        answer: list[Made] | HeadraceError = channel.receive()[0]
        if isinstance(answer, HeadraceError):
            raise answer
        return answer

    def _ended(self) -> str:
        """Let go of a process that has ended; how it ended."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        return "never started" if self._process is None else exit_reason(self._process.wait())

    def _start(self) -> Channel:
        with self._starting:
            if self._closed:
                raise EOFError
            self._process, channel = start_interpreter("headrace.packing.worker_process")
        self._channel = channel
        channel.send_bytes(self._description)
        return channel


def _described(preparer: Preparer) -> bytes:
    for step in preparer.steps:
        if isinstance(step, UserTransform):
            _send_by_value(step.function)
    try:
        description: bytes = cloudpickle.dumps(preparer)
    except Exception as err:  # whatever pickling a value of the user's raises
        raise OptionError(
            f"the transform cannot be sent to worker processes ({type(err).__name__}: {' '.join(str(err).split())}): "
            "open files, locks and the like inside of it"
        ) from err
    return description


def _send_by_value(function: Callable[..., Any]) -> None:
    """Send a function's module along where another process could not import it: it was loaded from a file."""
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) and name != "__main__" else None
    if module is None or module.__name__ in sys.builtin_module_names:
        return
    with suppress(ValueError, ImportError):
        if importlib.machinery.PathFinder.find_spec(module.__name__.partition(".")[0]) is None:
            cloudpickle.register_pickle_by_value(module)
