"""What every kind of store can do: the few verbs that the rest is made of.

A store's methods try once. What went wrong is told apart here, so that retrying, deadlines and messages are the same for
all stores: `Missing` and `Refused` are final, `Trouble` may pass.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """What a listing says of one file or folder."""

    name: str
    """Its name in the folder; in a `walk`, its path below the folder."""
    size: int
    """Bytes; 0 for a folder."""
    is_folder: bool
