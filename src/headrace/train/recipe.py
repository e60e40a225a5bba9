"""Recipes: a run written as a Python function, whose keyword parameters are its settings.

`recipe(*, lr: float = 1e-3, mesh: str = "dp")` in a file returns a Trainer; `--set lr=3e-4` sets a parameter, read as
the type it is annotated with. A recipe's file is imported under a name of its own, and what it defines travels to the
loader process by value, since no process could import it by that name. Needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from headrace.errors import RecipeError

DEFAULT_FUNCTION = "recipe"


@dataclass(frozen=True, slots=True)
class RecipeTarget:
    """A function in a file."""

    path: Path
    function: str

    @classmethod
    def parse(cls, text: str, default: str = DEFAULT_FUNCTION) -> RecipeTarget:
        """From `FILE.py` or `FILE.py:function`; the function is `default` where none is named."""
        path, colon, function = text.rpartition(":")
        if not colon or not function.isidentifier():
            path, function = text, default
        return cls(Path(path), function)

    @property
    def name(self) -> str:
        """The file's name without its ending, and the function's if it is not the default."""
        stem = self.path.stem
        return stem if self.function == DEFAULT_FUNCTION else f"{stem}-{self.function}"


def check_syntax(target: RecipeTarget) -> None:
    """Raise RecipeError, with file and line, unless the file can be read and is Python. Runs nothing of it."""
    try:
        source = target.path.read_bytes()
    except OSError as err:
        raise RecipeError(f"a recipe must be a Python file: {target.path} cannot be read ({err.strerror})") from err
    try:
        compile(source, str(target.path), "exec")
    except SyntaxError as err:
        raise RecipeError(f"{target.path}, line {err.lineno}: {err.msg}") from err
    except ValueError as err:
        raise RecipeError(f"{target.path} is no Python file: {err}") from err


def load_recipe(target: RecipeTarget) -> Callable[..., Any]:
    """The recipe's function; imports the file. Raises RecipeError, with the line, for what goes wrong in it."""
    check_syntax(target)
    module = _import(target.path.resolve())
    function = getattr(module, target.function, None)
    if not callable(function):
        found = [name for name, value in vars(module).items() if _is_own_function(value, module)]
        raise RecipeError(
            f"{target.path} has no function {target.function!r}: it has {', '.join(found) or 'none'}; "
            f"name one with {target.path}:FUNCTION"
        )
    chosen: Callable[..., Any] = function
    return chosen


def _import(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"headrace_recipe_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Beside a recipe may lie modules that it imports, as beside a script.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as err:
        del sys.modules[name]
        raise RecipeError(f"{path}{_line(err, path)}: {type(err).__name__}: {err}") from err
    cloudpickle.register_pickle_by_value(module)
    return module


def _line(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _is_own_function(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__
