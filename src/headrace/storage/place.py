"""Where data lies: from what a person types to a place that can be read, joined, compared, printed and pickled.

A place holds no credentials. Those come from the environment and from the clouds' own chains when a store is opened; a
URL that carries a user's password is refused. The query of an http URL is often a signature, so it is kept for reading
but never shown and never pickled (see `queries`). A URL that would run a program (`pipe:`) or wrap another (`::`) is
always refused, and one of an unknown kind is not taken for a strange relative path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from headrace.errors import OptionError
from headrace.storage.queries import NO_QUERY, Query

OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "memory"})
"""Read through obstore; any other scheme is fsspec's."""

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(/*)")
_WEB = frozenset({"http", "https"})
_USER_IS_NO_SECRET = frozenset({"abfs", "abfss", "hdfs", "webhdfs", "sftp", "ssh"})
# These run what they are told, or read through another place that nobody has checked.
_NOT_PLACES = frozenset(
    "pipe shell dask jupyter jlab git local dir reference generic asyncwrapper async_wrapper cached blockcache "
    "filecache simplecache zip tar jar libarchive data".split()
)


@dataclass(frozen=True, repr=False)
class Place:
    """A file or a folder, here or in a store: made by `locate`, joined by `/`. Hashable; pickles without secrets.

    `str(place)` is what was typed, without an http URL's query; two places that differ by their query are not equal.
    """

    text: str
    scheme: str
    """`file`, `s3`, `gs`, `az`, `http`, `https`, `memory`, or a name that fsspec knows; `file` is the local disk."""
    query: Query = field(default=NO_QUERY)

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine (or mounted as one)."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """The path of a local place. Raises OptionError for any other."""
        if not self.is_local:
            raise OptionError(f"this must be a path on a local disk: got {self}; copy it to a disk and give that path")
        return _local(self.text)

    @property
    def name(self) -> str:
        """The last part, empty for the root of a store or of the disk."""
        if self.is_local:
            return self.path.name
        last = _parts(self)[-1:]
        return (unquote(last[0]) if self.scheme in _WEB else last[0]) if last else ""

    @property
    def key(self) -> str:
        """What follows the bucket, container or host: the name inside the store, `/` between its parts."""
        return "/".join(_parts(self))

    @property
    def root(self) -> str:
        """The URL of the store: scheme and bucket, container or host."""
        return self.text[: len(self.text) - len(self.key)].rstrip("/") if self.key else self.text

    @property
    def parent(self) -> Place:
        """The folder that it lies in; the root of a store is its own parent."""
        if self.is_local:
            return Place(str(self.path.parent), "file")
        parts = _parts(self)
        if not parts:
            return self
        return Place(self.text.removesuffix(parts[-1]).rstrip("/") if parts[1:] else self.root, self.scheme, self.query)

    def __truediv__(self, name: str) -> Place:
        """The place of a file below this folder. Raises OptionError for a name that would lead out of it."""
        parts = name.split("/")
        if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise OptionError(f"a name below {self} must be relative, without empty, . or .. parts: got {name!r}")
        if self.is_local:
            return Place(str(self.path / name), "file")
        below = quote(name) if self.scheme in _WEB else name
        slash = "" if self.text.endswith(("/", ":")) else "/"
        return Place(f"{self.text}{slash}{below}", self.scheme, self.query)

    def __str__(self) -> str:
        return quoted(self.text)

    def __repr__(self) -> str:
        return f"Place({self.text!r})"


def locate(url: str | os.PathLike[str] | Place) -> Place:
    """The place that a path, a `file:` URL or a store's URL names. `~` is the home folder.

    Raises OptionError for an empty name, a URL with a password in it, one that runs a program or wraps another, and a
    scheme that neither headrace nor fsspec knows.
    """
    if isinstance(url, Place):
        return url
    text = os.fspath(url)
    if not isinstance(text, str) or not text or "\0" in text:
        raise OptionError(f"a place must be a path or URL that is not empty: got {text!r}")
    found = _URL.match(text)
    scheme = found[1].lower() if found else "file"
    if found is None or scheme == "file":
        return _local_place(text, is_url=found is not None)
    is_url = len(found[2]) >= 2 or scheme == "memory"
    if scheme == "pipe" or (is_url and scheme in _NOT_PLACES) or ("::" in text and "://" in text):
        raise OptionError(f"a {scheme}: URL is not read: it could run a program or wrap another; give a file's own URL")
    if not is_url:
        return _perhaps_a_path(text, scheme)
    return _web_place(text, scheme) if scheme in _WEB else _store_place(text, scheme)


def local_path(url: str | os.PathLike[str] | Place) -> Path:
    """The path that a local URL, `file://` URL or path-like object names. `~` is the home folder.

    Raises OptionError for an empty name, an unknown `~user`, and places that are not on a local disk.
    """
    return locate(url).path


def quoted(name: str | os.PathLike[str] | Place) -> str:
    """A file's name as it may stand in a message: as it is, or escaped where it would break or garble the line."""
    text = name.text if isinstance(name, Place) else os.fspath(name)
    return text if text.isprintable() and text else repr(text)


def _perhaps_a_path(text: str, scheme: str) -> Place:
    # `a:b` is a fine name of a file. `s3:/bucket` is what Path("s3://bucket") leaves of a URL.
    if scheme in OBJECT_SCHEMES:
        raise OptionError(f"a {scheme} URL begins {scheme}://, given as a string, not as a Path: got {scheme}:...")
    return Place(text, "file")


def _store_place(text: str, scheme: str) -> Place:
    if scheme not in OBJECT_SCHEMES:
        _check_known(scheme)
    host, _, _ = text.partition("://")[2].partition("/")
    user, at, _ = host.rpartition("@")
    # A secret key may hold a slash, so what looks like a port may be its first half.
    port = re.search(r":(?!\d+$)", host) if scheme not in OBJECT_SCHEMES else ":" in host
    if ":" in user or port or (at and scheme not in _USER_IS_NO_SECRET):
        raise OptionError(_no_userinfo(scheme))
    place = Place(text.rstrip("/") if not text.endswith("://") else text, scheme)
    _check_parts(place)
    if scheme not in ("memory", "hf") and not host and scheme in OBJECT_SCHEMES:
        raise OptionError(f"a {scheme} URL must name its bucket or container: {scheme}://bucket/folder, got {place}")
    return place


def _web_place(text: str, scheme: str) -> Place:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise OptionError(f"this is no {scheme} URL: write {scheme}://host:port/path") from None
    if "@" in parts.netloc:
        raise OptionError(_no_userinfo(scheme))
    if not parts.hostname:
        raise OptionError(f"this is no {scheme} URL: write {scheme}://host:port/path")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._").rstrip("/")
    place = Place(f"{scheme}://{parts.netloc}{path}", scheme, Query.of(parts.query))
    _check_parts(place)
    return place


def _no_userinfo(scheme: str) -> str:
    return (
        f"a {scheme} URL must not hold a user or password: they would end up in logs; "
        "give credentials in the environment, as the store's own tools take them"
    )


def _check_parts(place: Place) -> None:
    if any(part in ("", ".", "..") for part in place.key.split("/")) and place.key:
        raise OptionError(f"a URL must have no empty, . or .. parts: got {place}")


@lru_cache
def _check_known(scheme: str) -> None:
    try:
        from fsspec.registry import known_implementations, registry
    except ImportError:
        raise OptionError(
            f"headrace itself knows no {scheme}: URLs; fsspec may: pip install 'headrace[fsspec]'"
        ) from None
    if scheme not in known_implementations and scheme not in registry:
        raise OptionError(
            f"neither headrace nor fsspec knows {scheme}: URLs; is it a path with a colon? Write ./{scheme}:"
        )


def _parts(place: Place) -> list[str]:
    _, _, rest = place.text.partition(":")
    if rest.startswith("//"):
        rest = rest[2:]
        if place.scheme != "memory":
            rest = rest.partition("/")[2]
    rest = rest.strip("/")
    return rest.split("/") if rest else []


def _local_place(text: str, *, is_url: bool) -> Place:
    if is_url:
        return Place(str(_file_url(text)), "file")
    _local(text)  # an unknown ~user is refused here, not at the first use
    return Place(text, "file")


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as err:
        raise OptionError(f"there is no home folder for the ~ in {text!r}: give the whole path") from err


def _file_url(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise OptionError(f"a file URL must be file:///absolute/path: got {text!r}")
    return Path(unquote(parts.path))
