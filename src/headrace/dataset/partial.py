"""The marker of a dataset that is not finished: while this file is there, the folder does not open."""

PARTIAL_NAME = "headrace.partial"
