"""Azure's protocol on this machine: a container that notes every request. Where Microsoft's own
emulator (`azurite-blob`, by npm) is installed it answers; and a stand-in of the few calls that
reading and writing need does everywhere."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import itertools
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from tests.store.s3 import Answer, Request

ACCOUNT = "devstoreaccount1"
# Azurite's, which everybody knows
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
EMULATOR = shutil.which("azurite-blob")
CONTAINER = "container"
_DATE = "Tue, 01 Dec 2026 09:00:00 GMT"
_NUMBERS = itertools.count(1)


class Container:
    """A container, and the server that it is behind; see `s3.Endpoint`.

    Args:
        upstream: the port of an emulator that answers; None for the stand-in.
    """

    scheme = "az"

    def __init__(self, upstream: int | None) -> None:
        self.requests: list[Request] = []
        self.before: Callable[[Request], Answer | None] | None = None
        self.blobs: dict[str, tuple[bytes, str]] = {}
        self.blocks: dict[tuple[str, str], bytes] = {}
        self.upstream, self.writing = upstream, threading.Lock()

    def at(self, *parts: str) -> str:
        return "/".join((f"az://{CONTAINER}", *parts))

    def put(self, key: str, data: bytes) -> None:
        if self.upstream is None:
            self.blobs[key] = (data, f'"0x{next(_NUMBERS):X}"')
        else:
            import obstore

            obstore.put(self._direct(), key, data)

    def upload(self, folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self.at(folder.name)

    def get(self, key: str) -> bytes:
        if self.upstream is None:
            return self.blobs[key][0]
        import obstore

        return bytes(obstore.get(self._direct(), key).bytes())

    def keys(self, prefix: str = "") -> list[str]:
        if self.upstream is None:
            return sorted(key for key in self.blobs if key.startswith(prefix))
        import obstore

        found = obstore.list(self._direct()).collect()
        return sorted(one["path"] for one in found if one["path"].startswith(prefix))

    def read(self, key: str) -> list[Request]:
        """The requests that read an object."""
        return [r for r in self.requests if r.method == "GET" and r.key == key]

    def _direct(self) -> Any:
        """The emulator, past the server that notes requests."""
        from obstore.store import AzureStore

        return AzureStore(
            CONTAINER, account_name=ACCOUNT, account_key=KEY, client_options={"allow_http": True},
            endpoint=f"http://127.0.0.1:{self.upstream}/{ACCOUNT}",
        )  # fmt: skip

    def answer(
        self, method: str, key: str, query: dict[str, str], headers: Any, body: bytes
    ) -> Any:
        """The stand-in: (status, headers, body)."""
        blob = self.blobs.get(key)
        if query.get("comp") == "list":
            return 200, {"Content-Type": "application/xml"}, self._listed(query)
        if method in ("GET", "HEAD"):
            return self._read(blob, headers)
        if method == "DELETE":
            return (404 if self.blobs.pop(key, None) is None else 202), {}, b""
        if query.get("comp") == "batch":
            return self._removed(body.decode())
        if query.get("comp") == "block":
            self.blocks[key, query["blockid"]] = body
            return 201, {}, b""
        if headers.get("If-None-Match") == "*" and blob is not None:
            return 409, {}, b"<Error><Code>BlobAlreadyExists</Code></Error>"
        if query.get("comp") == "blocklist":
            ids = re.findall(r"<(?:Latest|Uncommitted)>([^<]*)<", body.decode())
            body = b"".join(self.blocks.pop((key, one)) for one in ids)
        elif source := headers.get("x-ms-copy-source"):
            body = self.blobs[unquote(urlsplit(source).path).split("/", 3)[3]][0]
        self.put(key, body)
        return 201, {"ETag": self.blobs[key][1], "Last-Modified": _DATE}, b""

    def _read(self, blob: tuple[bytes, str] | None, headers: Any) -> Any:
        if blob is None:
            return 404, {}, b""
        data, tag = blob
        if headers.get("If-Match") not in (None, tag):
            return 412, {}, b"<Error><Code>ConditionNotMet</Code></Error>"
        found = {"ETag": tag, "Last-Modified": _DATE}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range") or "")
        if wanted is None:
            return 200, found, data
        begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        return 206, {**found, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[
            begin:end
        ]  # fmt: skip

    def _removed(self, body: str) -> Any:
        """Several blobs are removed by one request: an answer to each is a part of the answer."""
        parts = ""
        for one in re.finditer(r"Content-ID: (\d+).*?DELETE (\S+) HTTP", body, re.DOTALL):
            key = unquote(one[2]).split("/", 3)[3]
            status = "404 Not Found" if self.blobs.pop(key, None) is None else "202 Accepted"
            parts += (
                f"--all\r\nContent-Type: application/http\r\nContent-ID: {one[1]}\r\n\r\n"
                f"HTTP/1.1 {status}\r\nx-ms-request-id: 1\r\n\r\n\r\n"
            )
        return 202, {"Content-Type": "multipart/mixed; boundary=all"}, f"{parts}--all--".encode()

    def _listed(self, query: dict[str, str]) -> bytes:
        prefix, blobs = query.get("prefix", ""), ""
        for key in self.keys(prefix):
            data, tag = self.blobs[key]
            bare = tag.strip('"')  # as Azure's listing has it
            blobs += (
                f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{_DATE}"
                f"</Last-Modified><Etag>{bare}</Etag><Content-Length>{len(data)}</Content-Length>"
                "<Content-Type>x/y</Content-Type></Properties></Blob>"
            )
        return (
            '<?xml version="1.0" encoding="utf-8"?><EnumerationResults>'
            f"<Prefix>{escape(prefix)}</Prefix><Blobs>{blobs}</Blobs><NextMarker />"
            "</EnumerationResults>"
        ).encode()


def _handler(container: Container) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            _, _, name, *rest = unquote(path).split("/")
            key = "/".join(rest)
            wanted = self.headers.get("Range") or self.headers.get("x-ms-range") or ""
            condition = self.headers.get("If-Match") or self.headers.get("If-None-Match") or ""
            request = Request(self.command, key, query, wanted, condition)
            container.requests.append(request)
            own = container.before(request) if container.before else None
            if own is not None:
                found = int(own[0].split()[0]), {}, own[1]
            elif container.upstream is not None:
                found = self._forwarded(container.upstream, body)
            elif name != CONTAINER:
                found = 404, {}, b"<Error><Code>ContainerNotFound</Code></Error>"
            elif f"SharedKey {ACCOUNT}:" not in self.headers.get("Authorization", ""):
                found = 403, {}, b""
            else:
                asked = {n: v[0] for n, v in parse_qs(query).items()}
                with container.writing:  # a condition and its write are one step
                    found = container.answer(self.command, key, asked, self.headers, body)
            self.send_response(found[0])
            size = found[1].pop("Content-Length", str(len(found[2])))
            for header, value in {**found[1], "Content-Length": size}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found[2])

        def _forwarded(self, port: int, body: bytes) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            left_out = ("transfer-encoding", "connection", "keep-alive", "date", "server")
            headers = {n: v for n, v in answer.getheaders() if n.lower() not in left_out}
            headers = {n: v for n, v in headers.items() if n.lower() != "content-length"}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length") or "0"
            connection.close()
            return answer.status, headers, data

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    return Handler


@contextlib.contextmanager
def container_of(monkeypatch: pytest.MonkeyPatch, *, emulator: bool) -> Iterator[Container]:
    """An empty container, and an environment in which Azure's variables name it."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(_emulator()) if emulator else None
        container = Container(upstream)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(container))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        for name, value in {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{server.server_port}/{ACCOUNT}",
        }.items():
            monkeypatch.setenv(name, value)
        yield container


@contextlib.contextmanager
def _emulator() -> Iterator[int]:
    """The port of Azurite, with the container."""
    assert EMULATOR is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [EMULATOR, "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        _make_container(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _make_container(port: int) -> None:
    import base64
    import hmac
    from email.utils import formatdate

    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "\n".join(f"{name}:{value}" for name, value in headers.items())
    text = "PUT" + 12 * "\n" + f"{named}\n{resource}"
    signature = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        connection.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", b"", headers)
        assert connection.getresponse().read() == b""
