"""An opened dataset: length, schema, samples by number and by key, verification; and indexing of ordinary datasets."""

from headrace.dataset.dataset import Dataset
from headrace.dataset.indexing import index
from headrace.dataset.joined import Joined
from headrace.dataset.opening import is_dataset, open
from headrace.dataset.partial import PARTIAL_NAME
from headrace.dataset.reading import open_run
from headrace.dataset.scanning import in_order

__all__ = ["PARTIAL_NAME", "Dataset", "Joined", "in_order", "index", "is_dataset", "open", "open_run"]
