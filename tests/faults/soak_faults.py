"""What goes wrong on the trainer's machine during the soak: with its loader processes, its cache and its files."""

import contextlib
import os
import resource
import shutil
import signal
import threading

from waiting import family

MOST_DELAY_SEC = 0.5
LARGEST_FILE_BYTES = 2 << 20
"""With this limit a slot of the loader's may be made, and no block of the cache, which has a header too."""


class Faults:
    """What can be done to a loader and to the cache that it reads through, now or within the next half second."""

    def __init__(self, rng, cache):
        """What is random comes from `rng`; `cache` is the cache's folder."""
        self._rng = rng
        self._cache = cache
        self._later = None

    def do(self, kind, loader):
        """Have one happen, by its name."""
        self.settle()
        getattr(self, kind)(loader)

    def settle(self):
        """Wait until what is still to happen has happened."""
        if self._later is not None:
            self._later.join()

    # To a loader process.

    def kill(self, loader):
        """At any moment, also while it starts."""
        self._do_later(lambda: _signal(_pid(loader), signal.SIGKILL))

    def kill_worker(self, loader):
        """One of the process's worker processes, or itself where it has none."""
        pids = family(_pid(loader))
        _signal(self._rng.choice(pids[1:] or pids), signal.SIGKILL)

    def stop(self, loader):
        """For good: it answers to nothing but SIGKILL."""
        _signal(_pid(loader), signal.SIGSTOP)

    def pause(self, loader):
        """Stop it for a moment."""
        pid = _pid(loader)
        _signal(pid, signal.SIGSTOP)
        self._do_later(lambda: _signal(pid, signal.SIGCONT))

    def refuse_writes(self, loader):
        """The file system takes no block of the cache for a moment: after such an error the cache rests a minute."""
        self._limit(loader, resource.RLIMIT_FSIZE, LARGEST_FILE_BYTES)

    def refuse_opening(self, loader):
        """No file and no connection can be opened for a moment."""
        with contextlib.suppress(OSError):  # it has ended meanwhile
            self._limit(loader, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{_pid(loader)}/fd")))

    # To the cache.

    def delete_blocks(self, _loader):
        for path in self._some_blocks():
            path.unlink(missing_ok=True)

    def flip_blocks(self, _loader):
        for path in self._some_blocks():
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                at = self._rng.randrange(max(1, path.stat().st_size))
                file.seek(at)
                old = file.read(1) or b"\0"
                file.seek(at)
                file.write(bytes([old[0] ^ 1]))

    def cut_blocks(self, _loader):
        for path in self._some_blocks():
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, self._rng.randrange(max(1, path.stat().st_size)))

    def remove_cache(self, _loader):
        shutil.rmtree(self._cache, ignore_errors=True)

    def _some_blocks(self):
        found = sorted(self._cache.glob("headrace-cache-*/blocks/*/*"))
        return self._rng.sample(found, self._rng.randint(1, len(found))) if found else []

    def _limit(self, loader, what, soft):
        pid = _pid(loader)
        with contextlib.suppress(ProcessLookupError):
            before = resource.prlimit(pid, what)
            resource.prlimit(pid, what, (soft, before[1]))
            self._do_later(lambda: _lift(pid, what, before))

    def _do_later(self, act):
        self._later = threading.Timer(self._rng.uniform(0, MOST_DELAY_SEC), act)
        self._later.start()


def _pid(loader):
    client = loader._client
    return client.pid if client is not None else -1


def _signal(pid, number):
    with contextlib.suppress(ProcessLookupError):
        if pid > 0:
            os.kill(pid, number)


def _lift(pid, what, limits):
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, what, limits)
