"""
Behind nginx with TLS, with the directives of the operations guide: live updates and held requests pass unbuffered, the
client's address arrives, plain requests are sent on to https.
"""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e import wire
from tests.e2e.server import SHARED_SECRET, Server, free_port

pytestmark = pytest.mark.e2e

HOST = "identree.example.com"
CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream identree {{
        server 127.0.0.1:{upstream};
    }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        server_name {host};
        ssl_certificate     {directory}/identree.pem;
        ssl_certificate_key {directory}/identree.key;
        location / {{
            proxy_pass http://identree;
            # Here and not one level up: nginx inherits these only where a location has none of its own.
            proxy_set_header X-Forwarded-For   $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Host              $host;
            # WebSocket / SSE support (required for /api/events)
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_cache off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""


class Proxied:
    """identree behind nginx; ``connect`` gives a TLS connection from one of loopback's addresses."""

    def __init__(self, server: Server, port: int, certificate: Path) -> None:
        self.server = server
        self.port = port
        self._trust = ssl.create_default_context(cafile=str(certificate))
        self._trust.check_hostname = False

    def connect(self, source: str = "127.0.0.1") -> HTTPSConnection:
        return HTTPSConnection("127.0.0.1", self.port, context=self._trust, timeout=60, source_address=(source, 0))

    def ask(self, method: str, path: str, headers: dict[str, str], body: str | None = None, **more: Any) -> Any:
        connection = self.connect(**more)
        try:
            connection.request(method, path, body, {"Host": HOST, **headers})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def create(self, username: str, **more: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "X-Shared-Secret": SHARED_SECRET}
        headers |= more.pop("headers", {})
        body = json.dumps({"username": username, "hostname": "web-01"})
        status, _, answer = self.ask("POST", "/api/challenge", headers, body, **more)
        assert status == 201, answer
        created: dict[str, Any] = json.loads(answer)
        return created


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    directory = tmp_path_factory.mktemp("nginx")
    make_certificate(directory)
    oidc = {
        "IDENTREE_EXTERNAL_URL": f"https://{HOST}",
        "IDENTREE_OIDC_ISSUER_URL": "https://127.0.0.1:9",
        "IDENTREE_OIDC_CLIENT_ID": "identree",
        "IDENTREE_OIDC_CLIENT_SECRET": "nginx-client-secret-0123456789abcdef",
    }
    port = free_port()
    with Server(directory, oidc) as server:
        configuration = directory / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(directory=directory, port=port, upstream=server.port, host=HOST))
        nginx = subprocess.Popen(
            ["nginx", "-p", str(directory), "-c", str(configuration), "-e", str(directory / "nginx.log")],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            here = Proxied(server, port, directory / "identree.pem")
            wait_until_it_listens(here, nginx)
            yield here
        finally:
            nginx.terminate()
            nginx.wait(30)


class TestNginx:
    def test_answers(self, proxied: Proxied) -> None:
        """Pages and headers come through; https is demanded for two years."""
        status, headers, _ = proxied.ask("GET", "/", {})
        assert status == 303
        assert headers["location"] == f"https://{HOST}/sessions/login?next=/"
        assert headers["strict-transport-security"].startswith("max-age=63072000")

    def test_address(self, proxied: Proxied) -> None:
        """The audit has the client's address, not the proxy's and not one that the client made up."""
        created = proxied.create("alice", source="127.0.0.7", headers={"X-Forwarded-For": "203.0.113.9"})
        [record] = [
            json.loads(line)
            for line in proxied.server.audit_log.read_text().splitlines()
            if created["user_code"] in line
        ]
        assert record["remote_addr"] == "127.0.0.7"

    def test_live_updates(self, proxied: Proxied) -> None:
        """An event stream is not buffered: its beginning and an event arrive while it is open."""
        bob = wire.Visitor("bob")
        connection = proxied.connect()
        connection.request("GET", "/api/events", headers={"Host": HOST, **bob.headers})
        response = connection.getresponse()
        assert response.status == 200
        assert b": connected" in read_until(response, b"connected")
        proxied.create("bob")
        assert b"data: challenge_created" in read_until(response, b"challenge_created")
        connection.close()

    def test_held_request(self, proxied: Proxied) -> None:
        """A held poll passes and is answered by the decision."""
        created = proxied.create("carol")
        answers: list[Any] = []
        path = f"/api/challenge/{created['challenge_id']}?hostname=web-01&wait=25"
        host = threading.Thread(
            target=lambda: answers.append(proxied.ask("GET", path, {"X-Shared-Secret": SHARED_SECRET}))
        )
        host.start()
        status = wire.Visitor("carol").approve(proxied.server.port, created["challenge_id"]).status
        host.join(60)
        assert status == 200
        assert json.loads(answers[0][2])["status"] == "approved"

    def test_plain_http(self, proxied: Proxied) -> None:
        """What a proxy says came without TLS is sent on to the public address."""
        connection = HTTPConnection("127.0.0.1", proxied.server.port, timeout=60)
        connection.request("GET", "/approve/ABCDEF-123456?x=1", headers={"X-Forwarded-Proto": "http"})
        response = connection.getresponse()
        assert (response.status, response.getheader("Location")) == (301, f"https://{HOST}/approve/ABCDEF-123456?x=1")
        connection.close()

    def test_cookies(self, proxied: Proxied) -> None:
        """Behind https the session cookie is Secure."""
        _, headers, _ = proxied.ask("GET", "/", wire.Visitor("dave").headers)
        assert "pam_session=" in headers["set-cookie"]
        assert "Secure" in headers["set-cookie"]


def read_until(response: HTTPResponse, wanted: bytes) -> bytes:
    """What the stream brings until ``wanted`` is in it."""
    seen = b""
    while wanted not in seen:
        more = response.read1(65536)
        assert more, f"the stream ended without {wanted!r}: {seen!r}"
        seen += more
    return seen


def wait_until_it_listens(here: Proxied, nginx: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            assert here.ask("GET", "/healthz", {})[0] == 200
            return
        except OSError:
            assert nginx.poll() is None, nginx.stderr and nginx.stderr.read().decode()
            assert time.monotonic() < end, "nginx does not listen"
            time.sleep(0.05)


def make_certificate(directory: Path) -> None:
    """A self-signed certificate for the public name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "identree.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "identree.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
