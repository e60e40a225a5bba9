"""What every test can rely on: an environment without a launcher's traces, and fewer, unhurried hypothesis examples."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["servers"]  # stores that tests start for real

settings.register_profile(
    "headrace",
    deadline=None,  # the machines that run this are shared: a slow example is no failure
    max_examples=60,
    # The same examples every time, so that a failure is the change's and not the day's. EXPLORE=1 looks for new ones.
    derandomize=not os.environ.get("EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("headrace")

# A shell starts what is in the background with interrupts ignored, and programs inherit that: those that tests
# interrupt must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)

# What torchrun, Slurm, Open MPI, Horovod, Ray and PyTorch's own process groups leave in the environment.
_LAUNCHER_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "HOROVOD_", "RAY_", "TORCHELASTIC_", "HEADRACE_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Tests run as in a fresh shell, even where the suite itself runs inside a job."""
    for name in list(os.environ):
        if name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES):
            monkeypatch.delenv(name)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs may not be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


TESTS = Path(__file__).parent
LONGEST = (
    "load/test_dataloader.py",
    "faults/test_fault_matrix.py",
    "load/test_healing.py",
    "adapters/",
    "e2e/",
    "bench/test_measure.py",
    "faults/test_soak.py",
    "load/test_loader_hostile.py",
    "load/test_tabled.py",
    "load/test_direct.py",
    "train/",
)
"""Files of few tests that take long: begun first, so that no process has one of them left when the other is done."""


def pytest_collection_modifyitems(items):
    """The longest files come first; tests marked `gpu` are skipped where there is no CUDA device."""
    items.sort(key=lambda item: _rank(os.path.relpath(item.path, TESTS)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _rank(file):
    """Where a file is among the longest; all others are behind them, in their order."""
    return next((number for number, begin in enumerate(LONGEST) if file.startswith(begin)), len(LONGEST))


@functools.cache
def _has_cuda() -> bool:
    # In a process of its own: the suite must not import torch for the tests that do without.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
