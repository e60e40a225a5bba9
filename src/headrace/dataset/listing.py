"""A folder's files, as formats look at them to recognise their own."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.dataset.partial import PARTIAL_NAME
from headrace.errors import DatasetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Listing
from headrace.formats.keys import KEYS_NAME
from headrace.storage import Place, list_folder, open_file, quoted

_HEAD_BYTES = 512
_OURS = (MANIFEST_NAME, PARTIAL_NAME, KEYS_NAME)
_MAX_READ_BYTES = 1 << 30  # of an index that another tool keeps for all its shards


class FolderListing(Listing):
    """Files of one folder; looked at no more than needed."""

    def __init__(self, folder: Place, names: Sequence[str] | None = None) -> None:
        """`names` are the files to look at, if not all that the folder holds. Raises StorageError."""
        self.folder = folder
        self._sizes: dict[str, int] = {}
        self._heads: dict[str, bytes] = {}
        self._files_below: dict[str, set[str]] = {}
        self.folders: list[str] = []
        """Names of folders directly below."""
        self.is_part = names is not None
        """Whether only some files of the folder are meant."""
        self.names = list(names) if names is not None else self._list()

    def head(self, name: str, num_bytes: int = _HEAD_BYTES) -> bytes:
        known = self._heads.get(name)
        if known is None or len(known) < min(num_bytes, self.size(name)):
            with open_file(self.folder / name, size=self._sizes.get(name)) as file:
                self._sizes[name] = file.size
                known = self._heads[name] = bytes(file.read(0, min(max(num_bytes, _HEAD_BYTES), file.size)))
        return known[:num_bytes]

    def read(self, name: str) -> bytes:
        if name not in self._sizes and not self._is_there(name):
            raise FileNotFoundError(name)
        with open_file(self.folder / name) as file:
            if file.size > _MAX_READ_BYTES:
                raise DatasetError(f"{file.name} has {file.size:,} bytes, more than an index of a dataset may have")
            return bytes(file.read(0, file.size))

    def size(self, name: str) -> int:
        if name not in self._sizes:
            if not self._is_there(name):
                raise FileNotFoundError(name)
            with open_file(self.folder / name) as file:
                self._sizes[name] = file.size
        return self._sizes[name]

    def shown(self) -> str:
        """Some of what is there, for a message."""
        names = sorted([*self.names, *self.folders])
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        return ", ".join(map(quoted, names[:3])) + more

    def _list(self) -> list[str]:
        entries = list_folder(self.folder)
        self.folders = [entry.name for entry in entries if entry.is_folder]
        files = {entry.name: entry.size for entry in entries if not entry.is_folder and _may_be_shard(entry.name)}
        kept = {name: size for name, size in files.items() if name not in _OURS and not _is_index(name, files)}
        self._sizes.update({name: size for name, size in kept.items() if size is not None})
        return sorted(kept)

    def _is_there(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        if folder not in self._files_below:
            place = self.folder / folder if folder else self.folder
            self._files_below[folder] = {entry.name for entry in list_folder(place) if not entry.is_folder}
        return last in self._files_below[folder]


def _may_be_shard(name: str) -> bool:
    # With a line break or the like it is none: whoever packs the files says what is wrong with it.
    return name[0] != "." and min(name) >= " " and "\x7f" not in name


def _is_index(name: str, files: dict[str, int]) -> bool:
    return name.endswith(INDEX_SUFFIX) and name.removesuffix(INDEX_SUFFIX) in files
