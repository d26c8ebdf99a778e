"""
TLS for LDAPS, StartTLS and HTTPS: certificates and revocation lists that are followed while we run, clients that show
certificates, and refusals that say why (spec/ldap section 8, spec/http-api section 2.1).
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from identree.app.authority import CertificateMalformed, InThread, certificate_name, certificates_in, read_file
from identree.app.authority import authorities as authorities_in
from identree.app.ports import Monotonic, Now
from identree.core.addresses import throttle_key

# A list of some 20,000 revoked certificates: the library reads it in one go, which holds everything else for 15 ms.
CRL_BYTES = 1 << 20
# One line for one address and reason in so much time: a host that fails retries every few seconds.
REFUSAL_LOG_SECONDS = 600.0
# Addresses with reasons that are remembered for that; about 200 bytes each.
REMEMBERED_REFUSALS = 10_000
# A chain from a host certificate over one intermediate to the CA, and some room.
CHAIN_DEPTH = 5

# As Twisted's, without the ones that lack forward secrecy; TLS 1.3 has its own list.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:ECDHE+AES256:ECDHE+AES128:!aNULL:!MD5:!DSS"

_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)

_Codes = SSL.X509VerificationCodes
_REASONS = {
    _Codes.ERR_CERT_HAS_EXPIRED: "expired",
    _Codes.ERR_CERT_NOT_YET_VALID: "not_yet_valid",
    _Codes.ERR_CERT_REVOKED: "revoked",
    _Codes.ERR_INVALID_PURPOSE: "wrong_purpose",
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT: "foreign_ca",
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "foreign_ca",
    _Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "foreign_ca",
    _Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "foreign_ca",
    _Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "foreign_ca",
    _Codes.ERR_CERT_SIGNATURE_FAILURE: "foreign_ca",
    _Codes.ERR_CERT_UNTRUSTED: "foreign_ca",
    _Codes.ERR_INVALID_CA: "foreign_ca",
    _Codes.ERR_PATH_LENGTH_EXCEEDED: "foreign_ca",
    _Codes.ERR_CERT_CHAIN_TOO_LONG: "foreign_ca",
}
# What OpenSSL says when a handshake ends, as far as it tells an operator something; the first that fits.
_ENDINGS = (
    ("peer did not return a certificate", "no_certificate"),
    ("unsupported protocol", "protocol_too_old"),
    ("version too low", "protocol_too_old"),
    ("tlsv1 alert protocol version", "protocol_too_old"),
    ("http request", "no_tls"),
    ("wrong version number", "no_tls"),
    ("no shared cipher", "no_common_cipher"),
    ("alert unknown ca", "refused_by_client"),
    ("alert bad certificate", "refused_by_client"),
    ("alert certificate", "refused_by_client"),
)
# By reason: the words of the log line. The reasons are label values of the metric.
WORDS = {
    "expired": "its certificate has expired; provision it again",
    "not_yet_valid": "its certificate is not valid yet; compare the clocks",
    "revoked": "its certificate is revoked",
    "wrong_purpose": "its certificate is not for clients (extended key usage clientAuth)",
    "foreign_ca": "its certificate is of a foreign CA; after a change of the CA every host must be provisioned again",
    "bad_certificate": "its certificate cannot be accepted",
    "no_certificate": "it showed no certificate",
    "protocol_too_old": "it speaks nothing newer than TLS 1.1",
    "no_tls": "it does not speak TLS",
    "no_common_cipher": "it offers no cipher that is accepted here",
    "refused_by_client": "it does not accept the server's certificate; compare its CA certificate and the name it uses",
    "handshake": "the TLS handshake failed",
}


class ClientAuth(Enum):
    """Whether clients show a certificate; one that is shown must be good in any case."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSFiles:
    """
    :ivar certificate: the server's chain, leaf first.
    :ivar ca: of clients, beside the ones that are handed over; empty for none.
    :ivar crl: revocation lists of those CAs; empty for none.
    """

    certificate: str
    key: str
    ca: str = ""
    crl: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for path in (self.certificate, self.key, self.ca, self.crl) if path)


# Serial numbers by issuer.
Revoked = Mapping[x509.Name, frozenset[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """
    :ivar identifying: the CAs whose certificates name a host; None for all that are accepted.
    :ivar warnings: what is usable, but not as it should be.
    :ivar ends: when the certificate expires.
    """

    context: SSL.Context
    revoked: Revoked
    identifying: frozenset[x509.Certificate] | None
    warnings: tuple[str, ...]
    ends: datetime


class ServerConnection(SSL.Connection):
    """
    One connection that accepts TLS.

    :ivar peer_name: the verified host name in the client's certificate once the handshake is over; empty when it showed
        none, or one of a CA that names no hosts.
    """

    peer_name = ""
    # issuer, serial number and end of that certificate
    shown: tuple[x509.Name, int, datetime] | None = None
    # why the client's certificate was refused, as a key of WORDS
    refusal = ""
    # told the reason when the handshake fails
    failed: Callable[[str], None] | None = None
    revoked: Revoked = MappingProxyType({})
    identifying: frozenset[x509.Certificate] | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except SSL.WantReadError:
            raise
        except SSL.Error as problem:
            failed, self.failed = self.failed, None
            if failed is not None:
                failed(self.refusal or _ending(problem))
            raise
        if self.failed is not None:
            # Twisted asks again and again; the first time that it succeeds counts
            self.failed = None
            certificate = self.get_peer_certificate(as_cryptography=True)
            if certificate is not None:
                if self._identified():
                    self.peer_name = certificate_name(certificate)
                self.shown = certificate.issuer, certificate.serial_number, certificate.not_valid_after_utc

    def _identified(self) -> bool:
        """Whether the chain by which the client's certificate was accepted leads over a CA that names hosts."""
        if self.identifying is None:
            return True
        # what the client sends along proves nothing, and a certificate does not vouch for itself
        chain = self.get_verified_chain(as_cryptography=True) or []
        return any(authority in self.identifying for authority in chain[1:])


def peer_name(transport: Any) -> str:
    """
    The verified host name of the client at the other end of this connection (its certificate's first DNS name, else the
    common name), normalised; empty without TLS, without a certificate, with one of a CA that names no hosts, and before
    the handshake is over.
    """
    connection = _connection(transport)
    return "" if connection is None else connection.peer_name


def _connection(transport: Any) -> ServerConnection | None:
    handle = getattr(transport, "getHandle", None)
    connection = handle() if handle is not None else None
    return connection if isinstance(connection, ServerConnection) else None


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    What TLS connections are made from: new ones follow the files, those that are open stay as they are.

    To be given to ``TLSMemoryBIOFactory`` and to ``transport.startTLS``.

    :param name: of the listener, for the log.
    :param authorities: further CAs of clients, as they are now.
    :param identifying: those of all the CAs whose certificates say which host it is, as they are now; None: all. Who
        shows another one's is let in, and is nobody.
    :param refused: told the reason of each refusal, for the metric.
    :param protocols: offered by ALPN, the best first.
    :raise ValueError: a file cannot be used; the text names the setting and what to do.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        files: TLSFiles,
        *,
        client_auth: ClientAuth,
        authorities: Callable[[], Sequence[x509.Certificate]] = tuple,
        identifying: Callable[[], Sequence[x509.Certificate]] | None = None,
        refused: Callable[[str], None] = lambda reason: None,
        protocols: tuple[bytes, ...] = (),
        in_thread: InThread,
        now: Now,
        monotonic: Monotonic,
    ) -> None:
        self._name = name
        self._files = files
        self._client_auth = client_auth
        self._authorities = authorities
        self._identifying = identifying
        self._refused = refused
        self._protocols = protocols
        self._in_thread = in_thread
        self._now = now
        self._monotonic = monotonic
        self._trouble = ""
        self._warned: tuple[str, ...] = ()
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._signature = self._look()
        self._loaded = self._load()
        self._warn()

    # -- following the files ------------------------------------------------------------------------------------------
    async def refresh(self) -> bool:
        """
        Use changed files for connections from now on; whether there were any. What is unusable, as half a renewal is,
        changes nothing; it is logged once, and looked at again the next time.
        """
        try:
            loaded = await self._in_thread(self._load_if_changed)
        except ValueError as problem:
            if str(problem) != self._trouble:
                self._trouble = str(problem)
                self._log.error(
                    "{name}: {problem}. What was read before stays in force.", name=self._name, problem=problem
                )
            return False
        self._trouble = ""
        if loaded is None:
            return False
        self._loaded, self._signature = loaded
        self._log.info("{name}: certificates were read again", name=self._name)
        self._warn()
        return True

    def _look(self) -> tuple[object, ...]:
        """What tells changed inputs from these."""
        found: list[object] = [certificate.fingerprint(SHA256()) for certificate in self._authorities()]
        if self._identifying is not None:
            found.append(tuple(certificate.fingerprint(SHA256()) for certificate in self._identifying()))
        for path in self._files.paths:
            try:
                about = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((about.st_ino, about.st_mtime_ns, about.st_size))
        return tuple(found)

    def _load_if_changed(self) -> tuple[_Loaded, tuple[object, ...]] | None:
        # looked at first: what changes while it is read is read again the next time
        signature = self._look()
        if signature == self._signature:
            return None
        return self._load(), signature

    def _load(self) -> _Loaded:
        chain, key = server_certificate(self._files.certificate, self._files.key)
        authorities = list(self._authorities())
        if self._files.ca:
            raw = read_file("IDENTREE_LDAP_TLS_CA_CERT", self._files.ca)
            authorities.extend(authorities_in(raw, "IDENTREE_LDAP_TLS_CA_CERT", self._files.ca))
        if self._client_auth is ClientAuth.REQUIRED and not authorities:
            raise ValueError(
                f"{self._name}: there is no CA that clients' certificates could be of; set IDENTREE_LDAP_TLS_CA_CERT "
                "or IDENTREE_MTLS_CA_CERT, or IDENTREE_LDAP_TLS_CLIENT_AUTH=optional"
            )
        revoked: Revoked = {}
        warnings: list[str] = []
        if self._files.crl and authorities:
            raw = read_file("IDENTREE_MTLS_CRL_FILE", self._files.crl, CRL_BYTES)
            revoked, ends = revocations(raw, authorities, self._files.crl)
            if ends is not None and ends < self._now():
                warnings.append(
                    f"IDENTREE_MTLS_CRL_FILE: {self._files.crl} was to be replaced by {ends.isoformat()}; what it "
                    "revokes stays revoked, and what was revoked since is not"
                )
        left = chain[0].not_valid_after_utc - self._now()
        if left < timedelta():
            warnings.append(f"IDENTREE_TLS_CERT_FILE: {self._files.certificate} has expired; clients will refuse it")
        return _Loaded(
            context=self._context(chain, key, authorities),
            revoked=revoked,
            identifying=None if self._identifying is None else frozenset(self._identifying()),
            warnings=tuple(warnings),
            ends=chain[0].not_valid_after_utc,
        )

    @property
    def ends_at(self) -> datetime:
        """When our certificate expires."""
        return self._loaded.ends

    def _warn(self) -> None:
        for warning in self._loaded.warnings:
            if warning not in self._warned:
                self._log.warn("{name}: {warning}", name=self._name, warning=warning)
        self._warned = self._loaded.warnings

    def _context(
        self, chain: Sequence[x509.Certificate], key: Any, authorities: Sequence[x509.Certificate]
    ) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(
            SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        # a session that is taken up again would pass by the checks of the certificate
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"identree")
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
        if self._client_auth is not ClientAuth.NONE and authorities:
            store = context.get_cert_store()
            assert store is not None
            for authority in authorities:
                store.add_cert(crypto.X509.from_cryptography(authority))
                # told to clients: a browser would otherwise offer its user every certificate that there is
                context.add_client_ca(authority)
            # the CA of clients may itself stand below another one, which is not asked for here
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            mode = SSL.VERIFY_PEER
            if self._client_auth is ClientAuth.REQUIRED:
                mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            context.set_verify(mode, _verified)
            context.set_verify_depth(CHAIN_DEPTH)
        if self._protocols:
            ours = self._protocols

            def choose(connection: SSL.Connection, offered: list[bytes]) -> Any:
                return next((one for one in ours if one in offered), SSL.NO_OVERLAPPING_PROTOCOLS)

            context.set_alpn_select_callback(choose)
        # the last: it makes a connection for a trial, and a context that was used cannot be changed
        context.set_cipher_list(CIPHERS)
        return context

    # -- connections --------------------------------------------------------------------------------------------------
    def spoiled(self, transport: Any) -> str:
        """
        Why an open connection must end: ``expired`` or ``revoked`` says what became of the certificate that the client
        showed when it came; empty while all is well.
        """
        connection = _connection(transport)
        if connection is None or connection.shown is None:
            return ""
        issuer, serial, ends = connection.shown
        if serial in self._loaded.revoked.get(issuer, ()):
            return "revoked"
        return "expired" if ends < self._now() else ""

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        loaded = self._loaded
        connection = ServerConnection(loaded.context, None)
        connection.revoked, connection.identifying = loaded.revoked, loaded.identifying

        def failed(reason: str) -> None:
            peer = tlsProtocol.transport.getPeer() if tlsProtocol.transport is not None else None
            self._refuse(str(getattr(peer, "host", "") or "-"), reason)

        connection.failed = failed
        return connection

    def _refuse(self, address: str, reason: str) -> None:
        self._refused(reason)
        key, now = (throttle_key(address), reason), self._monotonic()
        logged = self._logged.get(key)
        if logged is not None and now - logged < REFUSAL_LOG_SECONDS:
            return
        self._logged[key] = now
        self._logged.move_to_end(key)
        if len(self._logged) > REMEMBERED_REFUSALS:
            self._logged.popitem(last=False)
        self._log.warn(
            "TLS_REJECTED {listener} client {remote_addr}: {words}",
            listener=self._name,
            remote_addr=address,
            words=WORDS[reason],
            attributes={"remote_addr": address, "reason": reason},
        )


def _verified(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    """OpenSSL asks for each certificate of the chain, and for each fault that it finds."""
    refusal = ""
    if not ok:
        refusal = _REASONS.get(code, "bad_certificate")
    elif isinstance(connection, ServerConnection) and connection.revoked:
        shown = certificate.to_cryptography()
        if shown.serial_number in connection.revoked.get(shown.issuer, ()):
            refusal = "revoked"
    if refusal and isinstance(connection, ServerConnection) and not connection.refusal:
        connection.refusal = refusal
    return not refusal


def _ending(problem: SSL.Error) -> str:
    said = " ".join(str(part) for entry in (problem.args[0] if problem.args else ()) for part in entry).lower()
    return next((reason for part, reason in _ENDINGS if part in said), "handshake")


# -- files ------------------------------------------------------------------------------------------------------------
def server_certificate(certificate_file: str, key_file: str) -> tuple[tuple[x509.Certificate, ...], Any]:
    """
    The chain that the certificate file holds, leaf first, and the leaf's key.

    :raise ValueError: a file cannot be read, holds no PEM, or the key is another certificate's.
    """
    setting = "IDENTREE_TLS_CERT_FILE"
    try:
        chain = certificates_in(read_file(setting, certificate_file))
    except CertificateMalformed:
        chain = ()
    if not chain:
        raise ValueError(f"{setting}: {certificate_file} holds no certificate in PEM form")
    setting = "IDENTREE_TLS_KEY_FILE"
    raw = read_file(setting, key_file)
    try:
        key: Any = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{setting}: {key_file} holds no unencrypted private key in PEM form") from None
    if key.public_key() != chain[0].public_key():
        raise ValueError(f"{setting}: {key_file} is not the key of the first certificate in {certificate_file}")
    return chain, key


def revocations(raw: bytes, authorities: Sequence[x509.Certificate], path: str) -> tuple[Revoked, datetime | None]:
    """
    What the lists in ``raw`` revoke, and when the first of them was to be replaced.

    :raise ValueError: no list, a list that none of the authorities signed, or one of a kind that means more than what
        it lists.
    """
    setting = "IDENTREE_MTLS_CRL_FILE"
    try:
        lists = [x509.load_pem_x509_crl(found) for found in _CRL.findall(raw)]
    except ValueError:
        raise ValueError(f"{setting}: {path} holds a malformed revocation list") from None
    if not lists:
        raise ValueError(f"{setting}: {path} holds no revocation list in PEM form")
    revoked: dict[x509.Name, frozenset[int]] = {}
    ends = []
    for one in lists:
        if not any(_signed_by(one, authority) for authority in authorities):
            raise ValueError(
                f"{setting}: {path} holds a revocation list of {one.issuer.rfc4514_string()} that none of the CAs of "
                "clients has signed"
            )
        try:
            if any(isinstance(part.value, x509.DeltaCRLIndicator) for part in one.extensions):
                raise ValueError("delta")
            serials = set()
            for entry in one:
                if any(isinstance(part.value, x509.CertificateIssuer) for part in entry.extensions):
                    raise ValueError("indirect")
                serials.add(entry.serial_number)
        except ValueError:
            raise ValueError(
                f"{setting}: {path}: the list of {one.issuer.rfc4514_string()} is a delta or indirect one, or "
                "malformed; a complete list of the CA's own is wanted"
            ) from None
        revoked[one.issuer] = revoked.get(one.issuer, frozenset()) | serials
        if one.next_update_utc is not None:
            ends.append(one.next_update_utc)
    return revoked, min(ends, default=None)


def _signed_by(one: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if one.issuer != authority.subject:
        return False
    try:
        return one.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
