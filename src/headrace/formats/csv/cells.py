"""Comma-separated values, as RFC 4180 has them: where records end, and the cells of one.

A quote opens a cell only at its start; a quote inside is doubled; a quoted cell may hold delimiters and line ends. A
quote in the middle of a cell that has not begun with one is a character like others.
"""

from __future__ import annotations

import re
from math import isinf

import numpy as np

from headrace.formats.columns import I64

DELIMITERS = (",", ";", "\t", "|")
_QUOTE = ord('"')
# What Python itself would print for a whole number; 007 and +1 are text, and so come back as they are.
_INTS = re.compile(r"(?:(?:-?[1-9]\d{0,18}|0)?\0)*", re.ASCII)
_WIDE_INT = re.compile(r"-?\d{16,}", re.ASCII)  # any shorter one is exact as a float
_WIDE_PART = re.compile(r"\d{16}", re.ASCII)
_FLOAT_DIGITS = 300  # below 10^300 no whole number is too large for a float
_LONG_INT = re.compile(r"\d{19}", re.ASCII)
_LARGE_EXPONENT = re.compile(r"[eE]\+?\d{3}", re.ASCII)
_FLOATS = re.compile(r"(?:(?:-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|-?(?i:inf|nan))?\0)*", re.ASCII)

_WIDER = {frozenset(("int", "wide")): "wide", frozenset(("int", "float")): "float"}


class CellError(ValueError):
    """A record whose quotes are not right."""


def split_record(text: str, delimiter: str) -> list[str]:
    """The cells of one record, with or without its line end. Raises CellError."""
    text = text[:-1] if text.endswith("\n") else text
    text = text[:-1] if text.endswith("\r") else text
    if '"' not in text:
        return text.split(delimiter)
    cells, at = [], 0
    while at <= len(text):
        cell, at = _quoted(text, at + 1, delimiter) if text[at : at + 1] == '"' else _plain(text, at, delimiter)
        cells.append(cell)
    return cells


def record_ends(block: bytes, line_ends: I64, delimiter: str) -> tuple[I64, bool]:
    """The line ends at which records end too; and whether a quoted cell is open at the end of the block.

    The block begins with a record.
    """
    quotes = np.flatnonzero(np.frombuffer(block, np.uint8) == _QUOTE)
    if not len(quotes):
        return line_ends, False
    counts = np.diff(np.searchsorted(quotes, line_ends), prepend=0)
    is_end, mark, line = np.ones(len(line_ends), bool), delimiter.encode(), 0
    starts, ends = np.concatenate(([0], line_ends[:-1])), line_ends
    for suspect in np.flatnonzero(counts % 2).tolist():  # a line with all its quotes in pairs leaves no cell open
        if suspect < line:
            continue
        line, is_open = suspect, False
        while True:
            if counts[line]:
                is_open = _stays_open(block[starts[line] : ends[line]], mark, is_open)
            if not is_open:
                break
            is_end[line] = False
            line += 1
            if line == len(ends):
                return line_ends[is_end], True
        line += 1
    return line_ends[is_end], False


def kind_of(cells: list[str]) -> str:
    """What a column of cells is: `null` if all are empty, else `int` or `float` where all but the empty ones are, or
    `str`. Whole numbers are those of 64 bits; they are `wide` if floats would round some of them."""
    if not any(cells):
        return "null"
    text = "\0".join(cells) + "\0"
    if text.count("\0") != len(cells):
        return "str"
    if _INTS.fullmatch(text):
        is_long = _LONG_INT.search(text) and not all(-(2**63) <= int(cell) < 2**63 for cell in cells if cell)
        return "str" if is_long else "wide" if _has_wide(text, cells) else "int"
    if not _FLOATS.fullmatch(text):
        return "str"
    # What a float would round to another whole number, or to infinity, stays as it is written.
    is_large = _LARGE_EXPONENT.search(text) and any(isinf(float(cell)) for cell in cells if "e" in cell.lower())
    return "str" if is_large or _has_wide(text, cells) else "float"


def wider(kind: str, other: str) -> str:
    """The kind of a column whose parts are of these kinds."""
    if kind == other or other == "null":
        return kind
    if kind == "null":
        return other
    return _WIDER.get(frozenset((kind, other)), "str")


def _has_wide(text: str, cells: list[str]) -> bool:
    """Whether a float would round one of the whole numbers; `text` has all cells."""
    if not _WIDE_PART.search(text):
        return False
    whole = (cell for cell in cells if _WIDE_INT.fullmatch(cell))
    return any(len(cell) > _FLOAT_DIGITS or int(cell) != int(float(cell)) for cell in whole)


def _plain(text: str, at: int, delimiter: str) -> tuple[str, int]:
    """The cell that begins at `at`, and where the next one does."""
    end = text.find(delimiter, at)
    end = len(text) if end < 0 else end
    return text[at:end], end + 1


def _quoted(text: str, at: int, delimiter: str) -> tuple[str, int]:
    """The cell whose opening quote lies before `at`, and where the next one begins."""
    end = text.find('"', at)
    while end >= 0 and text[end + 1 : end + 2] == '"':
        end = text.find('"', end + 2)
    if end < 0:
        raise CellError("a quoted cell has no end")
    if text[end + 1 : end + 2] not in ("", delimiter):
        raise CellError(f"a quoted cell is followed by {text[end + 1 : end + 9]!r} instead of a delimiter")
    return text[at:end].replace('""', '"'), end + 2


def _stays_open(line: bytes, delimiter: bytes, is_open: bool) -> bool:
    """Whether a quoted cell is open at the end of the line, given whether one is at its start."""
    at = 0
    while True:
        if is_open:
            at = line.find(b'"', at)
            if at < 0:
                return True
            is_open = line[at + 1 : at + 2] == b'"'
            at += 2 if is_open else 1
        else:
            if at == 0 and line.startswith(b'"'):
                at = 1
            else:
                at = line.find(delimiter + b'"', at)
                if at < 0:
                    return False
                at += 2
            is_open = True
