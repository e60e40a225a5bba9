"""Starting the processes of a run, and starting them again when one dies.

torchrun's agent runs in this process, over its Python interface: it starts the workers, watches them, and after a
death starts all of them anew, which go on from the newest checkpoint. What is ours is around it: one loopback address
to meet at, threads shared fairly, the agent's talk in a file, and the first error of a worker as this process's own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from headrace.errors import HeadraceError, StorageError, TargetError, TrainingError
from headrace.telemetry import FILE_NAME, EventWriter
from headrace.train.failure import first_failure, room_for_failures
from headrace.train.nodes import Nodes
from headrace.train.worker import WORKER_LOGS, Job, worker_log

ALONE = Nodes()
LOG = "torchrun.log"
_GRACE_SEC = 120  # for the checkpoint that workers write when they are told to stop
_LAST_CALL_SEC = 5  # for further machines, once there are enough; later ones join by a restart, which loses no step
_KEEP_ALIVE_SEC = 3  # a machine of which three of these passed without a word is gone
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def launch(job: Job, nproc: int, max_restarts: int, nodes: Nodes = ALONE) -> bool:
    """Run a job on `nproc` processes of this machine to its end, or until this process is told to stop: then False.

    With several `nodes` it is one of the machines that do so together; the run goes on with those that are there.
    SIGTERM, SIGINT and SIGUSR1 here are passed on; workers then checkpoint and end. Raises the first worker's error, or
    TrainingError when workers died more than `max_restarts` times. Afterwards none of them is left.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    run_dir = Path(job.run_dir)
    # Which ranks will be on this machine, and so for whose records to hold room, is known only where it is alone.
    room = room_for_failures(run_dir, nproc if nodes.alone else 0)
    with _log_to(run_dir / LOG, shared=not nodes.alone), _environment(nproc, nodes), _own_signals(), room:
        start = elastic_launch(_config(nproc, max_restarts, run_dir, nodes), sys.executable)
        try:
            # -P: as for the command itself, a json.py in the working directory is not Python's.
            start("-P", "-m", "headrace.train.worker", job.to_json())
        except ChildFailedError as err:
            raise (_recorded(run_dir) or _died(err, max_restarts, run_dir)) from None
        except SignalException:
            error = _recorded(run_dir)
            if error is not None:
                raise error from None
            return False
        except RendezvousError as err:
            raise TrainingError(
                f"the machines of the run could not meet at {nodes.endpoint}: {err}; see that all reach it, "
                "and that the machine it names is up; --run goes on"
            ) from err
        except OSError as err:
            raise StorageError(f"the processes of the run in {run_dir} cannot be started: {err}") from err
    return True


def default_nproc() -> int:
    """One process a GPU; one where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def _config(nproc: int, max_restarts: int, run_dir: Path, nodes: Nodes) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=nodes.fewest,
        max_nodes=nodes.most,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if nodes.alone else run_dir.resolve().name,
        rdzv_backend="c10d",
        rdzv_endpoint=nodes.endpoint or "localhost:0",
        rdzv_configs={"last_call_timeout": _LAST_CALL_SEC, "keep_alive_interval": _KEEP_ALIVE_SEC},
        local_addr="localhost" if nodes.here else None,
        max_restarts=max_restarts,
        monitor_interval=0.1,
        shutdown_timeout=_GRACE_SEC,
        logs_specs=_logs(run_dir),
    )


def _logs(run_dir: Path) -> Any:
    """Rank 0 talks to the terminal, the others to files: one voice, one progress bar."""
    from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

    class Logs(LogsSpecs):
        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            dest = LogsDest()
            for rank, env in envs.items():
                attempt = env["TORCHELASTIC_RESTART_COUNT"]
                file = str(worker_log(run_dir, rank, attempt)) if rank else ""
                dest.stdouts[rank] = dest.stderrs[rank] = file
                dest.tee_stdouts[rank] = dest.tee_stderrs[rank] = dest.error_files[rank] = ""
            return dest

        @property
        def root_log_dir(self) -> str:
            return str(run_dir / WORKER_LOGS)

    return Logs()


def _recorded(run_dir: Path) -> HeadraceError | None:
    """The first error that a rank left word of."""
    failure = first_failure(run_dir)
    if failure is None:
        return None
    _note(run_dir, rank=failure.rank, step=failure.step, type=failure.type, message=failure.first_line)
    return failure.error()


def _died(error: Any, max_restarts: int, run_dir: Path) -> TrainingError:
    rank, first = min(error.failures.items(), key=lambda item: item[1].timestamp)
    how = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    restarts = f"{max_restarts} restart{'s' if max_restarts > 1 else ''}"
    how += f", after {restarts}" if max_restarts else ", and restarts are off"
    _note(run_dir, rank=rank, step=None, type=TrainingError.__name__, message=f"it {how}")
    return TrainingError(f"rank {rank} {how}: see {run_dir / LOG} and {run_dir / WORKER_LOGS}; --run goes on")


def _note(run_dir: Path, **error: Any) -> None:
    """Write what ended the run into its events, for the report; its processes, which wrote them, are gone."""
    if (run_dir / FILE_NAME).exists():
        with suppress(StorageError), closing(EventWriter(run_dir / FILE_NAME)) as events:  # the disk may be full
            events.write("error", **error)


@contextmanager
def _environment(nproc: int, nodes: Nodes) -> Iterator[None]:
    """What agent and workers read from the environment; the user's own values stay."""
    cores = len(os.sched_getaffinity(0))
    wanted = {
        # Else a second start of the workers meets the first one's store and is refused.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(max(1, cores // nproc)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if nodes.here:  # its name may not resolve
        wanted |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _Log(logging.StreamHandler[TextIO]):
    """Does without what it cannot write: a full disk is told by what fails of it, not by tracebacks of the log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def _held(path: Path) -> TextIO | None:
    """The file at the path, held for this launch; None where another holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed when the launch ends
    except OSError as err:
        raise StorageError(f"cannot write to the run's folder {path.parent}: {err.strerror}; choose --run DIR") from err
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _log_to(path: Path, shared: bool) -> Iterator[None]:
    """The agent's loggers write to a file, not to the terminal. The file is held: one launch at a time in a folder.

    In a folder that is `shared` by several launches each has a file of its own, with a number.
    """
    file = _held(path)
    while file is None and shared:
        stem, _, number = path.stem.partition("-")
        path = path.with_stem(f"{stem}-{int(number or 1) + 1}")
        file = _held(path)
    if file is None:
        raise TargetError(f"{path.parent} is in use by a run that is under way: wait for it, or choose another (--run)")
    handler = _Log(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("torch.distributed")
    handlers, propagated = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagated
        with suppress(OSError):  # as in _Log
            file.close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """The agent takes the signals over and never gives them back. Slurm's SIGUSR1 means SIGTERM to it.

    SIGUSR2 asks a rank for a profile. Here it means nothing, and nothing, too, to a rank that does not train yet, since
    it inherits that.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
