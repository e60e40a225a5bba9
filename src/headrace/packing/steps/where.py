"""Which samples to keep, by an expression over their fields: `label in (3, 5) and len(text) > 100`.

The expression is Python's, read by its own parser and evaluated here, node by node: names are fields, and nothing can
be called but the few functions listed, so it can do nothing but compare. A field that is missing is None. What is
stored as bytes but is text or a number by its extension (`cls`, `txt`, `json`) is that in the expression.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headrace.errors import OptionError, TransformError
from headrace.transform.decode import Decode, field_kind

_MAX_CHARS = 10_000
_MAX_INTEGER = 1 << 64

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, many: item in many,
    ast.NotIn: lambda item, many: item not in many,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "lower": str.lower,
    "upper": str.upper,
    "strip": str.strip,
    "startswith": str.startswith,
    "endswith": str.endswith,
    "abs": abs,
    "min": min,
    "max": max,
    "int": int,
    "float": float,
    "str": str,
}
_HELP = (
    "fields, numbers, text, and, or, not, in, is None, comparisons, arithmetic, indexing, field('name.ext'), and "
    f"{', '.join(_FUNCTIONS)}"
)


@dataclass(frozen=True)
class Where:
    """Keeps the samples for which the expression is true."""

    expression: str

    def __post_init__(self) -> None:
        _check(self._tree, self.expression)

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields that it speaks of."""
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)} - set(_FUNCTIONS) - {"field"}
        return frozenset(names | {_named(node) for node in ast.walk(self._tree) if _is_field(node)})

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        """The sample, or None to leave it out. Raises TransformError where the values do not fit the expression."""
        values = {name: _value(name, sample.get(name)) for name in self.fields | {"__key__"}}
        try:
            return sample if _evaluate(self._tree.body, values) else None
        except (TypeError, ValueError, ZeroDivisionError, KeyError, IndexError, AttributeError, OverflowError) as err:
            raise TransformError(
                f"sample {sample['__key__']!r}: where {self.expression!r} failed: {' '.join(str(err).split())}; fields "
                "that may be missing are None: test them with `is not None` first"
            ) from err

    @cached_property
    def _tree(self) -> ast.Expression:
        if not isinstance(self.expression, str) or not 0 < len(self.expression) <= _MAX_CHARS:
            raise OptionError(f"where must be an expression over fields, like label == 3: got {self.expression!r}")
        try:
            return ast.parse(self.expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            raise OptionError(f"where must be an expression like label == 3: {self.expression!r} is none") from err

    def __getstate__(self) -> dict[str, Any]:
        return {"expression": self.expression}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _check(tree: ast.Expression, expression: str) -> None:
    for node in ast.walk(tree.body):
        if not _is_allowed(node):
            what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise OptionError(f"where {expression!r} may not hold {what!r}; it takes {_HELP}")


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_field(node) or (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords and bool(node.args)
        )
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | int | float | bool | bytes | None) and not (
            isinstance(node.value, int) and abs(node.value) > _MAX_INTEGER
        )
    if isinstance(node, ast.Compare):
        return all(type(op) in _COMPARE for op in node.ops)
    if isinstance(node, ast.BinOp):
        return type(node.op) in _ARITHMETIC
    if isinstance(node, ast.UnaryOp):
        return type(node.op) in _UNARY
    passive = (ast.BoolOp, ast.Name, ast.Tuple, ast.List, ast.Set, ast.Subscript, ast.IfExp)
    parts = (ast.boolop, ast.cmpop, ast.operator, ast.unaryop, ast.expr_context)
    return isinstance(node, (*passive, *parts))


def _is_field(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "field"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def _named(node: ast.AST) -> str:
    assert isinstance(node, ast.Call)
    assert isinstance(node.args[0], ast.Constant)
    return str(node.args[0].value)


def _evaluate(node: ast.expr, values: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values.get(name)
        case ast.BoolOp(op=op, values=parts):
            return _either(isinstance(op, ast.And), parts, values)
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, values))
        case ast.BinOp(left=left, op=op, right=right):
            return _calculated(op, _evaluate(left, values), _evaluate(right, values))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(_evaluate(left, values), ops, others, values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _evaluate(body if _evaluate(test, values) else orelse, values)
        case ast.Subscript(value=value, slice=at):
            return _evaluate(value, values)[_evaluate(at, values)]
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return tuple(_evaluate(part, values) for part in parts)
        case ast.Call(func=ast.Name(id=name), args=args):
            if name == "field":
                return values.get(_named(node))
            return _FUNCTIONS[name](*(_evaluate(argument, values) for argument in args))
    raise AssertionError(f"{ast.dump(node)} passed the check")


def _either(is_and: bool, parts: list[ast.expr], values: dict[str, Any]) -> Any:
    result: Any = is_and
    for part in parts:
        result = _evaluate(part, values)
        if bool(result) != is_and:
            break
    return result


def _calculated(op: ast.operator, left: Any, right: Any) -> Any:
    # Text times a number, or laid out by %, could ask for all memory.
    if not isinstance(op, ast.Add) and not all(isinstance(side, int | float) for side in (left, right)):
        raise TypeError("only numbers are calculated with")
    return _ARITHMETIC[type(op)](left, right)


def _compared(left: Any, ops: list[ast.cmpop], others: list[ast.expr], values: dict[str, Any]) -> bool:
    for op, other in zip(ops, others, strict=True):
        right = _evaluate(other, values)
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True


_DECODE = Decode()


def _value(name: str, value: Any) -> Any:
    """A field's value as the expression sees it."""
    if isinstance(value, bytes | bytearray | memoryview):
        if field_kind(name) in ("text", "int", "json"):
            return _DECODE({name: value})[name]
        return bytes(value)
    return value
