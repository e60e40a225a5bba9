"""Makes a finished profile of what the profiler has exported: `python -m headrace.train.profiling.finish`.

In a process of its own, since a trace of ten steps may have a million events, and reading them would take the
interpreter's lock from the training.
"""

from __future__ import annotations

import gzip
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from headrace.train.profiling.summary import summarized
from headrace.train.profiling.trace import name_parts, sorted_trace


def finish(exported: Path, target: Path, about: dict[str, Any], kinds: Sequence[str | None]) -> None:
    """From a file that the profiler exported make `target`, a .json.gz, and the summary beside it; remove the former.

    `about`: rank, first_step, last_step. `kinds`: of the loop's parts, in order; see `name_parts`.
    """
    content = orjson.loads(exported.read_bytes())
    name_parts(content, kinds)
    content["headrace"] = about
    summary = summarized(sorted_trace(content))
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(gzip.compress(orjson.dumps(content), 5))
    exported.unlink()
    partial.replace(target)
    beside = summary_path(target)
    partial.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    partial.replace(beside)


def summary_path(target: Path) -> Path:
    """Where the summary of a trace file lies."""
    return target.with_name(target.name.removesuffix(".json.gz") + ".summary.json")


if __name__ == "__main__":
    os.nice(10)  # training goes first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the run stops in order, and waits for this
    given = orjson.loads(sys.stdin.buffer.read())
    try:
        finish(Path(given["exported"]), Path(given["target"]), given["about"], given["kinds"])
    except OSError as err:
        sys.exit(f"{err.strerror or err}")
