"""The global random generators of a rank, as tensors: Python's, numpy's, torch's and the device's.

A step may draw from any of them (dropout, a user's loss), so a run that goes on must find them as they were. They are
kept as arrays of integers, never as pickled objects.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int, rank: int) -> None:
    """Seed all generators for one rank; ranks draw different numbers, and the same ones in every run."""
    words = np.random.SeedSequence([seed, rank]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of all generators that this rank may draw from."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert (version, kind) == (3, "MT19937")
    state = {
        "python": torch.tensor([*words, gauss is not None], dtype=torch.int64),
        "python_gauss": torch.tensor(gauss or 0.0, dtype=torch.float64),
        "numpy": torch.from_numpy(np.array([*keys, position, has_gauss], dtype=np.int64)),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put all generators back; a device's is left alone where the state was saved without one."""
    *words, has_gauss = state["python"].tolist()
    random.setstate((3, tuple(words), state["python_gauss"].item() if has_gauss else None))
    *keys, position, numpy_has_gauss = state["numpy"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, dtype=np.uint32), position, numpy_has_gauss, state["numpy_gauss"].item())
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn again afterwards."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
