"""What a foreign library's error says, in words that may be shown.

obstore's errors carry the request's URL (signed, perhaps) and the store's answer (which may repeat a key), so of these
only known parts are taken: the status, the store's error code, the kind of the fault. Of other libraries' errors the
first line is taken, without what could be a secret.
"""

from __future__ import annotations

import os
import re
from http import HTTPStatus

from headrace.storage.queries import known_queries
from headrace.storage.store import Denied, Failure, Missing, Refused, Short, Trouble

VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, "
    "AZURE_STORAGE_CONNECTION_STRING",
}
"""The environment variables that hold a store's credentials, for messages."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_NO_STORE = re.compile("Bucket|Container")
_KIND = re.compile(r"kind: (Timeout|Connect|Interrupted|Redirect|TooManyRedirects)\b")
_WAS_SENT = re.compile("HTTP|Http|Error performing|kind: (Timeout|Connect)")
"""In the text of what went wrong with a request. Without it none was sent: what it would have been made of is wrong."""
_GENERIC = re.compile(r"^Generic \w+ error: ")
_QUOTED = re.compile(r'"[^"]*"')
_SYSTEM = re.compile(r'(?:message|error): "([^"?&=]{1,120})"')
_METADATA = ("/latest/api/token", "/latest/meta-data", "metadata.google.internal", "/metadata/identity", "169.254.")
_MAY_PASS = frozenset({408, 409, 423, 425, 429})
_NEVER_PASSES = frozenset({501, 505})
_CLOCK_CODE = "<Code>RequestTimeTooSkewed</Code>"
_NO_SUCH_HOST = "Name or service not known"
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASS|PWD|SAS|SIGNATURE|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)
_SHORTEST_SECRET = 4
_URL_QUERY = re.compile(r"\?[^\s'\"<>]+")
_URL_USER = re.compile(r"://[^/\s@'\"]+@")

_OWN_FAULTS = (TypeError, AttributeError, NotImplementedError, ImportError, NameError, ValueError)
_FINAL_TYPES = frozenset({"error_perm", "AuthenticationException", "BadHostKeyException"})  # of ftplib and paramiko
_FINAL_WORDS = {
    "Range request not supported": "the server has no range requests: it answers with the whole file; copy the data to "
    "a disk, or to a store or server that has them",
    "Content-Length Header missing": "the server does not say how long the file is (no Content-Length)",
    "Header missing": "the answer lacks a header that such a store sends: is it one, and of this kind?",
    "BadScheme": "an http: endpoint is meant, but https: was asked for; write the endpoint with its scheme",
    "Received redirect": "the store redirects elsewhere: set AWS_REGION to the bucket's region",
    "Account must be specified": "which account? Set AZURE_STORAGE_ACCOUNT_NAME, or write "
    "abfss://container@account.dfs.core.windows.net/folder",
}


def object_failure(err: Exception, scheme: str, *, has_worked: bool) -> Failure:
    """What an exception of obstore means. A name that is not known is final, unless the store was reached before."""
    if isinstance(err, NotImplementedError):
        return Refused("this kind of store cannot do that")
    text = str(err)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    words = _words(text, status)
    if any(part in text for part in _METADATA):
        return _no_credentials(scheme, has_worked=has_worked)
    if status == 403 and _CLOCK_CODE in text:
        return Trouble(f"{words}: this machine's clock is wrong, which a time server sets right")
    if "No CA certificates" in text:
        return _no_certificates(has_worked=has_worked)
    if status in (401, 403) or type(err).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return Denied(denied(scheme, words))
    if isinstance(err, FileNotFoundError) or status == 404:  # WebDAV says 405 of a folder
        return Missing(words if status not in (0, 404) or _NO_STORE.search(words) else "")
    if status == 416 or "Wanted range starting" in text or "Requested " in text:
        return Short("it ends before the range that was to be read")
    for part, meaning in _FINAL_WORDS.items():
        if part in text:
            return Refused(meaning)
    if "Could not parse path" in text or (status and not _may_pass(status)) or "TooManyRedirects" in text:
        return Refused(words)
    if not _WAS_SENT.search(text) and not has_worked:
        return _unsendable(text, scheme)
    return Refused(words) if _NO_SUCH_HOST in text and not has_worked else Trouble(words)


def foreign_failure(err: Exception, scheme: str) -> Failure:
    """What an exception of a file system behind fsspec means."""
    words = scrubbed(f"{type(err).__name__}: {err}")
    status = getattr(err, "status", None) or getattr(err, "code", None)
    if isinstance(err, Failure):
        return err
    if isinstance(err, FileNotFoundError):
        return Missing("")
    if isinstance(err, PermissionError) or status in (401, 403, "401", "403"):
        return Denied(denied(scheme, words))
    return Refused(words) if isinstance(err, _OWN_FAULTS) or type(err).__name__ in _FINAL_TYPES else Trouble(words)


def denied(scheme: str, words: str) -> str:
    """The message for credentials that are missing or not enough."""
    if scheme in ("http", "https"):
        return f"{words}; the server wants a signature in the URL's query, or the one given has run out"
    names = VARIABLES.get(scheme, f"FSSPEC_{scheme.upper()}_... (see fsspec's page on configuration)")
    return f"{words}; check the credentials in the environment: {names}"


def scrubbed(text: str) -> str:
    """The first line, without queries and users of URLs and without the values of variables that hold secrets."""
    line = (text.splitlines() or [""])[0]
    for secret in (*_secrets(), *known_queries()):
        line = line.replace(secret, "...")
    return _URL_USER.sub("://", _URL_QUERY.sub("?...", line))[:300]


def _secrets() -> list[str]:
    values = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    # The longest first, since one may be part of another. A path to a file of credentials is no secret.
    found = {value for value in values if len(value) >= _SHORTEST_SECRET and not value.startswith("/")}
    return sorted(found, key=len, reverse=True)


def _may_pass(status: int) -> bool:
    return status in _MAY_PASS or (status >= 500 and status not in _NEVER_PASSES)


def _words(text: str, status: int) -> str:
    code = f", {found[1]}" if (found := _CODE.search(text)) else ""
    if status:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        return f"{status} {phrase}".strip() + code
    system = f": {found[1]}" if (found := _SYSTEM.search(text)) else ""
    kind = found[1] if (found := _KIND.search(text)) else ""
    known = {"Timeout": "no answer within the time limit", "Connect": "no connection", "Interrupted": "connection lost"}
    return known.get(kind) or scrubbed(text) if not system else known.get(kind, "fault") + system


def _unsendable(text: str, scheme: str) -> Failure:
    """A key that is no key, a file of credentials that is missing or broken; of its content nothing is repeated."""
    words = _QUOTED.sub('"..."', scrubbed(_GENERIC.sub("", text)))
    return Denied(denied(scheme, words)) if scheme in VARIABLES else Refused(words)


def _no_certificates(*, has_worked: bool) -> Failure:
    """They lie in files, so none can be read either where a process may open no more files; that passes."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as err:
        return Trouble(f"no file can be opened: {err.strerror}")
    words = "no CA certificates can be read: install the system's (ca-certificates), or set SSL_CERT_FILE"
    return Trouble(words) if has_worked else Refused(words)


def _no_credentials(scheme: str, *, has_worked: bool) -> Failure:
    words = "no credentials in the environment, and this machine's metadata service gives none"
    return Trouble(words) if has_worked else Denied(denied(scheme, words))
