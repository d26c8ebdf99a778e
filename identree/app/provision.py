"""
What a host gets to bind to the directory: address, name, password and, with mTLS, a certificate (spec/ldap section 7,
spec/http-api section 7.5). Also what is known of all certificates: when they end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from twisted.logger import Logger

from identree.app.authority import Authority, CannotIssue, Issued
from identree.app.hosts import Credential, Hosts
from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now
from identree.core.addresses import throttle_key
from identree.core.errors import HostnameMismatch, Invalid, Refused, StorageUnavailable, Unauthorized
from identree.core.events import CertificateIssued
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from identree.core.names import normalised_hostname
from identree.core.tokens import host_bind_password
from identree.settings.values import Settings
from identree.storage.interface import HostCertificate, Store

# Hosts whose certificates end within this are counted in the health report; of the CA, this is when warnings begin.
EXPIRY_WARNING = timedelta(days=30)
# Hosts with a time series of their own, those first whose certificates end first: a series costs some 500 bytes.
MEASURED_HOSTS = 1000
# Hosts that are looked at for the health report, at about 200 bytes each.
REMEMBERED_HOSTS = 10_000
# A warning about the CA is repeated so often while it nears its end.
REPEAT_WARNING = timedelta(days=1)

_HOSTNAME = re.compile(r"[a-zA-Z0-9._-]{1,253}")
_WHERE = "GET /api/client/provision"


class NotEnabled(Refused):
    """``IDENTREE_LDAP_PROVISION_ENABLED`` is off."""

    key = "not_found"


class NotRegistered(Refused):
    """The registry is enabled and does not know the host."""

    key = "hostname_not_registered"


class StillCertified(Refused):
    """Strict mode: the host holds a valid certificate, and the caller shows neither that nor the host's own secret."""

    key = "certificate_still_valid"


class Misconfigured(Exception):
    """A setting is missing without which nobody can be provisioned; the message names it, for the log."""


# -- settings ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What hosts are provisioned with.

    :ivar url: of the directory; empty when none can be derived.
    :ivar secret: root of the bind passwords; empty when there is no secret at all.
    :ivar ca_cert: PEM of the CA that ``IDENTREE_LDAP_TLS_CA_CERT`` names, or empty.
    :ivar strict: ``IDENTREE_MTLS_STRICT_PROVISION``.
    """

    enabled: bool
    url: str
    base_dn: str
    secret: bytes = field(repr=False)
    ca_cert: str = ""
    strict: bool = False

    @classmethod
    def of(cls, settings: Settings, ca_cert: str) -> Terms:
        """:param ca_cert: what ``authority.trusted`` read from ``IDENTREE_LDAP_TLS_CA_CERT``."""
        return cls(
            enabled=settings.ldap_provision_enabled,
            url=directory_url(settings),
            base_dn=settings.ldap_base_dn,
            secret=bind_secret(settings),
            ca_cert=ca_cert,
            strict=settings.mtls_strict_provision,
        )


def bind_secret(settings: Settings) -> bytes:
    """
    The root of the bind passwords of hosts. With mTLS there may be no secret for hosts at all; but sssd refuses to bind
    with an empty password even where the certificate counts, so then they come from the secret of sessions.
    """
    fallback = settings.session_secret or settings.hmac_secret
    return (settings.effective_ldap_secret or fallback).encode()


def serves_ldaps(settings: Settings) -> bool:
    """Whether there are LDAPS and StartTLS: a server certificate, and a CA of clients unless they need none."""
    known = settings.mtls_enabled or bool(settings.ldap_tls_ca_cert)
    return settings.serves_tls and (known or settings.ldap_tls_client_auth == "optional")


def directory_url(settings: Settings) -> str:
    """
    ``IDENTREE_LDAP_EXTERNAL_URL`` as it stands, else made of the external URL's host and the port that listens; empty
    when that is not possible (spec/ldap section 7).
    """
    if settings.ldap_external_url:
        return settings.ldap_external_url
    try:
        host = urlsplit(settings.external_url).hostname or ""
    except ValueError:
        host = ""
    if not host:
        return ""
    if ":" in host:
        host = f"[{host}]"
    if serves_ldaps(settings) and settings.ldap_tls_listen_addr:
        return f"ldaps://{host}:{_port(settings.ldap_tls_listen_addr, '636')}"
    if settings.ldap_listen_addr:
        return f"ldap://{host}:{_port(settings.ldap_listen_addr, '389')}"
    return ""


def _port(address: str, default: str) -> str:
    port = address.rpartition(":")[2]
    return port if port.isascii() and port.isdigit() else default


# -- provisioning -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """:ivar issued: None without mTLS."""

    url: str
    base_dn: str
    bind_dn: str
    bind_password: str = field(repr=False)
    ca_cert: str
    issued: Issued | None


class Provisioning:
    """
    :param terms: as they are now.
    :param throttle: of failed authentications per address; the one that ``hosts`` looks at.
    :param authority: None without mTLS.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        terms: Callable[[], Terms],
        hosts: Hosts,
        registry: Callable[[], HostRegistry],
        throttle: FailureThrottle,
        authority: Authority | None,
        store: Store,
        certificates: Certificates,
        now: Now,
        monotonic: Monotonic,
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self._terms = terms
        self._hosts = hosts
        self._registry = registry
        self._throttle = throttle
        self._authority = authority
        self._store = store
        self._certificates = certificates
        self._now = now
        self._monotonic = monotonic
        self._journal = journal
        self._metrics = metrics

    async def provision(self, presented: Credential, hostname: str, address: str) -> Provisioned:
        """
        The checks stand in the order of the contract.

        :param hostname: as it was sent, without spaces around it.
        :raise NotEnabled, Throttled, Unauthorized, Invalid, NotRegistered, HostnameMismatch, StillCertified: refused.
        :raise Misconfigured: a setting is missing.
        :raise CannotIssue: the CA gave no certificate.
        """
        terms = self._terms()
        if not terms.enabled:
            raise NotEnabled
        self._hosts.admit(presented, address)
        if not self._hosts.known(presented):
            self._journal.warn("PROVISION_REJECTED unauthorized", remote_addr=address)
            named = hostname if _HOSTNAME.fullmatch(hostname) else ""
            self._hosts.note_failure(f"invalid shared secret: {_WHERE}", address, hostname=named)
            self._throttle.failed(throttle_key(address), self._monotonic())
            raise Unauthorized
        if not hostname:
            raise Invalid("X-Hostname header required")
        name = normalised_hostname(hostname)
        if not _HOSTNAME.fullmatch(hostname) or not name:
            raise Invalid("invalid hostname")
        registry = self._registry()
        if registry.enabled and registry.entry(hostname) is None:
            self._journal.warn("PROVISION_REJECTED hostname not registered", hostname=hostname, remote_addr=address)
            self._hosts.note_failure(f"hostname not registered: {_WHERE}", address, hostname=hostname)
            raise NotRegistered
        own = presented.certificate == name or registry.matches(hostname, presented.secret)
        if not own and not self._hosts.is_global(presented):
            # the credential of one host must not fetch the identity of another
            self._journal.warn(
                "PROVISION_REJECTED hostname mismatch",
                hostname=hostname,
                certificate=presented.certificate,
                remote_addr=address,
            )
            self._hosts.note_failure(f"hostname mismatch: {_WHERE}", address, hostname=hostname)
            self._throttle.failed(throttle_key(address), self._monotonic())
            raise HostnameMismatch
        self._check(terms)
        issued = None
        if self._authority is not None:
            issued = await self._issue(self._authority, hostname, name, address, force=own or not terms.strict)
        self._journal.info("PROVISION", hostname=hostname, remote_addr=address)
        return Provisioned(
            url=terms.url,
            base_dn=terms.base_dn,
            bind_dn=f"uid={hostname},ou=identree-hosts,{terms.base_dn}",
            bind_password=host_bind_password(terms.secret, hostname) if terms.secret else "",
            ca_cert=terms.ca_cert,
            issued=issued,
        )

    async def forget(self, hostname: str) -> bool:
        """
        Strict mode: let the host be provisioned anew with the shared secret, though its certificate is still valid (it
        was lost with the host's disk). Whether there was one.
        """
        return await self._store.forget_certificate(normalised_hostname(hostname))

    def _check(self, terms: Terms) -> None:
        missing = (
            ("a shared secret or mTLS", bool(terms.secret) or self._authority is not None),
            ("IDENTREE_LDAP_BASE_DN", bool(terms.base_dn)),
            ("IDENTREE_LDAP_EXTERNAL_URL, and none can be derived from IDENTREE_EXTERNAL_URL", bool(terms.url)),
        )
        for what, there in missing:
            if not there:
                self._log.error("provision: hosts cannot be provisioned without {what}", what=what)
                raise Misconfigured(what)

    async def _issue(self, authority: Authority, hostname: str, name: str, address: str, *, force: bool) -> Issued:
        now = self._now()
        if not force:
            # looked at first, so that a refusal costs no key; what counts is the look in the transaction below
            live = await self._store.host_certificate(name)
            if live is not None and live.expires_at > now:
                raise self._still_certified(hostname, address)
        try:
            issued = await authority.issue(hostname)
        except CannotIssue as problem:
            self._log.error("provision: no certificate for {hostname}: {problem}", hostname=hostname, problem=problem)
            raise
        certificate = HostCertificate(hostname=name, serial=issued.serial, issued_at=now, expires_at=issued.not_after)
        event = CertificateIssued(at=now, username=hostname, hostname=hostname, code=issued.serial, remote_addr=address)
        # committed before the answer: there is no certificate in the world that the record does not know
        if not await self._store.record_certificate(certificate, event, force=force):
            raise self._still_certified(hostname, address)
        self._certificates.issued(certificate)
        self._metrics.certificates_issued.inc()
        self._journal.info("CERT_ISSUED", hostname=hostname, serial=issued.serial, expires=issued.not_after.isoformat())
        return issued

    def _still_certified(self, hostname: str, address: str) -> StillCertified:
        self._journal.warn("PROVISION_REJECTED certificate still valid", hostname=hostname, remote_addr=address)
        self._hosts.note_failure(f"certificate still valid: {_WHERE}", address, hostname=hostname)
        return StillCertified()


# -- expiry -----------------------------------------------------------------------------------------------------------
class Certificates:
    """
    When the certificates of hosts and the CA end: metrics, warnings and the health report.

    :param authority: None without mTLS; then there is nothing to watch.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        authority: Authority | None,
        registry: Callable[[], HostRegistry],
        now: Now,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._authority = authority
        self._registry = registry
        self._now = now
        self._metrics = metrics
        self._ends: dict[str, datetime] = {}
        self._measured: frozenset[str] = frozenset()
        self._warned_at: datetime | None = None

    async def measure(self) -> None:
        """At the start, then hourly."""
        if self._authority is None:
            return
        self._watch_ca(self._authority)
        try:
            known = await self._store.host_certificates(REMEMBERED_HOSTS)
        except StorageUnavailable as problem:
            self._log.warn("mTLS: the certificates of hosts could not be looked at: {problem}", problem=problem)
            return
        self._ends = {one.hostname: one.expires_at for one in known}
        self._show()

    def issued(self, certificate: HostCertificate) -> None:
        """A certificate was recorded."""
        if certificate.hostname in self._ends or len(self._ends) < REMEMBERED_HOSTS:
            self._ends[certificate.hostname] = certificate.expires_at
        if certificate.hostname in self._measured or len(self._measured) < MEASURED_HOSTS:
            self._measured |= {certificate.hostname}
            self._set(certificate.hostname, certificate.expires_at)

    async def health(self) -> str:
        """``ok``, or how many hosts' certificates end soon or have ended. Never fails and asks nobody."""
        soon = self._now() + EXPIRY_WARNING
        registry = self._registry()
        count = sum(1 for name, end in self._ends.items() if end < soon and _registered(registry, name))
        return f"warning: {count} hosts have certs expiring within 30 days" if count else "ok"

    def _show(self) -> None:
        registry = self._registry()
        first = sorted((end, name) for name, end in self._ends.items() if _registered(registry, name))
        shown = first[:MEASURED_HOSTS]
        for end, name in shown:
            self._set(name, end)
        names = frozenset(name for _, name in shown)
        for gone in self._measured - names:
            self._metrics.mtls_cert_expires.remove(gone)
        self._measured = names

    def _set(self, name: str, end: datetime) -> None:
        self._metrics.mtls_cert_expires.labels(name).set((end - self._now()).total_seconds())

    def _watch_ca(self, authority: Authority) -> None:
        now, end = self._now(), authority.expires_at
        self._metrics.mtls_ca_expires.set((end - now).total_seconds())
        if end - now > EXPIRY_WARNING:
            return
        if self._warned_at is None or now - self._warned_at >= REPEAT_WARNING:
            self._warned_at = now
            self._log.warn(
                "mTLS: the CA {what} on {end}; make a new one, put its certificate before the old one in the file, and "
                "provision every host again",
                what="expires" if end > now else "expired",
                end=end.isoformat(),
            )


def _registered(registry: HostRegistry, name: str) -> bool:
    return not registry.enabled or registry.entry(name) is not None
