"""A certificate authority of the test, the server's certificate, and identree with both: HTTPS, LDAPS and StartTLS."""

from __future__ import annotations

import ssl
import subprocess
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from tests.e2e.server import Server
from tests.e2e.wire import Answer

SERVER_NAME = "identree.example.com"


class CA:
    """
    ECDSA P-256, as identree makes its own; made by openssl, which knows nothing of ours.

    :ivar certificate: the path that clients trust. :ivar key: of its private key.
    """

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.certificate, self.key = directory / "ca.crt", directory / "ca.key"
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"),
            *("-subj", f"/O=identree/CN={name}", "-keyout", self.key, "-out", self.certificate),
            *("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=keyCertSign,cRLSign"),
        )
        self.key.chmod(0o600)

    def issue(self, name: str, usage: str = "serverAuth", days: int = 30) -> tuple[Path, Path]:
        """Certificate and key for a DNS name; :param days: negative for one that has expired."""
        key, request, certificate = (self.directory / f"{name}-{usage}.{kind}" for kind in ("key", "csr", "crt"))
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        key.chmod(0o600)
        extensions = self.directory / "extensions"
        extensions.write_text(f"subjectAltName=DNS:{name}\nextendedKeyUsage={usage}\nkeyUsage=digitalSignature\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"),
            *("-days", str(days), "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def settings(self) -> dict[str, str]:
        """What makes a server use it, for itself and for its hosts."""
        certificate, key = self.issue(SERVER_NAME)
        return {
            "IDENTREE_TLS_CERT_FILE": str(certificate),
            "IDENTREE_TLS_KEY_FILE": str(key),
            "IDENTREE_MTLS_CA_CERT": str(self.certificate),
            "IDENTREE_MTLS_CA_KEY": str(self.key),
            "IDENTREE_LDAP_TLS_CA_CERT": str(self.certificate),
        }


def openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class SecureServer(Server):
    """One that speaks HTTPS; certificates are not looked at by this class itself."""

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/healthz").status in (200, 503)
        except OSError:
            return False

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> Answer:
        """:param certificate: the client's, and its key."""
        context = ssl._create_unverified_context()
        if certificate is not None:
            context.load_cert_chain(*certificate)
        connection: Any = HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        try:
            connection.request(method, path, None, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()
