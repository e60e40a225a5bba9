"""CSV and TSV tables: each record a sample, each column a field. Only read."""

from headrace.formats.csv.table import CsvIndex, find_csv, join_fields, scan_csv
from headrace.formats.format import Format

CSV = Format("csv", ".csv", find_csv, scan_csv, CsvIndex.from_file, join=join_fields)

__all__ = ["CSV", "CsvIndex", "find_csv", "join_fields", "scan_csv"]
