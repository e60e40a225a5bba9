"""Starting a fresh interpreter for a loader or a worker process.

Not a fork (the trainer has threads, and libraries that do not survive one) and not multiprocessing's spawn (it imports
the user's script again): a new interpreter that gets its description by a socket. So scripts without a main guard,
notebooks, lambdas and closures work.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from headrace.load.channel import Channel
from headrace.storage import child_environment
from headrace.storage.cache import stop_publishing

# The new interpreter looks for modules where this one does, before it imports anything of ours.
_BOOT = """
import importlib, json, sys
module, arguments, sys.path[:] = json.loads(sys.argv[1])
importlib.import_module(module).main(*arguments)
"""
PARENT_CHECK_MS = 500

# A loader's threads are counted by the loader; a numeric library's own would only get in their way.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def start_interpreter(
    module: str, *fds: int, meanwhile: Callable[[], None] = lambda: None
) -> tuple[subprocess.Popen[bytes], Channel]:
    """Run `module.main(our pid, channel_fd, *fds)` in a process of its own; returns it and our end of its channel.

    It is in a session of its own, so that the terminal's signals (Ctrl-C) reach only us. `meanwhile` is called now and
    then while somebody waits at the channel; what it raises ends the waiting.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    passed = (theirs.fileno(), *fds)
    argument = json.dumps([module, (os.getpid(), *passed), [os.path.abspath(p) for p in sys.path]])
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
            [sys.executable, "-P", "-c", _BOOT, argument],  # -P: a json.py in the working directory is not Python's
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD | child_environment(),
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()

    def alive() -> bool:
        meanwhile()
        return process.poll() is None

    return process, Channel(ours, alive)


def watch_parent(parent: int, line: int, beat: Callable[[], None] = lambda: None) -> None:
    """End this process, whatever its threads are at, when its parent is gone or has closed the other end of `line`.

    For the new interpreter. The descriptors it was given are not passed on to what it starts. `beat` is called twice a
    second: it stops when this process does, or when the interpreter's lock is not let go.
    """
    os.set_inheritable(line, False)
    threading.Thread(target=_watch, args=(parent, line, beat), name="watch", daemon=True).start()


def _watch(parent: int, line: int, beat: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(line, 0)  # a hang-up is reported unasked
    while not poll.poll(PARENT_CHECK_MS) and os.getppid() == parent:
        beat()
    end_now()


def end_now() -> NoReturn:
    """End this process, whatever its threads are at: inside a read or a user's function, of which nothing is wanted
    any more. Only what goes into a cache is not left half-written."""
    stop_publishing()
    os._exit(0)


def exit_reason(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    known = {int(s) for s in signal.Signals}
    return f"killed by {signal.Signals(-code).name if -code in known else f'signal {-code}'}"
