"""Web servers of this machine: one that notes requests and may lack what we need, and nginx."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path


@dataclass
class Site:
    """Files behind a server. `answers` to GET are path, range and status; `etag` makes a file's
    tag, or "" for none; `before` is called with the method and the path of each request."""

    folder: Path
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    etag: Callable[[bytes], str] = lambda data: f'"{hashlib.md5(data).hexdigest()}"'
    ranges: bool = True
    before: Callable[[str, str], None] | None = None


def _handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            wanted = self.headers.get("Range", "")
            site.requests.append((self.command, self.path, wanted))
            if site.before is not None:
                site.before(self.command, self.path)
            path = site.folder / self.path.lstrip("/").replace("%20", " ")
            if not path.is_file():
                self._send(404, b"no such file", body=body)
                return
            data = path.read_bytes()
            tag = site.etag(data)
            headers = {"ETag": tag} if tag else {}
            condition = self.headers.get("If-Match")
            if condition is not None and condition != tag:
                self._send(412, b"", body=body)
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if match and site.ranges:
                begin, end = int(match[1]), min(int(match[2]) + 1, len(data))
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
                self._send(206, data[begin:end], headers, body=body)
            else:
                self._send(200, data, headers, body=body)

        def _send(
            self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool
        ) -> None:
            if body:
                site.answers.append((self.path, self.headers.get("Range", ""), str(status)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", "Tue, 01 Dec 2026 09:00:00 GMT")
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


@contextlib.contextmanager
def serving(site: Site, certificate: Path | None = None) -> Iterator[Site]:
    """The site, by http or, with a certificate and its key in one file, by https."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    scheme = "http" if certificate is None else "https"
    site.url = f"{scheme}://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def nginx(folder: Path, work: Path, certificate: Path) -> Iterator[str]:
    """The address of a folder behind nginx, by https; its log of requests is `work`/log.

    Args:
        certificate: with its key in the same file.
    """
    program = shutil.which("nginx")
    assert program is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for path in (folder, *folder.parents):  # its workers are another user's, if root starts it
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | 0o055)
    (work / "nginx.conf").write_text(
        f"daemon off; pid {work}/pid; error_log {work}/errors;\n"
        "events {}\n"
        f"http {{ client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;\n"
        f"fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n"
        "log_format all '$request_method $uri $http_range $status';\n"
        f"ssl_certificate {certificate}; ssl_certificate_key {certificate};\n"
        f"server {{ listen 127.0.0.1:{port} ssl; root {folder}; access_log {work}/log all; }} }}\n"
    )
    process = subprocess.Popen([program, "-p", str(work), "-c", str(work / "nginx.conf"), "-e",
                                str(work / "errors")])  # fmt: skip
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate authority's certificate, and one of 127.0.0.1 that it signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("tests of clair"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    import ipaddress

    own, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = (
        builder("tests of clair", own)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(own, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = (
        builder("127.0.0.1", other)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(own, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    key = other.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "authority.pem").write_bytes(authority.public_bytes(encoding))
    (folder / "server.pem").write_bytes(key + server.public_bytes(encoding))
    return folder / "authority.pem", folder / "server.pem"
