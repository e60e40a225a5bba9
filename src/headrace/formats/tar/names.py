"""Names of tar members, as WebDataset reads them: up to the first dot of the last part is the key, the rest the field.

`d/a.jpg` and `d/a.seg.png` are the fields `jpg` and `seg.png` of the sample `d/a`. Names without a dot in the last part
belong to no sample, nor do those that begin with `__name__`, nor fields of such a name: `__key__` is the key. A key is
a name and no more: it is never made a path, so that one like `../a` does no harm.
"""

from __future__ import annotations

import re

from headrace.errors import SourceError
from headrace.storage import quoted

_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
_PRIVATE_FIELD = re.compile(r"__.*__")


def split_name(name: str) -> tuple[str, str] | None:
    """Key and field of a member or a file, from its name with `/`; None for names that belong to no sample."""
    found = _MEMBER.match(name)
    if found is None or _META.match(name) or _PRIVATE_FIELD.fullmatch(found[2]):
        return None
    return found[1], found[2].lower()


def check_key(key: str) -> None:
    """Raises SourceError for a key that would not come back from members' names, or would unpack outside a folder."""
    last = key.rpartition("/")[2]
    if "." in last or not last or key.startswith("/") or ".." in key.split("/") or _META.match(key):
        raise SourceError(
            f"sample key {quoted(key)} cannot be the name of tar members: a key is a relative path without a dot in "
            "its last part, and does not begin with __name__; give another `__key__`"
        )


def check_field(key: str, name: str) -> None:
    """Raises SourceError for a field that would not come back; the key is the sample's."""
    if not name or "/" in name or name != name.lower() or not name.isprintable() or _PRIVATE_FIELD.fullmatch(name):
        raise SourceError(
            f"sample {quoted(key)}: {name!r} cannot be a field of a tar: a field is named like a file extension, in "
            "lower case and without a slash; rename it in the transform"
        )
