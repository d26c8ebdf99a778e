"""
Where the web server listens: plain, or TLS from certificate and key files (spec/http-api section 2.1), and what to tell
an operator when it cannot.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from OpenSSL import crypto
from OpenSSL.SSL import Error as SSLError
from twisted.application import strports
from twisted.application.service import IService
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOFactory

from identree.core.errors import StorageUnavailable
from identree.settings.values import Settings

# A chain with key, in bytes; nothing larger is one.
PEM_BYTES = 1 << 20

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def listener(settings: Settings, site: Any, reactor: Any) -> IService:
    """
    A service that accepts connections for ``site``; a busy port stops its start.

    :raise ValueError: certificate or key cannot be used; the text names the setting and what to do.
    """
    factory = site
    if settings.tls_cert_file:
        options = certificate_options(settings.tls_cert_file, settings.tls_key_file)
        factory = TLSMemoryBIOFactory(options, False, site, reactor)
    service: IService = strports.service(endpoint(settings), factory, reactor)
    return service


def endpoint(settings: Settings) -> str:
    """The listen address as a Twisted endpoint description."""
    host, _, port = settings.listen_addr.rpartition(":")
    interface = quoteStringArgument(host.strip("[]") or every_address())
    return f"tcp:{port}:backlog={settings.listen_backlog}:interface={interface}"


def every_address() -> str:
    """IPv6 with IPv4 in it; only IPv4 where the system has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6):
            return "::"
    except OSError:
        return "0.0.0.0"  # noqa: S104 - an empty host in the setting asks for it


def certificate_options(certificate_file: str, key_file: str) -> CertificateOptions:
    """
    TLS 1.2 and later, with the whole chain that the certificate file holds, leaf first.

    :raise ValueError: a file cannot be read, holds no PEM, or the key is another certificate's.
    """
    certificates = [
        _parsed(crypto.load_certificate, found, "IDENTREE_TLS_CERT_FILE", certificate_file)
        for found in _CERTIFICATE.findall(_read("IDENTREE_TLS_CERT_FILE", certificate_file))
    ]
    if not certificates:
        raise ValueError(_unusable("IDENTREE_TLS_CERT_FILE", certificate_file, "certificate"))
    raw_key = _read("IDENTREE_TLS_KEY_FILE", key_file)
    key = _parsed(_load_key, raw_key, "IDENTREE_TLS_KEY_FILE", key_file)
    options = CertificateOptions(
        privateKey=key,
        certificate=certificates[0],
        extraCertChain=certificates[1:],
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )
    try:
        # now, not at the first connection
        options.getContext()
    except SSLError:
        raise ValueError(
            f"IDENTREE_TLS_KEY_FILE: {key_file} is not the key of the first certificate in {certificate_file}"
        ) from None
    return options


def remedy(problem: BaseException | None) -> str:
    """A start that failed, in words that say what to do."""
    if isinstance(problem, CannotListenError):
        advice = (
            "A port below 1024 needs the capability CAP_NET_BIND_SERVICE; give it,"
            if isinstance(problem.socketError, PermissionError)
            else "End what uses the address,"
        )
        address = f"{problem.interface or '*'}:{problem.port}"
        return f"cannot listen on {address}: {_cause(problem)}. {advice} or set IDENTREE_LISTEN_ADDR"
    if isinstance(problem, StorageUnavailable):
        return (
            f"the database cannot be used ({problem}). Check IDENTREE_DATABASE_DSN: the server or directory that it "
            "names must exist, and the user that identree runs as must be allowed to read and write there"
        )
    return str(problem) or type(problem).__name__


def _cause(problem: CannotListenError) -> str:
    error = problem.socketError
    return getattr(error, "strerror", None) or str(error)


def _load_key(kind: int, raw: bytes) -> crypto.PKey:
    # an empty passphrase: never ask a terminal
    return crypto.load_privatekey(kind, raw, passphrase=b"")


def _parsed(load: Any, raw: bytes, setting: str, name: str) -> Any:
    try:
        return load(crypto.FILETYPE_PEM, raw)
    except (crypto.Error, ValueError, TypeError):
        what = "certificate" if setting == "IDENTREE_TLS_CERT_FILE" else "unencrypted private key"
        raise ValueError(_unusable(setting, name, what)) from None


def _unusable(setting: str, name: str, what: str) -> str:
    return f"{setting}: {name} holds no {what} in PEM form"


def _read(setting: str, name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return file.read(PEM_BYTES)
    except OSError as problem:
        raise ValueError(
            f"{setting}: {name} cannot be read ({problem.strerror}); it must exist and be readable for the user that "
            "identree runs as"
        ) from None
