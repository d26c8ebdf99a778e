"""Certificate authorities of a test, and servers that speak TLS with what they issued."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.agent.scripted import Script, ScriptedServer

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and its key."""

    certificate: str
    key: str

    @property
    def texts(self) -> tuple[str, str]:
        return Path(self.certificate).read_text(), Path(self.key).read_text()


class Authority:
    """:ivar file: its certificate in PEM. :ivar days: how long it lives."""

    def __init__(self, directory: Path, name: str = "test authority", *, days: float = 3650) -> None:
        self.directory = directory / f"{name}-{id(self)}"
        self.directory.mkdir(parents=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._count = 0
        begins = -5000.0 if days < 0 else -1.0
        own = self._sign(name, self._key, [], days=days, begins=begins, authority=True)
        self.file = self._write("ca.crt", own.public_bytes(serialization.Encoding.PEM))

    @property
    def text(self) -> str:
        return Path(self.file).read_text()

    def issue(self, name: str, *alternatives: str, days: float = 365, begins: float = -1, client: bool = False) -> Pair:
        """:param days: until it ends, from now. :param begins: likewise. :param client: only for clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, list(alternatives), days=days, begins=begins, client=client)
        self._count += 1
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return Pair(
            self._write(f"{self._count}.crt", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{self._count}.key", private),
        )

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        alternatives: list[str],
        *,
        days: float,
        begins: float,
        authority: bool = False,
        client: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if alternatives:
            names: list[x509.GeneralName] = []
            for each in alternatives:
                try:
                    names.append(x509.IPAddress(ipaddress.ip_address(each)))
                except ValueError:
                    names.append(x509.DNSName(each))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if client:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(0o600 if name.endswith(".key") else 0o644)
        return str(path)


def server_context(pair: Pair, *, clients: str = "", optional: bool = False) -> ssl.SSLContext:
    """:param clients: the file of the CA whose certificates clients must show; or may, if ``optional``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients:
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


class SecureScriptedServer(ScriptedServer):
    """:ivar peers: the common names of the certificates that clients have shown; empty for none."""

    def __init__(self, script: Script, context: ssl.SSLContext) -> None:
        self.context = context
        self.peers: list[str] = []
        super().__init__(script)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        try:
            secure = self.context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return
        subject = (secure.getpeercert() or {}).get("subject", ())
        self.peers.append("".join(value for part in subject for name, value in part if name == "commonName"))
        super()._serve(secure)


class DirectoryServer:
    """
    A directory that knows one host and one person, as far as ``doctor`` asks.

    :param context: of LDAPS; None for LDAP.
    :ivar binds: names and passwords that were shown. :ivar greeting: said instead of everything else.
    """

    DN, PASSWORD, USER = "uid=web01,ou=identree-hosts,dc=example,dc=com", "directory-password", "alice"

    def __init__(self, context: ssl.SSLContext | None = None, *, people: bool = True) -> None:
        self.context, self._people = context, people
        self.binds: list[tuple[str, str]] = []
        self.greeting = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(self.greeting or self._answer(data))
        except OSError:
            connection.close()

    def _answer(self, data: bytes) -> bytes:
        """Enough of BER for messages that are short: every length is one byte."""
        identity, operation, content = data[4], data[5], data[7:]
        if operation == 0x60:
            name = content[5 : 5 + content[4]].decode()
            rest = content[5 + content[4] :]
            password = rest[2 : 2 + rest[1]].decode()
            self.binds.append((name, password))
            return self._message(identity, 0x61, 0 if (name, password) == (self.DN, self.PASSWORD) else 49)
        done = self._message(identity, 0x65, 0)
        if b"posixAccount" not in content or not self._people:
            return done
        name = self._tlv(0x04, f"uid={self.USER},ou=people,dc=example,dc=com".encode())
        values = self._tlv(0x31, self._tlv(0x04, self.USER.encode()))
        attribute = self._tlv(0x30, self._tlv(0x04, b"uid") + values)
        entry = self._tlv(0x64, name + self._tlv(0x30, attribute))
        return self._tlv(0x30, bytes((2, 1, identity)) + entry) + done

    def _message(self, identity: int, operation: int, code: int) -> bytes:
        result = bytes((0x0A, 1, code)) + b"\x04\x00\x04\x00"
        return self._tlv(0x30, bytes((2, 1, identity)) + self._tlv(operation, result))

    @staticmethod
    def _tlv(tag: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes((tag, len(content))) + content
