"""Rows in the order that a query asks for, sorted here.

DuckDB holds in memory much of what it sorts: rows of a kilobyte, a million of them, do not fit what it may take. So
where a query orders its rows by columns that it selects, it runs without its ORDER BY, each row gets a text of bytes
that sorts as those columns do, and rows are sorted by that with the help of the disk.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from headrace.packing.sorting import sorted_strings

Row = tuple[Any, ...]

_DIRECTIONS = {"ORDER_DEFAULT": "ASC", "ASCENDING": "ASC", "DESCENDING": "DESC"}
_NULLS = {"ORDER_DEFAULT": "NULLS LAST", "NULLS FIRST": "NULLS FIRST", "NULLS LAST": "NULLS LAST"}
_KEY_BYTES = struct.Struct("<I")


def order_of(connection: Any, query: str) -> list[dict[str, Any]]:
    """The terms of the query's own ORDER BY, as DuckDB parses them; none if it says no order."""
    return [term for modifier in _modifiers(_tree(connection, query)) for term in modifier.get("orders", [])]


def with_sort_key(connection: Any, query: str, names: Sequence[str]) -> str | None:
    """The query without its ORDER BY, and with a last column that sorts as that does.

    None where DuckDB has to sort: by what is not selected, in the order of a language, or only to take the first rows.
    """
    tree = _tree(connection, query)
    modifiers = _modifiers(tree)
    terms = [_sort_term(term, names) for modifier in modifiers for term in modifier.get("orders", [])]
    if len(modifiers) != 1 or not terms or None in terms or _has_collation(connection, query):
        return None
    tree["statements"][0]["node"]["modifiers"] = []
    plain = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchone()[0]
    return f"SELECT *, create_sort_key({', '.join(map(str, terms))}) FROM ({plain})"  # noqa: S608 - quoted


def in_order(rows: Iterable[Row], scratch: Path) -> Generator[Row, None, None]:
    """The rows by their last column, without it; equal ones in any order, but always the same."""
    for data in sorted_strings(map(_packed, rows), scratch):
        at = _KEY_BYTES.unpack(data[-_KEY_BYTES.size :])[0]
        yield pickle.loads(data[at : -_KEY_BYTES.size])  # noqa: S301 - from a nameless file of this process


def _packed(row: Row) -> bytes:
    # No sort key begins another one, so what follows them decides between equal ones only.
    *values, key = row
    return b"".join((key, pickle.dumps(tuple(values), protocol=5), _KEY_BYTES.pack(len(key))))


def _tree(connection: Any, query: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()[0])
    return tree


def _modifiers(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """What follows the query's body, as ORDER BY and LIMIT do; nothing of a statement that DuckDB cannot take apart."""
    return [] if tree.get("error") else list(tree["statements"][0]["node"].get("modifiers", []))


def _sort_term(term: dict[str, Any], names: Sequence[str]) -> str | None:
    """The arguments of `create_sort_key` for one term of an ORDER BY; None if it is not a selected column."""
    name = _selected(term["expression"], names)
    if name is None:
        return None
    direction, nulls = _DIRECTIONS[term["type"]], _NULLS[term["null_order"].replace("S_", "S ")]
    quoted_name = '"' + name.replace('"', '""') + '"'
    return f"{quoted_name}, '{direction} {nulls}'"


def _selected(expression: dict[str, Any], names: Sequence[str]) -> str | None:
    """The column that a term names, or gives the number of."""
    if expression["class"] == "CONSTANT":
        literal = expression.get("literal") or {}
        number = literal.get("text", "") if literal.get("kind") == "INTEGER" else ""
        return names[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(names) else None
    if expression["class"] != "COLUMN_REF" or len(expression["column_names"]) != 1:
        return None
    wanted = expression["column_names"][0].lower()  # names of columns are alike in any case
    found = [name for name in names if name.lower() == wanted]
    return found[0] if len(found) == 1 else None


def _has_collation(connection: Any, query: str) -> bool:
    """Whether some text may be sorted by the rules of a language."""
    if "collate" in query.lower():
        return True
    tables = "SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_views() WHERE NOT internal"
    return any("collate" in (sql or "").lower() for (sql,) in connection.execute(tables).fetchall())
