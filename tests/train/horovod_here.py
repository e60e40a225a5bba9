"""Horovod, built as docs/horovod.md says, into a folder that is kept for the next time."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ASKED = "BUILD_HOROVOD"
_PACKAGES = "packages"


def folder():
    """Where to import it from, beside this torch. Skips where it is not built, unless that is asked for and works."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = caches / f"headrace-tests/horovod-0.28.1-torch-{torch.__version__}-{sys.implementation.cache_tag}"
    if not place.exists():
        if not os.environ.get(ASKED):
            pytest.skip("Horovod is not built: `make horovod` does that, in some minutes")
        _build(place)
    return place


def _build(place):
    """The page's commands, in a folder of their own, which takes its name when all is done."""
    for program in ("c++", "cmake", "tar", "sed"):
        if shutil.which(program) is None:
            pytest.skip(f"Horovod cannot be built: there is no {program} (apt-get install g++ cmake)")
    page = (ROOT / "docs/horovod.md").read_text("utf-8")
    (commands,) = re.findall(r"^```sh build\n(.*?)^```$", page, re.M | re.S)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as made:
        packages = Path(made, _PACKAGES)
        env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(packages / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(packages),
            "PIP_TARGET": str(packages),
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
        }
        done = subprocess.run(
            ["sh", "-ec", commands], cwd=made, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"Horovod cannot be built: {done.stdout.strip()[-500:]}")
        packages.rename(place)
