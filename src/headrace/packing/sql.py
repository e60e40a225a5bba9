"""The rows of a SQL query as a source: DuckDB reads tables larger than memory, chooses, joins and sorts them.

The query sees one table, `source`, or the tables of a database file, and nothing else: no other file, no network and no
extension, and it can only select. Rows that bring a `__key__` may come in any order; others are numbered, so the query
has to say their order.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from headrace.dataset import Dataset
from headrace.dataset.opening import find_ordinary
from headrace.errors import OptionError, SourceError
from headrace.formats import ScanOptions
from headrace.packing.options import Options
from headrace.packing.samples import SamplesSource
from headrace.packing.scratch import ScratchFolder
from headrace.packing.source import Sample
from headrace.packing.sql_order import Row, in_order, order_of, with_sort_key
from headrace.storage import LocalFile, Place

_READERS = {
    "csv": "read_csv([{}])",
    "jsonl": "read_json([{}], format='newline_delimited')",
    "parquet": "read_parquet([{}])",
}
_TABLE = "source"
_MEMORY_LIMIT = "200MB"
"""What DuckDB may take for itself; what it needs beyond lies in files in the folder for temporary ones."""
_ROWS_AT_ONCE = 1024
_DATABASE_MAGIC, _MAGIC_OFFSET = b"DUCK", 8


class QuerySource(SamplesSource):
    """What a query selects from table files or from a database."""

    def __init__(self, place: Place, query: str, scratch: Path, options: Options) -> None:
        """What DuckDB's memory does not hold lies in a folder in `scratch`.

        Raises OptionError for a query that does not run, SourceError for files that are no tables."""
        if not place.is_local:
            raise OptionError(f"a query reads files on a local disk: got {place}; copy it there first")
        self._duckdb = _duckdb()
        self._scratch = ScratchFolder(scratch)
        try:
            self._connection = self._connect(place, options.workers)
        except BaseException:
            self._scratch.close()
            raise
        try:
            self._check(query)
            self._names = self._column_names(query)
            order = order_of(self._connection, query)
            if not order:
                self._check_order_is_idle(options)
            sorted_here = with_sort_key(self._connection, query, self._names) if order else None
        except BaseException:
            self._let_go()
            raise
        rows = self._fetched(sorted_here or query)
        self._sorted = in_order(rows, scratch) if sorted_here else rows
        super().__init__(self._samples_of(self._sorted), "the query", ordered=bool(order))
        self.fields = frozenset(self._names)

    def close(self) -> None:
        super().close()
        self._sorted.close()
        self._let_go()

    def _let_go(self) -> None:
        self._connection.close()
        self._scratch.close()

    def _connect(self, place: Place, threads: int) -> Any:
        paths, table = _tables(place)
        config = {
            "threads": threads,
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": str(self._scratch.path),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        try:
            if table is None:
                connection = self._duckdb.connect(paths[0], read_only=True, config=config)
                self._name_only_table(connection)
            else:
                connection = self._duckdb.connect(":memory:", config=config)
                connection.execute(f"CREATE TEMP VIEW {_TABLE} AS SELECT * FROM {table}")  # noqa: S608 - quoted
                connection.execute(f"SET allowed_paths = [{', '.join(map(_literal, paths))}]")
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        except self._duckdb.Error as err:
            raise SourceError(f"{place} cannot be read as a table: {_line(err)}") from err
        return connection

    def _name_only_table(self, connection: Any) -> None:
        names = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
        if len(names) == 1 and names[0] != _TABLE:
            quoted_name = '"' + names[0].replace('"', '""') + '"'
            connection.execute(f"CREATE TEMP VIEW {_TABLE} AS SELECT * FROM {quoted_name}")  # noqa: S608 - quoted

    def _check(self, query: str) -> None:
        """Raise OptionError unless it is a single SELECT."""
        try:
            kinds = [statement.type for statement in self._connection.extract_statements(query)]
        except self._duckdb.Error as err:
            raise OptionError(f"the query is not understood: {_line(err)}") from err
        if kinds != [self._duckdb.StatementType.SELECT]:
            raise OptionError(f"query must be one SELECT: got {query!r}")

    def _run(self, query: str) -> Any:
        try:
            return self._connection.execute(query)
        except self._duckdb.Error as err:
            raise OptionError(f"the query does not run: {self._reason(err)}") from err

    def _column_names(self, query: str) -> list[str]:
        names = [row[0] for row in self._run(f"DESCRIBE {query}").fetchall()]
        if len(set(names)) != len(names):
            raise OptionError(f"the query must name each column once: it gives {', '.join(names)}")
        return names

    def _check_order_is_idle(self, options: Options) -> None:
        if "__key__" not in self._names:
            raise OptionError(
                "the query must end with ORDER BY, by which rows are numbered, or give each a key of its own: "
                "SELECT id AS __key__, ..."
            )
        if not options.shuffle or options.selections:
            raise OptionError(
                "the query must end with ORDER BY: what is kept without shuffling, and what is drawn or compared, "
                "depends on the order of the rows"
            )

    def _fetched(self, query: str) -> Generator[Row, None, None]:
        try:
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                yield from rows
        except self._duckdb.Error as err:
            raise SourceError(f"the query failed: {self._reason(err)}") from err
        self._let_go()  # of its memory, too, before rows are sorted and shards written

    def _samples_of(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            sample = dict(zip(self._names, map(_plain, row), strict=True))
            if isinstance(sample.get("__key__"), int):
                sample["__key__"] = str(sample["__key__"])
            yield sample

    def _reason(self, err: Exception) -> str:
        if isinstance(err, self._duckdb.OutOfMemoryException):
            return (
                f"it needs more memory than the {_MEMORY_LIMIT} that DuckDB may take; order by columns that are "
                "selected, select less, or give each row a key (SELECT id AS __key__, ...) instead of an order"
            )
        return _line(err)


def _tables(place: Place) -> tuple[list[str], str | None]:
    """Paths of the files, and the SQL that reads them as one table; None for a database."""
    if place.path.is_file() and _is_database(place.path):
        return [str(place.path)], None
    found = find_ordinary(place.text, ScanOptions())
    if isinstance(found, Dataset):
        name, folder, files = found.manifest.format, place, list(found.manifest.shards.file)
    else:
        name, folder, files = found.format.name, found.folder, list(found.found.files)
    if name not in _READERS:
        raise SourceError(f"a query reads CSV, JSONL and Parquet files and DuckDB databases: {place} is {name}")
    paths = [str((folder / file).path.absolute()) for file in files]
    return paths, _READERS[name].format(", ".join(map(_literal, paths)))


def _is_database(path: Path) -> bool:
    with LocalFile(path) as file:
        return file.size > _MAGIC_OFFSET + 4 and bytes(file.read(_MAGIC_OFFSET, 4)) == _DATABASE_MAGIC


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plain(value: Any) -> Any:
    """A value of SQL as samples hold it: times and ids as text, exact decimals as floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID | timedelta):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _duckdb() -> Any:
    try:
        return importlib.import_module("duckdb")
    except ImportError as err:
        raise OptionError("a query needs DuckDB: pip install 'headrace[sql]'") from err


def _line(err: Exception) -> str:
    return " ".join(str(err).split())
