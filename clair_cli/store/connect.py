"""A connection to a store, with credentials from where the cloud's own tools look for them."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from clair_cli.errors import UsageError
from clair_cli.store.errors import MISSING

if TYPE_CHECKING:
    from clair_cli.store.address import RemotePath

CONNECT_SECONDS, REQUEST_SECONDS, UPLOAD_SECONDS = 10, 30, 300
"""How long one try of a request may take: until it is connected, of at most 4 MiB that are read,
and of at most 64 MiB that are written."""

MAX_RETRIES, RETRY_SECONDS = 4, 60
"""How often a request is tried again, and how long after the first try at the latest."""

_OWN_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE",
             "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
             "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


def check_available() -> None:
    """Raise if the library that speaks to stores is not installed; to be called before any work.

    Raises:
        UsageError: with the command that installs it.
    """
    if find_spec("obstore") is None:
        text, command = MISSING
        raise UsageError(text, hint=command)


def connect(path: RemotePath, *, to_write: bool = False) -> Any:
    """A store of obstore for the bucket or host of an address. No request is made yet.

    Raises:
        UsageError: the library is missing, or what the environment says of the store is no sense.
    """
    check_available()
    from obstore import store

    client: dict[str, Any] = {
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{UPLOAD_SECONDS if to_write else REQUEST_SECONDS}s",
    }
    retry = {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    given: dict[str, Any] = {"client_options": client, "retry_config": retry}
    try:
        if path.scheme == "s3":
            return store.S3Store(path.host, **given, **_of_s3(client))
        if path.scheme in ("gs", "az"):
            client["allow_http"] = _without_encryption(_ENDPOINTS[path.scheme])
            kind = store.GCSStore if path.scheme == "gs" else store.AzureStore
            return kind(path.host, **given)
        client["allow_http"] = path.scheme == "http"
        return store.HTTPStore(f"{path.scheme}://{path.host}", **given)
    except Exception:  # its words may hold what the environment says
        what = f"{path.scheme}://{path.host}"
        raise UsageError(
            f"no connection to {what} can be made of what the environment says",
            hint="see docs/storage.md for the variables that are read",
        ) from None


def _without_encryption(names: tuple[str, ...]) -> bool:
    """Whether the first variable that names another store says http://: who set it wants that."""
    named = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return named.startswith("http://")


def _of_s3(client: dict[str, Any]) -> dict[str, Any]:
    """What S3 needs besides the environment, which the library reads: the AWS tools' own files,
    where boto3 is installed."""
    client["allow_http"] = _without_encryption(_ENDPOINTS["s3"])
    found: dict[str, Any] = {}
    if not os.environ.get("AWS_COPY_IF_NOT_EXISTS"):
        found["copy_if_not_exists"] = "multipart"
    if any(os.environ.get(name) for name in _OWN_KEYS) or find_spec("boto3") is None:
        return found
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.session.Session()
    if session.get_credentials() is not None:
        found["credential_provider"] = Boto3CredentialProvider(session)
    if session.region_name and not os.environ.get("AWS_REGION"):
        found["region"] = session.region_name
    return found
