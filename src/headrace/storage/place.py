"""Where data lies: from what a person types to a place that can be read, joined, compared, printed and pickled.

A place holds no credentials. Those come from the environment and from the clouds' own chains when a store is opened; a
URL that carries a user's password is refused. The query of an http URL is often a signature, so it is kept for reading
but never shown and never pickled (see `queries`). A URL that would run a program (`pipe:`) or wrap another (`::`) is
always refused, and one of an unknown kind is not taken for a strange relative path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from headrace.errors import OptionError
from headrace.storage.queries import NO_QUERY, Query

WEB_SCHEMES = frozenset({"http", "https"})
OBJECT_SCHEMES = frozenset({"s3", "gs", "az", "memory"}) | WEB_SCHEMES
"""Read through obstore; any other scheme is fsspec's."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")
_OTHER_NAMES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_MAY_NAME_A_USER = frozenset({"az", "hdfs", "webhdfs", "swebhdfs", "sftp", "ssh", "ftp", "smb"})
# These run what they are told, or read through another place that nobody has checked.
_PROGRAMS = {"pipe", "shell", "dask", "jupyter", "jlab", "git"}
_WRAPPERS = {"local", "dir", "reference", "generic", "asyncwrapper", "async_wrapper", "data", "zip", "tar", "jar"}
_CACHES = {"cached", "blockcache", "filecache", "simplecache", "libarchive"}
_NOT_PLACES = _PROGRAMS | _WRAPPERS | _CACHES


@dataclass(frozen=True, repr=False)
class Place:
    """A file or a folder, here or in a store: made by `locate`, joined by `/`. Hashable; pickles without secrets.

    `str(place)` is what was typed, without an http URL's query; two places that differ by their query are not equal.
    """

    text: str
    scheme: str
    """`file` (the local disk), `s3`, `gs`, `az`, `http`, `https`, `memory`, or a name that fsspec knows."""
    query: Query = NO_QUERY

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
        """The last part; empty for the root of a store or of the disk."""
        if self.is_local:
            return self.path.name
        last = self._parts[-1] if self._parts else ""
        return unquote(last) if self.scheme in WEB_SCHEMES else last

    @property
    def host(self) -> str:
        """The bucket, container or host that the URL names."""
        return "" if self.is_local or self.scheme == "memory" else self.text.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """What follows the bucket, container or host: the name inside the store, with `/` between its parts.

        Of a web URL it is as typed, with its percent signs; of one with an encoded slash, empty: `root` has it all.
        """
        return "" if self._is_opaque else "/".join(self._parts)

    @property
    def root(self) -> str:
        """The URL of the store: scheme and bucket, container or host."""
        return self.text[: len(self.text) - len(self.key)].rstrip("/") if self.key else self.text

    @property
    def parent(self) -> Place:
        """The folder that it lies in; the root of a store is its own parent."""
        if self.is_local:
            return Place(str(self.path.parent), "file")
        if not self._parts:
            return self
        return Place(self.text.removesuffix(self._parts[-1]).rstrip("/"), self.scheme, self.query)

    def __truediv__(self, name: str) -> Place:
        """The place of a file below this folder. Raises OptionError for a name that would lead out of it."""
        if not name or _is_no_name(name.split("/")):
            raise OptionError(f"a name below {self} must be relative, without empty, . or .. parts: got {name!r}")
        if self.is_local:
            return Place(str(self.path / name), "file")
        below = quote(name) if self.scheme in WEB_SCHEMES else name
        slash = "" if self.text.endswith(("/", ":")) else "/"
        return Place(f"{self.text}{slash}{below}", self.scheme, self.query)

    def __str__(self) -> str:
        return quoted(self.text)

    def __repr__(self) -> str:
        return f"Place({self.text!r})"

    @property
    def _parts(self) -> list[str]:
        rest = self.text.partition(":")[2]
        rest = rest.lstrip("/") if self.scheme == "memory" else rest[2:].partition("/")[2]
        return rest.split("/") if rest else []

    @property
    def _is_opaque(self) -> bool:
        # obstore would make a slash of it, which is another URL.
        return self.scheme in WEB_SCHEMES and "%2f" in self.text.lower()


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
    found = _SCHEME.match(text)
    if found is None or found[1].lower() == "file":
        return _local_place(text, is_url=found is not None)
    scheme = _OTHER_NAMES.get(found[1].lower(), found[1].lower())
    is_url = len(found[2]) >= 2 or scheme == "memory"
    if scheme == "pipe" or (is_url and scheme in _NOT_PLACES) or ("::" in text and "://" in text):
        raise OptionError(f"a {scheme}: URL is not read: it could run a program or wrap another; give a file's own URL")
    if is_url:
        return _web_place(text, scheme) if scheme in WEB_SCHEMES else _store_place(text, scheme)
    if scheme in OBJECT_SCHEMES and (found[2] or isinstance(url, str)):  # Path("s3://bucket") makes s3:/bucket of a URL
        raise OptionError(f"a {scheme} URL begins {scheme}://, given as a string, not as a Path: got {scheme}:...")
    return Place(text, "file")  # `a:b` is a fine name of a file


def local_path(url: str | os.PathLike[str] | Place) -> Path:
    """The path that a local URL, `file://` URL or path-like object names. `~` is the home folder.

    Raises OptionError for an empty name, an unknown `~user`, and places that are not on a local disk.
    """
    return locate(url).path


def quoted(name: str | os.PathLike[str] | Place) -> str:
    """A file's name as it may stand in a message: as it is, or escaped where it would break or garble the line."""
    text = name.text if isinstance(name, Place) else os.fspath(name)
    return text if text.isprintable() and text else repr(text)


def _store_place(text: str, scheme: str) -> Place:
    if scheme not in OBJECT_SCHEMES:
        _check_known(scheme)
    if "=" in text.partition("?")[2]:
        raise OptionError(f"a {scheme} URL has no query (?name=value): give credentials and versions in other ways")
    place = Place(text.rstrip("/") if not text.endswith("://") else text, scheme)
    user, at, _ = place.host.rpartition("@")
    # A secret key may hold a slash, so what looks like a port may be a secret's first half.
    has_port = ":" in place.host if scheme in OBJECT_SCHEMES else re.search(r":(?!\d+$)", place.host)
    if ":" in user or has_port or (at and scheme not in _MAY_NAME_A_USER):
        raise OptionError(_no_password(scheme))
    if scheme in OBJECT_SCHEMES and scheme != "memory" and not place.host:
        raise OptionError(f"a {scheme} URL must name its bucket or container: {scheme}://bucket/folder")
    return _checked(place)


def _web_place(text: str, scheme: str) -> Place:
    try:
        parts = urlsplit(text)
        is_whole = bool(parts.hostname) and (parts.port or 1) > 0 and not parts.fragment
    except ValueError:
        is_whole = False
        parts = urlsplit(scheme)
    if "@" in text.partition("?")[0].partition("://")[2].partition("/")[0]:
        raise OptionError(_no_password(scheme))
    if not is_whole:
        raise OptionError(f"this is no URL of a file or folder: write {scheme}://host:port/path, a # in it as %23")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~").rstrip("/")
    return _checked(Place(f"{scheme}://{parts.netloc}{path}", scheme, Query.of(parts.query)))


def _no_password(scheme: str) -> str:
    return (
        f"a {scheme} URL must not hold a user's key or password: it would end up in logs; "
        "give credentials in the environment, as the store's own tools take them"
    )


def _checked(place: Place) -> Place:
    parts = place._parts
    if _is_no_name([unquote(part) for part in parts] if place.scheme in WEB_SCHEMES else parts):
        raise OptionError(f"a URL must have no empty, . or .. parts and no control characters: got {place}")
    return place


def _is_no_name(parts: list[str]) -> bool:
    return any(part in ("", ".", "..") or min(part) < " " or "\x7f" in part for part in parts)


@lru_cache
def _check_known(scheme: str) -> None:
    try:
        from fsspec.registry import known_implementations, registry
    except ImportError:
        raise OptionError(
            f"headrace has no {scheme}: URLs of its own: pip install 'headrace[fsspec]' for more"
        ) from None
    if scheme not in known_implementations and scheme not in registry:
        raise OptionError(f"neither headrace nor fsspec knows {scheme}: URLs; a file of such a name is ./{scheme}:...")


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
