"""What is a secret in a run's settings, and the settings without it.

They are shown to people, written into pages that are sent around, and sent to other services, so none of them is a
secret then: texts under a name such as `api_key` are hidden, also in descriptions such as `Client(api_key='...')`, and
URLs lose their users and queries.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"
_NAME = re.compile(
    r"((^|[^a-z])(secrets?|pwd|credentials?|authorization|token|connection_string|sas|webhooks?([^a-z]?ur[il])?"
    r"|(api|access|private|secret|account|license)[^a-z]?key)|password|passwd|passphrase"
    r"|(api|access|auth|bearer|refresh)token)(?=$|\.)",
    re.IGNORECASE,
)
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_VALUE = re.compile(r"\b(hf_|ghp_|github_pat_|sk-|xox[abp]-|AKIA|ASIA|AIza|glpat-)[\w-]{12,}")
_HOOK = re.compile(r"(?<=://)((?:hooks\.slack|(?:\w+\.)?discord(?:app)?)\.com)/(?:services|api/webhooks)/[^\s\"']+")
_URL_USER = re.compile(r"(?<=://)[^/@\s\"']+@")
_URL_QUERY = re.compile(r"(?<=://)([^?\s\"']*)\?[^\s\"']*")
_NAMED = re.compile(
    r"""(?P<name>\b[A-Za-z_][\w-]*)(?P<equals>["']?\s*[=:]\s*)"""
    r"""(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<==)[^\s,;&()\]}'"]+)"""
)
_NO_SECRET = re.compile(r"[-+]?\d[\d_.e+-]*|None|null|True|False", re.IGNORECASE)


def is_secret(name: str, value: Any) -> bool:
    """Whether a value of this name is to be hidden. Numbers are none: a budget of tokens is no token."""
    if value is None or isinstance(value, int | float):
        return False
    return bool(_NAME.search(_WORD_BEGINS.sub("_", name)))


def without_secrets(text: str) -> str:
    """The text without users and queries of URLs, without what has a secret's name in it, and without what looks like a
    key of a well-known service."""
    text = _HOOK.sub(rf"\1/{HIDDEN}", _URL_USER.sub("", _URL_QUERY.sub(r"\1?...", text)))
    return _NAMED.sub(_hidden, _VALUE.sub(HIDDEN, text))


def cleaned(value: Any) -> Any:
    """A JSON value without the secrets in it."""
    if isinstance(value, dict):
        return {name: HIDDEN if is_secret(str(name), part) else cleaned(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def _hidden(found: re.Match[str]) -> str:
    name, equals, value = found["name"], found["equals"], found["value"]
    if not is_secret(name, value) or _NO_SECRET.fullmatch(value):
        return found[0]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{equals}{quote}{HIDDEN}{quote}"
