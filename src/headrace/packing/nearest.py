"""Where temporary files go: on the disk that is written to anyway, which has room, or where the system puts them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace.storage import Place, storage_refusals


def scratch_folder(target: Place) -> Path:
    """The folder for temporary files of a pack: the target's, as far as it exists, or TMPDIR for a store."""
    return nearest_folder(target.path) if target.is_local else Path(tempfile.gettempdir())


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the first one above it that is there."""
    with storage_refusals("find", folder):
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
    return folder
