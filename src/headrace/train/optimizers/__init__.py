"""Optimizers as descriptions: frozen, printable, and called with the parameters to get the torch optimizer.

The Trainer takes any function of the parameters that returns a torch optimizer; these are the common ones, which also
print well in the record of a run. All take parameters that lie whole on every rank, and sharded ones (DTensor). Norms
and biases, known by having one dimension, are not decayed: a smaller norm does not mean a simpler model there.

What each keeps, in bytes a parameter of fp32 (a matrix of n x m):

| | bytes |
|---|---|
| SGD | 0; with momentum 4 |
| AdamW, LAMB | 8 |
| Adafactor | 4/n + 4/m, of vectors 4 |
| Muon | 4, of what AdamW trains beside it 8 |
"""

from headrace.train.optimizers.adafactor import Adafactor, adafactor
from headrace.train.optimizers.groups import ByRole, OptimizerFactory, built, state_bytes_per_value, trained
from headrace.train.optimizers.lamb import LAMB, lamb
from headrace.train.optimizers.muon import Muon, muon
from headrace.train.optimizers.stock import SGD, AdamW, adamw, sgd

__all__ = [
    "LAMB",
    "SGD",
    "Adafactor",
    "AdamW",
    "ByRole",
    "Muon",
    "OptimizerFactory",
    "adafactor",
    "adamw",
    "built",
    "lamb",
    "muon",
    "sgd",
    "state_bytes_per_value",
    "trained",
]
