"""Slurm: a job that was told to stop before it was done goes back into the queue.

Slurm sends a signal before it takes the time or the machines away (`#SBATCH --signal=B:USR1@120`); the run checkpoints
and stops, and the job is put back to go on from there when it is its turn again.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from headrace.errors import OptionError, TrainingError

_ANSWER_SEC = 60


def check_requeue() -> None:
    """Raise OptionError where there is no job to put back, or nothing to do it with."""
    if "SLURM_JOB_ID" not in os.environ:
        raise OptionError(
            "--requeue puts a Slurm job back into the queue: SLURM_JOB_ID is not set; leave it out, or use sbatch"
        )
    if shutil.which("scontrol") is None:
        raise OptionError(
            "--requeue needs Slurm's scontrol, which is not on PATH here; leave it out, or add it to PATH"
        )


def requeue() -> bool:
    """Put this process's Slurm job back into the queue; False on all but the first of its tasks, which does it.

    Slurm then ends what is left of the job. Raises TrainingError with Slurm's words where it refuses.
    """
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return False
    job = os.environ["SLURM_JOB_ID"]
    command = [shutil.which("scontrol") or "scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SEC, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise TrainingError(
            f"scontrol requeue {job} did not answer in {_ANSWER_SEC} s: put the job back by hand"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise TrainingError(f"Slurm does not put job {job} back: {said}; submit it with sbatch --requeue, or anew")
    return True
