"""
TLS towards the receivers of audit records: whom we trust, who we are, and why it did not come to a connection.

TLS 1.2 at least; the receiver's certificate must be of a trusted CA and for the name or address in the URL
(RFC 5425 section 5.2, RFC 9525). Files are followed while we run: a renewed certificate needs no restart.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

T = TypeVar("T")

# A bundle of all public CAs is a quarter of that.
PEM_BYTES = 1 << 20

_Codes = SSL.X509VerificationCodes
# What OpenSSL finds wrong with the receiver's certificate, as a key of the words below; anything else is "bad".
_REASONS = {
    _Codes.ERR_CERT_HAS_EXPIRED: "expired",
    _Codes.ERR_CERT_NOT_YET_VALID: "not_yet_valid",
    _Codes.ERR_INVALID_PURPOSE: "wrong_purpose",
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT: "foreign_ca",
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "foreign_ca",
    _Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "foreign_ca",
    _Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "foreign_ca",
    _Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "foreign_ca",
    _Codes.ERR_CERT_SIGNATURE_FAILURE: "foreign_ca",
    _Codes.ERR_CERT_UNTRUSTED: "foreign_ca",
}
_WORDS = {
    "expired": "its certificate has expired; it needs a new one",
    "not_yet_valid": "its certificate is not valid yet; compare the clocks",
    "wrong_purpose": "its certificate is not for servers (extended key usage serverAuth)",
    "foreign_ca": "its certificate is of a CA that is not trusted; put the certificate of that CA into the file that "
    "{ca} names",
    "wrong_name": "its certificate is not for {hostname}; write the name that stands in the certificate into the URL, "
    "or give the receiver one for this name",
    "bad": "its certificate cannot be accepted",
}
# What OpenSSL says when the other side ends it, as far as it tells an operator something; the first that fits.
_ENDINGS = (
    ("alert certificate required", "it demands a client certificate; set {certificate} and {key}"),
    (
        "alert handshake failure",
        "it refuses the handshake; if it demands a client certificate, set {certificate} and {key}",
    ),
    ("alert unknown ca", "it does not trust the CA of our client certificate; compare {certificate} with its CAs"),
    ("alert certificate expired", "our client certificate has expired; renew the one in {certificate}"),
    ("alert bad certificate", "it does not accept our client certificate; compare {certificate} with what it demands"),
    ("alert certificate", "it does not accept our client certificate; compare {certificate} with what it demands"),
    ("alert unsupported certificate", "it does not accept our client certificate; is it for clients (clientAuth)?"),
    ("alert access denied", "it does not let our client certificate in; compare {certificate} with what it demands"),
    ("alert protocol version", "it speaks nothing newer than TLS 1.1"),
    ("unsupported protocol", "it speaks nothing newer than TLS 1.1"),
    ("wrong version number", "it does not speak TLS on this port"),
    ("packet length too long", "it does not speak TLS on this port"),
    ("http request", "it does not speak TLS on this port"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustFiles:
    """
    Paths of PEM files.

    :ivar ca: CAs that the receiver is checked against; empty: those of the system.
    :ivar certificate: client certificate with the chain that is sent along, leaf first; empty: none.
    :ivar key: of that certificate, not encrypted.
    :ivar settings: what the names of the three settings begin with, for texts: ``IDENTREE_AUDIT_SYSLOG``.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    settings: str = ""

    @property
    def names(self) -> dict[str, str]:
        """How the three are called in texts."""
        if not self.settings:
            return {"ca": "the CA setting", "certificate": "the client certificate setting", "key": "its key setting"}
        return {
            "ca": f"{self.settings}_CA_FILE",
            "certificate": f"{self.settings}_CERT_FILE",
            "key": f"{self.settings}_KEY_FILE",
        }


class Untrusted(SSL.Error):
    """The receiver's certificate does not do; the text says why, and what to do."""

    def __init__(self, words: str) -> None:
        # in the form of OpenSSL's own errors, which Twisted takes apart
        super().__init__([("identree", "", words)])
        self._words = words

    def __str__(self) -> str:
        return self._words


class _Connection(SSL.Connection):
    """
    One connection to a receiver.

    :ivar hostname: that its certificate must be for: a DNS name in ASCII, or an address.
    """

    hostname = ""
    names: dict[str, str]
    refusal = ""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except SSL.WantReadError:
            raise
        except SSL.Error as problem:
            if not self.refusal:
                raise
            words = _WORDS[self.refusal].format(hostname=self.hostname, **self.names)
            raise Untrusted(words) from problem


def _verified(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    """OpenSSL asks for each certificate of the chain, and for each fault that it finds; the name is ours to compare."""
    # an exception would be lost in OpenSSL, so only a way to the end accepts
    refusal = "bad"
    with suppress(Exception):
        if not ok:
            refusal = _REASONS.get(code, "bad")
        elif depth == 0 and not (
            isinstance(connection, _Connection) and _is_for(certificate.to_cryptography(), connection.hostname)
        ):
            refusal = "wrong_name"
        else:
            refusal = ""
    if refusal and isinstance(connection, _Connection) and not connection.refusal:
        connection.refusal = refusal
    return not refusal


def _is_for(certificate: x509.Certificate, hostname: str) -> bool:
    try:
        if _is_address(hostname):
            verify_certificate_ip_address(certificate, hostname)
        else:
            verify_certificate_hostname(certificate, hostname)
    except (VerificationError, CertificateError):
        return False
    return True


def _is_address(hostname: str) -> bool:
    try:
        ip_address(hostname)
    except ValueError:
        return False
    return True


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Makes connections to one host."""

    def __init__(self, context: SSL.Context, hostname: str, names: dict[str, str]) -> None:
        self._context = context
        self._hostname = hostname
        self._names = names

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = _Connection(self._context, None)
        connection.hostname = self._hostname
        connection.names = self._names
        if not _is_address(self._hostname):
            # RFC 6066 section 3: a name only, never an address
            connection.set_tlsext_host_name(self._hostname.encode("ascii"))
        connection.set_connect_state()
        return connection


@implementer(IPolicyForHTTPS)
class ClientTrust:
    """
    What TLS connections to a receiver are made from; also a policy for web clients. New connections follow the files,
    those that are open stay as they are.

    :param in_thread: runs a blocking function away from the reactor.
    """

    def __init__(self, files: TrustFiles, in_thread: Callable[[Callable[[], T]], Deferred[T]]) -> None:
        self._files = files
        self._in_thread: Callable[[Callable[[], Any]], Deferred[Any]] = in_thread
        self._context: SSL.Context | None = None
        self._signature: tuple[object, ...] = ()
        # a disk that hangs keeps one thread, and not one more with every attempt
        self._looking = False

    async def refresh(self) -> None:
        """
        Use changed files for connections from now on. To be awaited before connections are made.

        :raise ValueError: a file cannot be used; the text names it and says what to do. What was read before stays.
        """
        if self._looking:
            raise ValueError(
                f"{self._files.names['ca']}: the files of certificates cannot be read; does their disk hang?"
            )
        self._looking = True
        loaded: tuple[SSL.Context, tuple[object, ...]] | None = await self._in_thread(self._load_if_changed)
        if loaded is not None:
            self._context, self._signature = loaded

    def creator(self, hostname: str) -> IOpenSSLClientConnectionCreator:
        """
        :param hostname: that the certificate must be for: a DNS name or an address, without brackets.
        :raise ValueError: it is no host name.
        """
        if self._context is None:
            raise RuntimeError("nothing is loaded: await refresh() before making connections")
        return _Creator(self._context, _ascii(hostname), self._files.names)

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        return self.creator(hostname.decode("ascii").removeprefix("[").removesuffix("]"))

    def explain(self, problem: BaseException, *, at_once: bool = False) -> str:
        """
        Why there was no connection, as an end of "the receiver cannot be used: …"; empty when TLS is not the reason.

        :param problem: what the connection ended with.
        :param at_once: whether it ended during the handshake or right after it.
        """
        if at_once and isinstance(problem, ConnectionClosed):
            return (
                "it closed the connection at the TLS handshake; if it demands a client certificate, compare "
                "{certificate} with what it permits, and see its own log"
            ).format(**self._files.names)
        if isinstance(problem, Untrusted):
            return str(problem)
        if not isinstance(problem, SSL.Error):
            return ""
        parts = problem.args[0] if problem.args and isinstance(problem.args[0], (list, tuple)) else ()
        said = " ".join(str(part) for entry in parts for part in entry).lower()
        for part, words in _ENDINGS:
            if part in said:
                return words.format(**self._files.names)
        return "the TLS connection failed" + (f" ({said.strip()[:200]})" if said.strip() else "")

    # -- in a thread --------------------------------------------------------------------------------------------------
    def _load_if_changed(self) -> tuple[SSL.Context, tuple[object, ...]] | None:
        try:
            # looked at first: what changes while it is read is read again the next time
            signature = self._look()
            if signature == self._signature:
                return None
            return self._load(), signature
        finally:
            # here and not where it is awaited: who gives up waiting does not end the thread
            self._looking = False

    def _look(self) -> tuple[object, ...]:
        files = self._files
        paths = [path for path in (files.ca, files.certificate, files.key) if path]
        if not files.ca:
            # the directory changes with every update of the system's CAs
            system = ssl.get_default_verify_paths()
            paths += [path for path in (system.cafile, system.capath) if path]
        signature: list[object] = [len(paths)]
        for path in paths:
            try:
                found = Path(path).stat()
            except (OSError, ValueError):
                signature.append(None)
            else:
                signature.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return tuple(signature)

    def _load(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        # a session that is taken up again would pass by the checks of a changed certificate
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_verify(SSL.VERIFY_PEER, _verified)
        self._trust(context)
        self._identify(context)
        return context

    def _trust(self, context: SSL.Context) -> None:
        path = self._files.ca
        if not path:
            context.set_default_verify_paths()
            return
        setting = self._files.names["ca"]
        store = context.get_cert_store()
        assert store is not None
        for authority in _certificates(setting, path):
            store.add_cert(crypto.X509.from_cryptography(authority))
        # who names an intermediate CA, or the receiver's own certificate, means that one
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def _identify(self, context: SSL.Context) -> None:
        files, names = self._files, self._files.names
        if not files.certificate and not files.key:
            return
        if not files.key:
            raise ValueError(
                f"{names['certificate']} is set, so {names['key']} must name the file with its private key"
            )
        if not files.certificate:
            raise ValueError(
                f"{names['key']} is set, so {names['certificate']} must name the file with its certificate"
            )
        chain = _certificates(names["certificate"], files.certificate)
        raw = _read(names["key"], files.key)
        try:
            key: Any = load_pem_private_key(raw, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(f"{names['key']}: {files.key} holds no unencrypted private key in PEM form") from None
        if key.public_key() != chain[0].public_key():
            raise ValueError(
                f"{names['key']}: {files.key} is not the key of the first certificate in {files.certificate}"
            )
        try:
            context.use_certificate(chain[0])
            for certificate in chain[1:]:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(key)
        except (SSL.Error, TypeError):
            raise ValueError(
                f"{names['certificate']}: TLS cannot use the certificate in {files.certificate}; its key must be RSA "
                "with 2048 bits or more, or ECDSA"
            ) from None


def _ascii(hostname: str) -> str:
    try:
        if _is_address(hostname):
            return hostname
        return hostname.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError(f"{hostname[:100]!r} is no host name") from None


def _read(setting: str, name: str) -> bytes:
    # symbolic links are followed: container platforms mount secrets as links
    try:
        with Path(name).open("rb") as file:
            raw = file.read(PEM_BYTES + 1)
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or "not a path"
        raise ValueError(
            f"{setting}: {name[:200]} cannot be read ({why}); it must exist and be readable for the user that "
            "identree runs as"
        ) from None
    if len(raw) > PEM_BYTES:
        raise ValueError(f"{setting}: {name} is larger than {PEM_BYTES} bytes")
    return raw


def _certificates(setting: str, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(setting, name))
    except ValueError as problem:
        if str(problem).startswith(setting):
            raise
        raise ValueError(f"{setting}: {name} holds no certificate in PEM form") from None
