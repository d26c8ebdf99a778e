"""The HTTP client: the parser on bytes, TLS on real sockets."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from identree.agent.config import Config, ConfigError
from identree.agent.watch import Watch
from identree.agent.wire import Client, Response, Unreachable, Untrusted, WireError, read_response


def feed(*pieces: bytes) -> Callable[[], bytes]:
    left = list(pieces)
    return lambda: left.pop(0) if left else b""


def parse(data: bytes, *, step: int = 0) -> tuple[Response, bool]:
    pieces = [data[n : n + step] for n in range(0, len(data), step)] if step else [data]
    return read_response(bytearray(), feed(*pieces))


class ParserTests(unittest.TestCase):
    def test_content_length(self) -> None:
        """A body of known length, arriving byte by byte; what follows is left for the next answer."""
        data = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\nX-A:  b \r\n\r\nabc"
        answer, keep = parse(data, step=1)
        self.assertEqual((answer.status, answer.body, answer.headers["x-a"], keep), (201, b"abc", "b", True))
        buffer = bytearray()
        read_response(buffer, feed(data + b"HTTP"))
        self.assertEqual(buffer, b"HTTP")

    def test_chunked(self) -> None:
        """Chunks with extensions and trailers, byte by byte."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = head + b"3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nT: v\r\n\r\n"
        answer, keep = parse(data, step=1)
        self.assertEqual((answer.body, keep), (b"abc0123456789", True))

    def test_until_close(self) -> None:
        """Without length the body ends with the connection."""
        answer, keep = parse(b"HTTP/1.0 200 OK\r\n\r\nabc")
        self.assertEqual((answer.body, keep), (b"abc", False))

    def test_interim_answers(self) -> None:
        """Interim answers are skipped, but not for ever."""
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        self.assertEqual(parse(interim + b"HTTP/1.1 204 No Content\r\n\r\n")[0].status, 204)
        with self.assertRaises(WireError):
            parse(interim * 20)

    def test_connection_close(self) -> None:
        """A server that says close is believed."""
        self.assertFalse(parse(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n")[1])

    def test_limits_by_status(self) -> None:
        """Bodies are cut at 64 KiB, 4 KiB for the question for a reason, 1 KiB for other errors."""
        for status, limit in ((200, 65536), (422, 4096), (500, 1024), (404, 1024)):
            size = limit + 1
            head = f"HTTP/1.1 {status} X\r\n".encode()
            for data in (
                head + f"Content-Length: {size}\r\n\r\n".encode() + b"x" * size,
                head + b"Transfer-Encoding: chunked\r\n\r\n" + f"{size:x}\r\n".encode() + b"x" * size,
                head + b"\r\n" + b"x" * size,
            ):
                answer, keep = parse(data)
                self.assertEqual((len(answer.body), answer.cut, keep), (limit, True, False))

    def test_refused(self) -> None:
        """What is not HTTP, contradicts itself or never ends is refused."""
        ok = b"HTTP/1.1 200 OK\r\n"
        for data in (
            b"",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"SSH-2.0-x\r\n",
            ok,
            ok + b"nonsense\r\n\r\n",
            ok + b"A : b\r\n\r\n",
            ok + b"Content-Length: -1\r\n\r\n",
            ok + b"Content-Length: 1e3\r\n\r\n",
            ok + b"Content-Length: 5\r\n\r\nabc",
            ok + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            ok + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ok + b"Transfer-Encoding: gzip\r\n\r\n",
            ok + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
            ok + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
            ok + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            ok + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000,
            ok + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: v\r\n" * 100 + b"\r\n",
            ok + b"A: " + b"x" * 20000 + b"\r\n\r\n",
        ):
            with self.subTest(data[:60]), self.assertRaises(WireError):
                parse(data)

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes are an answer or a refusal, never another exception."""
        for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
            with contextlib.suppress(WireError):
                parse(prefix + data)


class Certificates:
    """A certificate authority of the test, with what it signed."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = self._sign("test authority", self.key, None, authority=True)
        self.ca_file = self._write("ca.pem", self.ca.public_bytes(serialization.Encoding.PEM))

    def issue(self, common_name: str, alternative: str | None, *, days: int = 1) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(common_name, key, alternative, days=days)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._write(f"{common_name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{common_name}.key", private),
        )

    def _sign(
        self,
        common_name: str,
        key: ec.EllipticCurvePrivateKey,
        alternative: str | None,
        *,
        days: int = 1,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(alternative)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)


class TlsTests(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.certificates = Certificates(directory.name)

    def serve(self, certificate: tuple[str, str], *, clients: bool = False) -> int:
        """A port that answers one TLS client with the name in its certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificates.ca_file)
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    peer = secure.getpeercert() if clients else {}
                    body = str(peer.get("subject", "") if peer else "").encode()
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        return int(listener.getsockname()[1])

    def get(self, port: int, **conf: str) -> Response:
        values = {
            "IDENTREE_SERVER_URL": f"https://localhost:{port}",
            "IDENTREE_HOSTNAME": "web01",
            "IDENTREE_CA_CERT": self.certificates.ca_file,
            **conf,
        }
        client = Client(Config("f", values), Watch(parent=False))
        self.addCleanup(client.close)
        return client.request("GET", "/healthz")

    def test_good(self) -> None:
        """A certificate with the right alternative name, from the configured authority."""
        self.assertEqual(self.get(self.serve(self.certificates.issue("server", "localhost"))).status, 200)

    def test_pinned_leaf(self) -> None:
        """Any certificate in the file is an anchor, the server's own too."""
        own = self.certificates.issue("server", "localhost")
        self.assertEqual(self.get(self.serve(own), IDENTREE_CA_CERT=own[0]).status, 200)

    def test_untrusted(self) -> None:
        """Another authority, another name, the name only as common name, an expired certificate."""
        for certificate, authority in (
            (self.certificates.issue("server", "localhost"), ""),
            (self.certificates.issue("server", "other.example"), self.certificates.ca_file),
            (self.certificates.issue("localhost", None), self.certificates.ca_file),
            (self.certificates.issue("server", "localhost", days=-1), self.certificates.ca_file),
        ):
            with self.subTest(certificate), self.assertRaises(Untrusted):
                self.get(self.serve(certificate), IDENTREE_CA_CERT=authority)

    def test_client_certificate(self) -> None:
        """The configured client certificate is shown."""
        certificate, key = self.certificates.issue("web01", None)
        port = self.serve(self.certificates.issue("server", "localhost"), clients=True)
        answer = self.get(port, IDENTREE_CLIENT_CERT=certificate, IDENTREE_CLIENT_KEY=key)
        self.assertIn(b"web01", answer.body)

    def test_unusable_files(self) -> None:
        """Missing or foreign files are a mistake in the configuration, found before anything is sent."""
        certificate, _ = self.certificates.issue("a", None)
        _, key = self.certificates.issue("b", None)
        for conf in (
            {"IDENTREE_CA_CERT": "/no/such/file"},
            {"IDENTREE_CA_CERT": key},
            {"IDENTREE_CLIENT_CERT": certificate, "IDENTREE_CLIENT_KEY": key},
            {"IDENTREE_CLIENT_CERT": certificate, "IDENTREE_CLIENT_KEY": "/no/such/file"},
        ):
            with self.subTest(conf), self.assertRaises(ConfigError):
                self.get(1, **conf)

    def test_not_tls(self) -> None:
        """A server that does not speak TLS is no reason to call it unreachable."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with self.assertRaises(WireError):
            self.get(int(listener.getsockname()[1]))


class ConnectionTests(unittest.TestCase):
    def client(self, port: int) -> Client:
        values = {
            "IDENTREE_SERVER_URL": f"http://127.0.0.1:{port}",
            "IDENTREE_HOSTNAME": "web01",
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
        }
        client = Client(Config("f", values), Watch(parent=False))
        self.addCleanup(client.close)
        return client

    def test_refused(self) -> None:
        """Nobody listens: unreachable."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with self.assertRaises(Unreachable):
            self.client(port).request("GET", "/")

    def test_silent(self) -> None:
        """Somebody takes the connection and says nothing: not unreachable."""
        with socket.create_server(("127.0.0.1", 0)) as silent, self.assertRaises(WireError) as caught:
            self.client(silent.getsockname()[1]).request("GET", "/", timeout=0.05)
        self.assertIn("too long", str(caught.exception))

    def test_slow(self) -> None:
        """One byte now and then does not prolong the limit."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stop = threading.Event()

            def drip() -> None:
                connection, _ = listener.accept()
                with connection:
                    for byte in b"HTTP/1.1 200 OK\r\n" + b"A" * 10000:
                        if stop.wait(0.02):
                            return
                        connection.send(bytes([byte]))

            thread = threading.Thread(target=drip, daemon=True)
            thread.start()
            with self.assertRaises(WireError):
                self.client(listener.getsockname()[1]).request("GET", "/", timeout=0.3)
            stop.set()
            thread.join(10)

    def test_reset(self) -> None:
        """A connection reset after it stood is not unreachable."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def reset() -> None:
                connection, _ = listener.accept()
                connection.recv(1024)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.close()

            thread = threading.Thread(target=reset, daemon=True)
            thread.start()
            with self.assertRaises(WireError):
                self.client(listener.getsockname()[1]).request("GET", "/")
            thread.join(10)

    def test_no_proxies(self) -> None:
        """Proxy variables are not looked at."""
        os.environ["http_proxy"] = "http://127.0.0.1:1"
        self.addCleanup(os.environ.pop, "http_proxy")
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 204 No\r\n\r\n")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            self.assertEqual(self.client(listener.getsockname()[1]).request("GET", "/").status, 204)
            thread.join(10)
