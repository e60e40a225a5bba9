"""Functions by name, as a command line can give them: `FILE.py:function` or `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import OptionError


def load_function(name: str) -> Callable[..., Any]:
    """The function that `FILE.py:function` or `module:function` names. Raises OptionError if there is none.

    A file is run as if it were imported from its own folder, so it may import its neighbours.
    """
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name:
        raise OptionError(f"a function is given as FILE.py:function or module:function: got {name!r}")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except OptionError:
        raise
    except SyntaxError as err:
        raise OptionError(f"{place} has a syntax error at line {err.lineno}: {err.msg}") from err
    except (Exception, SystemExit) as err:  # a module may raise anything while it is imported
        raise OptionError(f"{place} cannot be imported: {type(err).__name__}: {err}") from err
    function = getattr(module, function_name, None)
    if not callable(function):
        raise OptionError(f"{place} has no function {function_name!r}; it has {_functions(module)}")
    result: Callable[..., Any] = function
    return result


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"there is no file {str(path)!r}: check the path")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"headrace_file_{path.stem}"  # not the stem itself: a file may be called like a module of Python's
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _functions(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return ", ".join(sorted(names)[:8]) or "none"
