"""Progress bars: on a terminal a bar, elsewhere silence."""

import contextlib
import os
import pty
import subprocess
import sys

CODE = """
import sys
from headrace.telemetry import progress
with progress("packing", 3, "images") as advance:
    for name in "abc":
        advance(1, note=name)
print("rich" in sys.modules)
"""


def test_silent_and_without_rich_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr == ""


def test_shows_a_bar_on_a_terminal_and_keeps_stdout_clean():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=theirs, text=True, check=True, env=environment
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # raised at the end, when the terminal's other end is closed
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert done.stdout == "True\n"
    assert b"packing" in shown
    assert b"3/3" in shown
