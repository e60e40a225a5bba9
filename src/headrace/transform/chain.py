"""A chain of steps over one sample: the user's functions wrapped, errors named, randomness where it is taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, TypeAlias, cast

import numpy as np

from headrace.errors import OptionError, TransformError
from headrace.transform.spec import NO_ROWS, ArraySpec, Fields, Op, Rows, Sample, array_spec

Shape: TypeAlias = ArraySpec | tuple[str, tuple[int | None, ...]] | None
"""What a function makes of a field: (dtype, shape), an axis that varies being None; or None, if it is no array."""


@dataclass(frozen=True)
class Map:
    """A function of the user's, called as `fn(sample)` or `fn(sample, rng)`, that returns the new sample (a dict).

    `shapes` declares the fields that it adds or changes; the others are taken to stay as they are. Without it nothing
    is known of what the function returns before it has run.
    """

    fn: Callable[..., Any]
    shapes: Mapping[str, Shape] | None = dataclass_field(default=None, hash=False)
    takes_rng: bool = dataclass_field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "takes_rng", takes_rng(self.fn))
        for name, shape in (self.shapes or {}).items():
            _as_spec(name, shape)

    def __call__(self, sample: Sample, *rng: np.random.Generator) -> Sample:
        result = self.fn(sample, *rng)
        if not isinstance(result, dict):
            raise TransformError(f"it must return a dict of fields: got {type(result).__name__}")
        return result

    def output_fields(self, fields: Fields) -> Fields:
        """The fields with the declared ones over them; an empty dict (nothing is known) without declared shapes."""
        if self.shapes is None:
            return {}
        return {**fields, **{name: _as_spec(name, shape) for name, shape in self.shapes.items()}}


@dataclass(frozen=True)
class Filter:
    """A function of the user's, called as `fn(sample)` or `fn(sample, rng)`: it stays where the result is true."""

    fn: Callable[..., Any]
    takes_rng: bool = dataclass_field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "takes_rng", takes_rng(self.fn))

    def __call__(self, sample: Sample, *rng: np.random.Generator) -> bool:
        return bool(self.fn(sample, *rng))

    def output_fields(self, fields: Fields) -> Fields:
        """Nothing changes."""
        return fields


def as_op(fn: Callable[..., Any], shapes: Mapping[str, Shape] | None = None) -> Op:
    """A step for `.map`: one of this room's stays what it is, any other callable becomes a Map."""
    if shapes is None and hasattr(fn, "output_fields") and isinstance(getattr(fn, "takes_rng", None), bool):
        return cast(Op, fn)
    return Map(fn, shapes)


def apply(
    ops: Sequence[Op], sample: Sample, make_rng: Callable[[], np.random.Generator], rows: Rows = NO_ROWS
) -> Sample | None:
    """The sample after every step, or None where a filter turned it down.

    The last step may write what it makes into `rows`, where fields are to lie in the end: the value of such a field is
    then that very array.

    `make_rng` is called once, and only if a step takes randomness; the steps draw from the one generator in turn. The
    caller's dict is left as it is, and the key stays with the sample. A step that fails raises TransformError, which
    names the step and has the error as its cause.
    """
    key = sample.get("__key__")
    result = dict(sample)
    rng: tuple[np.random.Generator, ...] | None = None
    for number, op in enumerate(ops, 1):
        if op.takes_rng and rng is None:
            rng = (make_rng(),)
        arguments = rng if op.takes_rng and rng is not None else ()
        into = getattr(op, "into", None) if rows and number == len(ops) else None
        try:
            outcome = op(result, *arguments) if into is None else into(rows, result, *arguments)
        except Exception as err:
            raise _named(op, err) from err
        if not isinstance(op, Filter):
            result = outcome
        elif not outcome:
            return None
    return result if key is None or result.get("__key__") == key else {**result, "__key__": key}


def output_fields(ops: Sequence[Op], fields: Fields) -> Fields:
    """What is known of the fields after every step."""
    for op in ops:
        fields = op.output_fields(fields)
    return fields


def takes_rng(fn: Callable[..., Any], takes: str = "sample") -> bool:
    """Whether a function is called as `fn(sample, rng)`: it requires two arguments, or its second one is named `rng`.

    `takes` is what errors call its first argument.

    Raises OptionError for a function that requires another number of arguments.
    """
    if not callable(fn):
        raise OptionError(f"a function is called as fn({takes}) or fn({takes}, rng): got {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise OptionError(f"a function must not be async, since nothing would await it: got {describe(fn)}")
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # built-in functions without a signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if keywords or len(required) > 2 or not (positional or variadic):
        raise OptionError(
            f"a function is called as fn({takes}) or fn({takes}, rng), but {describe(fn)} has the parameters "
            f"{inspect.signature(fn)}: set the others with functools.partial"
        )
    return len(required) == 2 or (len(positional) > 1 and positional[1].name == "rng")


def describe(fn: Callable[..., Any]) -> str:
    """A function's name and where it stands, for messages."""
    inner = inspect.unwrap(fn)
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    code = getattr(inner, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def _named(op: Op, err: Exception) -> TransformError:
    if isinstance(op, Map | Filter):
        verb = "function" if isinstance(op, Map) else "filter"
        detail = str(err) if isinstance(err, TransformError) else f"{type(err).__name__}: {err}"
        name = f"{verb} {describe(op.fn)}"
    else:
        detail = str(err) if isinstance(err, TransformError) else f"{type(err).__name__}: {err}"
        name = getattr(op, "name", type(op).__name__)
    return TransformError(f"{name} failed: {' '.join(detail.split())}")


def _as_spec(name: str, shape: Shape) -> Any:
    if shape is None or isinstance(shape, ArraySpec):
        return shape
    try:
        dtype, sizes = shape
        if any(size is not None and size < 0 for size in sizes):
            raise ValueError
        return array_spec(dtype, tuple(sizes))
    except (TypeError, ValueError) as err:
        raise OptionError(
            f"the shape of {name!r} is (dtype, sizes), such as ('float32', (3, 224, 224)), or None: got {shape!r}"
        ) from err
