"""Alarms sent to a URL, from a thread that nothing of the run waits for.

The URL of a webhook is a secret as a whole: whoever has it may post. So it is told by its scheme and host alone, and
goes to no other place: redirections are not followed.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import orjson

from headrace.errors import OptionError
from headrace.version import __version__

_log = logging.getLogger("headrace.alarms")

_TIMEOUT_SEC = 10.0
PAUSES_SEC = (1.0, 4.0, 16.0)
"""Between tries."""
LAST_WAIT_SEC = 5.0
"""What a run waits for the alarms of its last moments, at most."""


def check_webhook(url: str, plain_http: bool) -> None:
    """Raise OptionError, which does not repeat it, for a URL to which no alarm may be sent."""
    rule = "webhook must be an https:// URL, or http:// on this machine"
    parts = _parts(url)
    if parts is None:
        raise OptionError(f"{rule}: got something else (it is not shown, since it may hold a secret)")
    if parts.scheme == "http" and not plain_http and not _is_loopback(parts.hostname or ""):
        raise OptionError(
            f"{rule}: got {shown_webhook(url)}, where everybody on the way can read it; say plain_http=True "
            "if that is meant"
        )


def shown_webhook(url: str) -> str:
    """Scheme and host of a URL that `check_webhook` let pass."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


class Webhook:
    """Posts JSON objects to a URL, in order, each tried a few times; what cannot be sent is a line in the log."""

    def __init__(self, url: str, pauses_sec: Sequence[float] = PAUSES_SEC) -> None:
        """`url`: one that `check_webhook` lets pass. Starts a thread."""
        self._shown = shown_webhook(url)
        self._pauses_sec = pauses_sec
        self._request = _prepared(url)
        self._opener = _opener(urlsplit(url).hostname or "")
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="headrace-webhook", daemon=True)
        self._thread.start()

    def send(self, body: dict[str, Any]) -> None:
        """Have it sent; returns at once. For any thread."""
        self._waiting.put(orjson.dumps(body))

    def close(self, wait_sec: float = LAST_WAIT_SEC) -> None:
        """Wait for what was sent so far, up to so many seconds; nothing is tried again from here on."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(wait_sec)
        if self._thread.is_alive():
            _log.warning("the webhook %s did not answer in time: the last alarms may not have arrived", self._shown)

    def _send_all(self) -> None:
        while (body := self._waiting.get()) is not None:
            error = self._try(body)
            if error is not None:
                _log.warning("an alarm could not be sent to the webhook %s: %s", self._shown, error)

    def _try(self, body: bytes) -> str | None:
        """Send one; what it failed of, if it did."""
        pauses = iter(self._pauses_sec)
        while True:
            error, passing = self._post(body)
            pause = next(pauses, None)
            if error is None or not passing or pause is None or self._closing.wait(pause):
                return error

    def _post(self, body: bytes) -> tuple[str | None, bool]:
        """Send once: what went wrong, if anything did, and whether it may pass."""
        url, headers = self._request
        request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - its scheme was checked
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SEC):
                return None, False
        except urllib.error.HTTPError as err:
            err.close()
            return f"it answered {err.code}", err.code >= 500 or err.code == 429
        except (urllib.error.URLError, OSError, http.client.HTTPException) as err:
            reason = getattr(err, "reason", err)  # neither has the URL in it
            return f"{getattr(reason, 'strerror', None) or type(reason).__name__}", True


def body_of(run: str, host: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What is sent of an alarm: its fields, where it rang, and `text`, the line that chats show."""
    text = f"{run} on {host}, step {fields['step']}: {fields['message']}"
    return {"event": "alarm", "time": time.time(), "run": run, "host": host, **fields, "text": text}


def _parts(url: object) -> SplitResult | None:
    if not isinstance(url, str) or any(letter.isspace() or not letter.isprintable() for letter in url):
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")
    except ValueError:  # no port, no address between brackets, no name that could be looked up
        return None
    return parts if usable and url.isascii() else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _prepared(url: str) -> tuple[str, dict[str, str]]:
    """The URL without a user in it, and the headers of a request, which has the user instead."""
    headers = {"Content-Type": "application/json", "User-Agent": f"headrace/{__version__}"}
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=place, fragment="").geturl(), headers


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(host: str) -> urllib.request.OpenerDirector:
    proxies = [urllib.request.ProxyHandler({})] if _is_loopback(host) else []
    return urllib.request.build_opener(_NoRedirection, *proxies)
