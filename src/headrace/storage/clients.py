"""Clients of the object stores, made from the environment as the clouds' own tools read it.

obstore reads the variables of each cloud itself. Added here is what it does not do: http endpoints, profile files
(through boto3), Azure's connection string, and that a machine's metadata address is never asked for credentials when an
endpoint of one's own is set: an emulator or a store in the cellar needs none from there, and asking could take minutes.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

from headrace.errors import StorageError
from headrace.storage.causes import scrubbed
from headrace.storage.place import Place, quoted

Client = Any
"""Any of obstore's stores."""

_STALL_SHARE, _SHORTEST_STALL_SEC, _CONNECT_SEC = 0.25, 5.0, 5.0
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.IGNORECASE)
_SET = ("1", "true", "yes", "on")
_HAS_CREDENTIALS = re.compile(
    r"^\s*(aws_access_key_id|role_arn|credential_process|sso_\w+|login_session)\s*=", re.MULTILINE
)
_AZ_CREDENTIALS = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USE_AZURE_CLI",
    "AZURE_SKIP_SIGNATURE",
    "AZURE_STORAGE_USE_EMULATOR",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)


class Use(Enum):
    """What a client is for."""

    READ = "read"
    WRITE = "write"
    UPLOAD = "upload"
    """In parts, several at once; obstore itself tries each again."""


def maker(place: Place) -> Callable[[float, Use], Client]:
    """A function of the seconds that a request may take, and of what for, that makes a client for the place."""
    make: dict[str, Callable[[Place], Callable[..., Client]]] = {
        "s3": _s3,
        "gs": _gs,
        "az": _az,
        "http": _web,
        "https": _web,
        "memory": _memory,
    }
    build = make[place.scheme](place)
    return lambda limit, use: build(**_behaviour(limit, use))


def _behaviour(limit: float, use: Use) -> dict[str, Any]:
    seconds = timedelta(seconds=limit)
    # While a request's body is being sent nothing is read, and that is no stall.
    stall = min(limit, max(_SHORTEST_STALL_SEC, limit * _STALL_SHARE)) if use is Use.READ else limit
    backoff = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5)}
    client = {
        "timeout": seconds,
        "read_timeout": timedelta(seconds=stall),
        "connect_timeout": timedelta(seconds=min(limit, _CONNECT_SEC)),
    }
    retry = {"max_retries": 10 if use is Use.UPLOAD else 0, "retry_timeout": seconds, "backoff": backoff}
    return {"client_options": client, "retry_config": retry}


def _s3(place: Place) -> Callable[..., Client]:
    endpoint = _checked_endpoint(_first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    _check_printable("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    config: dict[str, Any] = {"disable_bulk_delete": True}  # not every S3-compatible store has it
    config |= _s3_credentials(is_own=bool(endpoint) or _is_set("AWS_EC2_METADATA_DISABLED"))
    if not _first("AWS_REGION", "AWS_DEFAULT_REGION"):
        provider = config.get("credential_provider")
        config["region"] = (provider.config if provider else {}).get("region", "us-east-1")
    return _allowing_http(functools.partial(S3Store, place.host, **config), endpoint)


def _s3_credentials(*, is_own: bool) -> dict[str, Any]:
    in_environment = (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    )
    if _first(*in_environment):
        return {}
    profiles = _profiles()
    if is_own and not profiles:
        return {"skip_signature": True}
    if find_spec("boto3"):
        provider = _from_boto3(use_metadata=not is_own)
        return {"credential_provider": provider} if provider else {"skip_signature": True}
    if profiles:
        raise StorageError(f"the credentials in {profiles} are read with boto3: pip install boto3")
    return {}


def _profiles() -> str:
    """What says that there are profiles with credentials: a variable or a file; empty if nothing does."""
    if _first("AWS_PROFILE"):
        return "the profile that AWS_PROFILE names"
    home = Path.home() / ".aws"
    files = (
        _first("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials",
        _first("AWS_CONFIG_FILE") or home / "config",
    )
    for path in map(Path, files):
        with suppress(OSError, UnicodeDecodeError):
            if _HAS_CREDENTIALS.search(path.read_text("utf-8")):
                return quoted(path)
    return ""


def _from_boto3(*, use_metadata: bool) -> Any:
    import boto3
    import botocore.session
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = botocore.session.get_session()
        if not use_metadata:
            session.get_component("credential_provider").remove("iam-role")
        return Boto3CredentialProvider(boto3.Session(botocore_session=session))
    except ValueError:  # there are none
        return None
    except botocore.exceptions.BotoCoreError as err:
        words = scrubbed(str(err))
    raise StorageError(f"boto3 gives no credentials: {words}")


def _gs(place: Place) -> Callable[..., Client]:
    home = Path(_first("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    names = (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    )
    has_credentials = bool(_first(*names)) or (home / "application_default_credentials.json").exists()
    config: dict[str, Any] = {"skip_signature": True} if _is_set("NO_GCE_CHECK") and not has_credentials else {}
    return functools.partial(GCSStore, place.host, **config)


def _az(place: Place) -> Callable[..., Client]:
    container, _, host = place.host.partition("@")
    config = _az_connection()
    if host:
        config["account_name"] = host.partition(".")[0]
    endpoint = config.get("endpoint") or _first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    if _is_set("AZURE_STORAGE_USE_EMULATOR"):
        endpoint = endpoint or _first("AZURITE_BLOB_STORAGE_URL") or "http://127.0.0.1:10000"
    _checked_endpoint(endpoint)
    signs = {"account_key", "sas_key", "use_emulator"} & config.keys() or _first(*_AZ_CREDENTIALS)
    if endpoint and not signs:
        config["skip_signature"] = True
    return _allowing_http(functools.partial(AzureStore, container, **config), endpoint)


def _az_connection() -> dict[str, Any]:
    text = _first("AZURE_STORAGE_CONNECTION_STRING")
    if not text:
        return {}
    given = dict(part.partition("=")[::2] for part in text.split(";") if "=" in part)
    if _truth(given.get("UseDevelopmentStorage", "")):
        return {"use_emulator": True}
    names = {"account_name": "AccountName", "account_key": "AccountKey", "endpoint": "BlobEndpoint"}
    config = {key: given[name] for key, name in names.items() if given.get(name)}
    if given.get("SharedAccessSignature"):
        config["sas_key"] = given["SharedAccessSignature"].lstrip("?")
    if not config:
        raise StorageError(
            "AZURE_STORAGE_CONNECTION_STRING must be name=value;name=value with AccountName or BlobEndpoint"
        )
    return config


def _web(place: Place) -> Callable[..., Client]:
    query = place.query.reveal()
    url = f"{place.root}?{query}" if query else place.root
    return _allowing_http(functools.partial(HTTPStore.from_url, url), url)


_MEMORY = MemoryStore()


def _memory(_: Place) -> Callable[..., Client]:
    return lambda **_: _MEMORY


def _allowing_http(make: Callable[..., Client], endpoint: str) -> Callable[..., Client]:
    """http is allowed only where the person has asked for it by the endpoint's own scheme."""
    allow_http = urlsplit(endpoint).scheme == "http"

    def build(client_options: dict[str, Any], **behaviour: Any) -> Client:
        return make(client_options=client_options | {"allow_http": allow_http}, **behaviour)

    return build


def _checked_endpoint(endpoint: str) -> str:
    """The endpoint, if there is one. Raises StorageError for one that is no URL, on which obstore panics."""
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise StorageError(
            f"a store's endpoint must be a URL with its scheme, such as http://host:9000: got {scrubbed(endpoint)!r}"
        )
    return endpoint


def _check_printable(*names: str) -> None:
    """Raises StorageError for a key with a line break, as files of secrets end in, on which obstore panics."""
    for name in names:
        if not os.environ.get(name, "").isprintable():
            raise StorageError(f"{name} holds a line break or another control character: set it without")


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _is_set(name: str) -> bool:
    return _truth(os.environ.get(name, ""))


def _truth(text: str) -> bool:
    return text.strip().lower() in _SET
