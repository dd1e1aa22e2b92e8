"""An S3 endpoint of this machine (moto) that notes every request, and fails when it is told to."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

_NUMBERS = itertools.count()
_SIGNED = "AWS4-HMAC-SHA256 Credential=nobody/20261201/us-east-1/s3/aws4_request, Signature=x"
_TESTS = "the-tests-themselves"  # whose requests are not noted


@dataclass(frozen=True)
class Request:
    """One request. `key` has no bucket; `range` and `condition` are headers, or ""."""

    method: str
    key: str
    query: str
    range: str
    condition: str


Answer = tuple[str, bytes]
"""Status, as "503 Slow Down", and body."""


class Endpoint:
    """A bucket. Attributes: its name, and a `client` (boto3's) of it; `requests` since it was made.

    `users` are the ids of the keys that signed them, `most_at_once` how many were answered at one
    time. `before` is called with each request, and may
    change the bucket or give an answer of its own.
    """

    scheme = "s3"

    def __init__(self, url: str, client: Any, bucket: str) -> None:
        self.url, self.client, self.bucket = url, client, bucket
        self.requests: list[Request] = []
        self.users: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.counting = threading.Lock()
        self.before: Callable[[Request], Answer | None] | None = None

    def at(self, *parts: str) -> str:
        return "/".join((f"{self.scheme}://{self.bucket}", *parts))

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str = "") -> str:
        """All files of a folder, under keys that begin with its name; returns their address."""
        prefix = prefix or folder.name
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self.at(prefix)

    def get(self, key: str) -> bytes:
        found = self.client.get_object(Bucket=self.bucket, Key=key)
        data: bytes = found["Body"].read()
        return data

    def keys(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [one["Key"] for one in found.get("Contents", ())]

    def read(self, key: str) -> list[Request]:
        """The requests that read an object."""
        return [r for r in self.requests if r.method == "GET" and r.key == key]

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)


class _Server:
    """The server of all endpoints in this process."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            create_backend_app,
        )
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object) -> None:
                pass

        self.endpoints: dict[str, Endpoint] = {}
        self._writing = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        bucket = environ["PATH_INFO"].lstrip("/").partition("/")[0]
        endpoint = self.endpoints.get(bucket)
        if endpoint is None:
            return self._answered(environ, start)
        with endpoint.counting:
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
        try:
            return self._answered(environ, start)
        finally:
            with endpoint.counting:
                endpoint.at_once -= 1

    def _answered(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].encode("latin-1").decode()
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS"):  # Google's client
            environ["HTTP_AUTHORIZATION"] = _SIGNED
            where, mark, query = environ["REQUEST_URI"].partition("?")  # moto wants no %2D and %2F
            environ["REQUEST_URI"] = environ["RAW_URI"] = quote(unquote(where)) + mark + query
        bucket, _, key = path.lstrip("/").partition("/")
        endpoint = self.endpoints.get(bucket)
        signed = re.search("Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        user = signed[1] if signed else ""
        if endpoint is not None and user != _TESTS:
            condition = environ.get("HTTP_IF_MATCH") or environ.get("HTTP_IF_NONE_MATCH") or ""
            request = Request(
                environ["REQUEST_METHOD"], key, environ["QUERY_STRING"],
                environ.get("HTTP_RANGE", ""), condition,
            )  # fmt: skip
            endpoint.requests.append(request)
            endpoint.users.add(user)
            answer = endpoint.before(request) if endpoint.before else None
            if answer is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(answer[0], [("Content-Length", str(len(answer[1])))])
                return [answer[1]]
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):  # a condition and its write are one step
            with self._writing:
                if endpoint is not None and not _of_google(environ, endpoint, key):
                    start("412 Precondition Failed", [("Content-Length", "0")])
                    return []
                return list(self._moto(environ, start))
        found: Iterable[bytes] = self._moto(environ, start)
        return found


def _of_google(environ: dict[str, Any], endpoint: Endpoint, key: str) -> bool:
    """Google's own headers in S3's words; returns whether its condition, that there is no such
    object, is met."""
    source = environ.pop("HTTP_X_GOOG_COPY_SOURCE", "")
    if source:
        environ["HTTP_X_AMZ_COPY_SOURCE"] = source
    absent = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", "") == "0"
    return not absent or key not in endpoint.keys(key)


_server = functools.cache(_Server)


def environment_of_s3() -> dict[str, str]:
    """Variables by which AWS's tools find the endpoint of this process."""
    return {
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-very-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": _server().url,
    }


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An empty bucket, and an environment in which AWS's tools find it."""
    for name, value in environment_of_s3().items():
        monkeypatch.setenv(name, value)
    import boto3

    server = _server()
    client = boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id=_TESTS, aws_secret_access_key="x"
    )
    bucket = f"bucket-{next(_NUMBERS)}"
    client.create_bucket(Bucket=bucket)
    endpoint = server.endpoints[bucket] = Endpoint(server.url, client, bucket)
    yield endpoint
    del server.endpoints[bucket]


def slow(seconds: float, answer: Answer) -> Answer:
    """An answer that takes its time."""
    time.sleep(seconds)
    return answer
