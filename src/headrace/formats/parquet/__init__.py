"""Parquet: a row is a sample, a column a field, and a row group is read and unpacked as a whole."""
