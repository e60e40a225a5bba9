"""An opened dataset: length, schema, samples by number and by key, verification; and indexing of ordinary datasets."""

from headrace.dataset.dataset import Dataset
from headrace.dataset.indexing import index
from headrace.dataset.opening import is_dataset, open
from headrace.dataset.partial import PARTIAL_NAME
from headrace.dataset.reading import open_run

__all__ = ["PARTIAL_NAME", "Dataset", "index", "is_dataset", "open", "open_run"]
