"""Where data lies: from what a person types to a path.

Only the local disk is read so far. A URL of any other kind is refused by name instead of being taken for a strange
relative path, and a URL that would run a program (`pipe:`) always is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.errors import OptionError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")


def local_path(url: str | os.PathLike[str]) -> Path:
    """The path that a local URL, `file://` URL or path-like object names. `~` is the home folder.

    Raises OptionError for an empty name, an unknown `~user`, and URLs that are not local.
    """
    text = os.fspath(url)
    if not isinstance(text, str) or not text or "\0" in text:
        raise OptionError(f"a place must be a path that is not empty: got {text!r}")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _expanded(text)
    if scheme[1].lower() == "file":
        return _file_url(text)
    if text[scheme.end() :].startswith("//") or scheme[1].lower() == "pipe":
        raise OptionError(f"only the local disk is read and written so far: got {text!r}; give a path")
    return Path(text)


def quoted(name: str | os.PathLike[str]) -> str:
    """A file's name as it may stand in a message: as it is, or escaped where it would break or garble the line."""
    text = os.fspath(name)
    return text if text.isprintable() and text else repr(text)


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as err:
        raise OptionError(f"there is no home folder for the ~ in {text!r}: give the whole path") from err


def _file_url(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise OptionError(f"a file URL must be file:///absolute/path: got {text!r}")
    return Path(unquote(parts.path))
