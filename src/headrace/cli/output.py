"""How every verb answers: results to stdout, talk to stderr, and one line for an error.

A verb is a plain function: it calls the library, hands its result to `emit`, and lets errors pass. `run` maps them to
a line and an exit code: 0 done, 1 the work failed, 2 bad usage or an unknown option value. With `--json` the last line
of stdout is one JSON object, whatever happens.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any

import orjson
import typer

from headrace.errors import HeadraceError, OptionError, StorageError

DONE, FAILED, BAD_USAGE = 0, 1, 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]

# Named so under every version of typer, which has moved its parser's errors about.
_UsageError = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130  # what typer makes of Ctrl-C, in the versions that do not let it through
_ON_INTERRUPT = "interrupted; run the same again to go on"
_DEBUG, _JSON = "--debug", "--json"


def emit(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print a verb's result: the JSON object if asked for (NaN and infinity become null), else the text."""
    try:
        print(_dumps(result) if as_json else text, flush=True)
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as err:
        raise StorageError(f"the work is done, but its result cannot be printed to stdout: {err.strerror}") from err


def complain(message: str) -> None:
    """Print the line of a failure, on stderr."""
    with suppress(OSError):  # nobody is left to be told
        print(f"headrace: {_one_line(message)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text as any output can take it: bytes of a path that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """While the block runs SIGTERM ends it as Ctrl-C does, with a line and room to clean up; a second one kills."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(app: Callable[..., Any], argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code.

    `--debug`, before or after the verb, lets a failure show its traceback.
    """
    debug = _DEBUG in argv
    as_json = _JSON in argv
    args = [arg for arg in argv if arg != _DEBUG] or ["--help"]
    try:
        code = app(args=args, prog_name="headrace", standalone_mode=False)
        if code != _INTERRUPTED:
            return code if isinstance(code, int) else DONE
        code, kind, message = FAILED, "KeyboardInterrupt", _ON_INTERRUPT
    except Exception as err:
        if debug:
            traceback.print_exc()
        code, kind, message = _explain(err)
    except KeyboardInterrupt:
        code, kind, message = FAILED, "KeyboardInterrupt", _ON_INTERRUPT
    complain(message)
    if as_json:
        with suppress(OSError):  # stdout itself may be what failed
            print(_dumps({"error": {"type": kind, "message": message}}), flush=True)
    return code


def _explain(err: Exception) -> tuple[int, str, str]:
    kind = type(err).__name__
    if isinstance(err, OptionError):
        return BAD_USAGE, kind, _one_line(str(err))
    if isinstance(err, HeadraceError):
        return FAILED, kind, _one_line(str(err))
    if isinstance(err, _UsageError):
        return BAD_USAGE, kind, _one_line(f"{_usage_message(err)} (headrace --help, headrace VERB --help)")
    if isinstance(err, typer.Abort):
        return FAILED, kind, _ON_INTERRUPT
    return FAILED, kind, _one_line(f"unexpected {kind}: {err} (--debug shows where)")


def _usage_message(err: Exception) -> str:
    format_message = getattr(err, "format_message", None)
    return format_message() if callable(format_message) else str(err)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in printable(text).splitlines())


def _dumps(value: Mapping[str, Any]) -> str:
    plain = orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))
    return json.dumps(plain, separators=(",", ":"))  # in ASCII: JSON whatever the locale's encoding
