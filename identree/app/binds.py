"""
Who is it that binds to the directory, and may it (spec/ldap section 6.2).

The ways to prove it: the password of the service account, the derived password of a host, or the client certificate of
this very connection. A certificate alone is no bind: SASL EXTERNAL, or a bind with the host's own name, makes it one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic
from identree.app.trail import Trail
from identree.core import names
from identree.core.addresses import throttle_key
from identree.core.errors import Invalid
from identree.core.events import LdapBindFailed
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle, SlidingWindow
from identree.core.names import normalised_hostname
from identree.core.tokens import host_bind_password, same
from identree.directory.dn import escape, normal, parse

HOSTS_OU = "ou=identree-hosts"
# Lines about refused binds, per address: a flood of them must not become a flood of the log.
REFUSAL_LINES = 10
REFUSAL_LINES_SECONDS = 60
# For so long a right password of the service account speaks for an address: sssd binds anew after 15 minutes at the
# latest, and hosts that were off for longer have at most the length of a block to wait.
PROVEN_SECONDS = 3600
# Addresses that are remembered for that, about 200 bytes each; only right passwords bring one in.
PROVEN_ADDRESSES = 50_000
# Of a stranger's DN, in characters; the longest host DN of ours is hardly longer.
SHOWN_CHARACTERS = 256
# A stranger's DN that is longer is not taken apart to name him, in characters: each throttled bind would cost up to
# 9 ms. The longest of ours is about 800.
NAMED_CHARACTERS = 1024


class BindCode(IntEnum):
    """The result codes of RFC 4511 that a bind can have here."""

    SUCCESS = 0
    STRONGER_AUTH_REQUIRED = 8
    INAPPROPRIATE_AUTHENTICATION = 48
    INVALID_CREDENTIALS = 49
    INSUFFICIENT_ACCESS_RIGHTS = 50
    BUSY = 51
    UNWILLING_TO_PERFORM = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """
    The other end of a connection.

    :ivar address: without port.
    :ivar connection: its number, for the log.
    :ivar certificate: the verified name in this connection's client certificate, empty when there is none.
    """

    address: str
    connection: int
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """
    What a connection is after a successful bind that was not anonymous.

    :ivar dn: as it was bound with, or made from the certificate.
    :ivar hostname: normalised; empty for the service account.
    """

    dn: str
    hostname: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    :ivar bound: None after every failure and after an anonymous bind: the connection is anonymous then.
    :ivar throttled: too many failures came before this one; the caller closes the connection, so that each further
        guess costs a new one.
    """

    code: BindCode
    bound: Bound | None = None
    throttled: bool = False


class Binds:
    """
    Back-off is per address and per DN. As for HTTP (:meth:`identree.app.hosts.Hosts.admit`), a right credential of a
    host is always admitted: one misconfigured host behind a NAT must not lock out its neighbours, nor a stranger the
    host whose DN he tries. A host's password has 256 bits, and nobody guesses it.

    The service account's was chosen by a person. It is not compared while the address is blocked, unless it was right
    from there not long ago. Failures from other addresses never count for that: they would lock out everybody.

    :param base_dn: as the operator wrote it.
    :param service_dn, service_password: the read-only account; both empty when there is none.
    :param ldap_secret: the root of the hosts' passwords; empty: no host binds with a password.
    :param provisioning: whether hosts bind as themselves at all; read at each bind and operation.
    :param anonymous: whether searches need no bind; read likewise.
    :param by_address, by_dn: failed binds.
    :param trail: gets the audit records of failed binds; None: there are none.
    """

    def __init__(
        self,
        *,
        base_dn: str,
        service_dn: str,
        service_password: str,
        ldap_secret: bytes,
        registry: Callable[[], HostRegistry],
        provisioning: Callable[[], bool],
        anonymous: Callable[[], bool],
        by_address: FailureThrottle,
        by_dn: FailureThrottle,
        monotonic: Monotonic,
        journal: Journal,
        metrics: Metrics,
        trail: Trail | None = None,
    ) -> None:
        self._service_dn = service_dn
        self._service_normal = _normal(service_dn)
        self._service_password = service_password
        self._ldap_secret = ldap_secret
        self._registry = registry
        self._provisioning = provisioning
        self._anonymous = anonymous
        self._by_address, self._by_dn = by_address, by_dn
        self._monotonic = monotonic
        self._journal = journal
        self._metrics = metrics
        self._trail = trail
        self._lines = SlidingWindow(REFUSAL_LINES, REFUSAL_LINES_SECONDS)
        # one occasion within the time is what makes an address a proven one
        self._proven = SlidingWindow(1, PROVEN_SECONDS, PROVEN_ADDRESSES)
        self._hosts_suffix = f",{HOSTS_OU},{base_dn}"
        self._hosts_normal = _normal(f"{HOSTS_OU},{base_dn}")

    @property
    def anonymous_allowed(self) -> bool:
        return self._anonymous()

    def external_offered(self, peer: Peer) -> bool:
        """Whether SASL EXTERNAL can succeed on this connection."""
        return bool(peer.certificate) and self._provisioning()

    def current(self, bound: Bound) -> bool:
        """Whether what was bound would still be let in: a removed host is out at once."""
        return not bound.hostname or (self._provisioning() and self._registered(bound.hostname))

    def hostname_of(self, dn: str) -> str:
        """
        The host that a bind DN names, as it is spelled there, or empty (spec/ldap section 6.2.1).

        Between prefix and suffix the name is taken literally, as deployed hosts were told. Another spelling of the same
        DN, with spaces or escapes, is understood as well.
        """
        suffix = self._hosts_suffix
        if dn[:4].lower() == "uid=" and dn[-len(suffix) :].lower() == suffix.lower() and len(dn) > 4 + len(suffix):
            return dn[4 : -len(suffix)]
        try:
            parsed = parse(dn)
        except ValueError:
            return ""
        if parsed.parent is None or not self._hosts_normal or parsed.parent.normal != self._hosts_normal:
            return ""
        [(kind, hostname), *others] = parsed.rdn
        return hostname if kind == "uid" and not others else ""

    def host_dn(self, hostname: str) -> str:
        return f"uid={escape(hostname)}{self._hosts_suffix}"

    def simple(self, dn: str, password: bytes, peer: Peer) -> Outcome:
        """A simple bind of version 3. ``dn`` is what the client sent; text that is no DN is a DN that nobody has."""
        if not dn:
            return self._without_name(password, peer)
        if self._is_service(dn):
            address, now = throttle_key(peer.address), self._monotonic()
            if self._by_address.retry_after(address, now) and self._proven.allowed(address, now):
                return self._throttled(dn, peer)
            # compared in any case, also with the empty password of an unauthenticated bind, which is never right
            if same(password, self._service_password) and password:
                self._proven.record(address, now)
                self._journal.info("LDAP_BIND_OK service account", dn=_shown(dn), conn=peer.connection)
                return Outcome(code=BindCode.SUCCESS, bound=Bound(dn=dn))
            return self._refused("service account", "wrong password", dn, peer, dn=_shown(dn))
        hostname = self.hostname_of(dn) if self._provisioning() else ""
        if not hostname:
            return self._refused("unknown DN", "no such account", dn, peer, dn=_shown(dn))
        if peer.certificate:
            return self._certified(hostname, dn, peer)
        right = bool(self._ldap_secret) and same(password, host_bind_password(self._ldap_secret, hostname))
        if not right:
            return self._refused("provisioned host", "wrong password", dn, peer, hostname=_shown(hostname))
        if not self._registered(hostname):
            return self._refused("provisioned host", "not registered", dn, peer, hostname=_shown(hostname))
        self._journal.info("LDAP_BIND_OK provisioned host", hostname=_shown(hostname), conn=peer.connection)
        return Outcome(code=BindCode.SUCCESS, bound=Bound(dn=dn, hostname=normalised_hostname(hostname)))

    def external(self, authorization: bytes, peer: Peer) -> Outcome:
        """
        SASL EXTERNAL: the name in this connection's certificate (RFC 4513 section 5.2.3).

        :param authorization: the identity that the client wants to act as; empty, or its own one as ``dn:...``.
        """
        if not peer.certificate:
            return Outcome(code=BindCode.INAPPROPRIATE_AUTHENTICATION)
        dn = self.host_dn(normalised_hostname(peer.certificate))
        if not self._provisioning():
            return self._refused("mTLS provisioned host", "provisioning is off", dn, peer, hostname=peer.certificate)
        try:
            wanted = authorization.decode()
        except UnicodeDecodeError:
            wanted = "?"
        if wanted:
            hostname = self.hostname_of(wanted[3:]) if wanted[:3].lower() == "dn:" else ""
            if not hostname:
                return self._refused("mTLS provisioned host", "not its own name", dn, peer, hostname=peer.certificate)
            return self._certified(hostname, wanted[3:], peer)
        return self._certified(peer.certificate, dn, peer)

    def _certified(self, hostname: str, dn: str, peer: Peer) -> Outcome:
        name, kind = normalised_hostname(hostname), "mTLS provisioned host"
        shown = _shown(hostname)
        try:
            own = names.hostname(peer.certificate)
        except Invalid:
            return self._refused(kind, "the certificate names no host", dn, peer, hostname=shown)
        if name != own:
            return self._refused(kind, "not the name in its certificate", dn, peer, hostname=shown)
        if not self._registered(name):
            return self._refused(kind, "not registered", dn, peer, hostname=shown)
        self._journal.info("LDAP_BIND_OK mTLS provisioned host", hostname=shown, conn=peer.connection)
        return Outcome(code=BindCode.SUCCESS, bound=Bound(dn=dn, hostname=name))

    def _without_name(self, password: bytes, peer: Peer) -> Outcome:
        # neither is a wrong credential, so neither counts as a failure
        if password:
            return Outcome(code=BindCode.UNWILLING_TO_PERFORM)
        if not self._anonymous():
            self._line("anonymous", "not allowed", peer)
            self._note("anonymous: not allowed", "", peer)
            return Outcome(code=BindCode.INSUFFICIENT_ACCESS_RIGHTS)
        self._journal.info("LDAP_BIND_OK anonymous", conn=peer.connection)
        return Outcome(code=BindCode.SUCCESS)

    def _is_service(self, dn: str) -> bool:
        if not self._service_dn:
            return False
        if dn.lower() == self._service_dn.lower():
            return True
        # what the operator wrote may be no DN, then only the very same text is meant
        return bool(self._service_normal) and _normal(dn) == self._service_normal

    def _registered(self, hostname: str) -> bool:
        registry = self._registry()
        return not registry.enabled or registry.entry(hostname) is not None

    def _refused(self, kind: str, reason: str, dn: str, peer: Peer, /, **shown: object) -> Outcome:
        now = self._monotonic()
        address, name = throttle_key(peer.address), _throttled_name(dn)
        if self._by_address.retry_after(address, now) or self._by_dn.retry_after(name, now):
            return self._throttled(dn, peer)
        self._metrics.ldap_bind_failures.inc()
        self._by_address.failed(address, now)
        self._by_dn.failed(name, now)
        self._line(kind, reason, peer, **shown)
        self._note(f"{kind}: {reason}", dn, peer, str(shown.get("hostname", "")))
        return Outcome(code=BindCode.INVALID_CREDENTIALS)

    def _throttled(self, dn: str, peer: Peer) -> Outcome:
        self._note("too many failures", dn, peer)
        self._metrics.ldap_bind_failures.inc()
        self._metrics.ldap_throttled.inc()
        return Outcome(code=BindCode.BUSY, throttled=True)

    def _note(self, reason: str, dn: str, peer: Peer, hostname: str = "") -> None:
        if self._trail is not None:
            self._trail.note(
                LdapBindFailed, username=_rdn_value(dn), hostname=hostname, reason=reason, remote_addr=peer.address
            )

    def _line(self, kind: str, reason: str, peer: Peer, /, **shown: object) -> None:
        address, now = throttle_key(peer.address), self._monotonic()
        if self._lines.allowed(address, now):
            self._lines.record(address, now)
            self._journal.warn(
                f"LDAP_BIND_REJECTED {kind}", **shown, conn=peer.connection, reason=reason, remote_addr=peer.address
            )


def _normal(dn: str) -> str:
    """The normalised DN, or empty for text that is none."""
    try:
        return normal(dn)
    except ValueError:
        return ""


def _throttled_name(dn: str) -> str:
    """A key of constant length, whatever a stranger sends."""
    return sha256((_normal(dn) or dn.lower()).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _rdn_value(dn: str) -> str:
    """What the first part of the DN says; empty for text that is no DN, or too long for one of ours."""
    try:
        return "" if len(dn) > NAMED_CHARACTERS else parse(dn).rdn[0][1]
    except (ValueError, IndexError):
        return ""


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
