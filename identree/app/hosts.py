"""
Which host is asking, and may it (spec/http-api section 5).

The ways to prove it: the global shared secret, the host's own secret from the registry, or a client certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from identree.app.journal import Journal
from identree.app.metrics import Metrics
from identree.app.ports import Monotonic
from identree.app.trail import Trail
from identree.core.addresses import throttle_key
from identree.core.challenge import Challenge
from identree.core.errors import CredentialMismatch, HostnameMismatch, NotListed, Throttled, Unauthorized
from identree.core.events import AuthenticationFailed
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from identree.core.tokens import same

# Where a host asks for a grace session: the contract has another log line for it than for the other paths.
GRACE_STATUS = "GET /api/grace-status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """
    What a host presented.

    :ivar secret: the value of ``X-Shared-Secret``, empty when absent.
    :ivar certificate: the verified name in its client certificate, empty when there is none.
    """

    secret: bytes = b""
    certificate: str = ""

    def __repr__(self) -> str:
        return f"Credential(secret={'***' if self.secret else 'none'}, certificate={self.certificate!r})"


class Hosts:
    """
    :param shared_secret: the global one; empty when none is configured, which then never matches.
    :param registry: the host registry as it is now.
    :param throttle: failed authentications per address.
    :param certificate_required: with mTLS on, only a client certificate opens a challenge.
    :param trail: gets the audit records of failures; None: there are none.
    """

    def __init__(
        self,
        *,
        shared_secret: bytes,
        registry: Callable[[], HostRegistry],
        throttle: FailureThrottle,
        monotonic: Monotonic,
        journal: Journal,
        metrics: Metrics,
        certificate_required: bool = False,
        trail: Trail | None = None,
    ) -> None:
        self._shared_secret = shared_secret
        self._registry = registry
        self._throttle = throttle
        self._monotonic = monotonic
        self._journal = journal
        self._metrics = metrics
        self._certificate_required = certificate_required
        self._trail = trail

    def is_global(self, credential: Credential) -> bool:
        return bool(self._shared_secret) and bool(credential.secret) and same(credential.secret, self._shared_secret)

    def certified(self, name: str) -> bool:
        """Whether a client certificate of this name counts: an enabled registry must know the host."""
        registry = self._registry()
        if registry.enabled and registry.entry(name) is None:
            self._journal.warn("MTLS_REJECTED hostname not registered", hostname=name)
            return False
        return True

    def known(self, credential: Credential) -> bool:
        """The *API secret* of the contract: a certificate, the global secret, or any registered host's secret."""
        if credential.certificate or self.is_global(credential):
            return True
        registry = self._registry()
        return registry.enabled and bool(credential.secret) and registry.any_host(credential.secret) is not None

    def admit(self, credential: Credential, address: str) -> None:
        """
        Hold off an address that failed too often. A right credential is always admitted: one misconfigured host
        behind a NAT must not lock out its neighbours.

        :raise Throttled: with the seconds to wait.
        """
        blocked_seconds = self._throttle.retry_after(throttle_key(address), self._monotonic())
        if blocked_seconds > 0 and not self.known(credential):
            self.note_failure("too many failures", address)
            raise Throttled(blocked_seconds)

    def authenticate(self, credential: Credential, address: str, where: str) -> None:
        """
        :param where: method and path without the id, for the log.
        :raise Unauthorized: none of the ways; counted against the address.
        """
        if not self.known(credential):
            if where == GRACE_STATUS:
                self._journal.warn("AUTH_FAILURE grace-status invalid secret", remote_addr=address)
            else:
                self._journal.warn("AUTH_FAILURE invalid shared secret", path=where, remote_addr=address)
            self.note_failure(f"invalid shared secret: {where}", address)
            raise self._failed(address)

    def authenticate_challenge(self, credential: Credential, hostname: str, username: str, address: str) -> str:
        """
        Whether this caller may create a challenge for ``username`` on ``hostname``.

        :returns: the host name that the challenge gets: the certificate's where there is one.
        :raise Unauthorized: bad credential, counted against the address.
        :raise NotListed: right credential, but the registry does not list the user for the host; not counted, or ten
            attempts of one person would lock out the host.
        """
        registry = self._registry()
        if credential.certificate:
            hostname = credential.certificate
        elif self._certificate_required:
            self._no_challenge("mTLS: no client certificate", hostname, username, address)
            raise self._failed(address)
        elif self.is_global(credential):
            if registry.enabled and not hostname:
                self._no_challenge("hostname required when host registry is enabled", hostname, username, address)
                raise NotListed("hostname required")
        elif not (registry.enabled and credential.secret and registry.matches(hostname, credential.secret)):
            self._no_challenge("unauthorized", hostname, username, address)
            raise self._failed(address)
        if registry.enabled and not registry.lists(hostname, username):
            self._no_challenge("user not authorized on this host", hostname, username, address)
            raise NotListed(f"{username} is not listed for {hostname}")
        return hostname

    def owns(self, credential: Credential, challenge: Challenge, hostname: str, address: str) -> None:
        """
        Whether the challenge is the caller's to read and cancel.

        :param hostname: normalised, as the caller sent it.
        :raise HostnameMismatch: it is another host's, even with the right secret.
        :raise CredentialMismatch: the secret is another host's.
        """
        if (credential.certificate or hostname) != challenge.hostname:
            self._journal.warn(
                "AUTH_FAILURE poll hostname mismatch",
                challenge_host=challenge.hostname,
                req_host=hostname,
                remote_addr=address,
            )
            self._not_its_own("hostname mismatch", challenge, address)
            raise HostnameMismatch("hostname mismatch")
        if not self._speaks_for(credential, challenge.hostname):
            self._journal.warn("AUTH_FAILURE poll credential mismatch", host=challenge.hostname, remote_addr=address)
            self._not_its_own("credential mismatch", challenge, address)
            raise CredentialMismatch("credential does not match challenge hostname")

    def speaks_for(self, credential: Credential, hostname: str, address: str) -> None:
        """:raise HostnameMismatch: the credential is not ``hostname``'s nor the global one."""
        if not self._speaks_for(credential, hostname):
            self._journal.warn("AUTH_FAILURE grace-status hostname mismatch", host=hostname, remote_addr=address)
            self.note_failure(f"hostname mismatch: {GRACE_STATUS}", address, hostname=hostname)
            raise HostnameMismatch("hostname mismatch")

    def group(self, hostname: str) -> str:
        """The host's group in the registry, or empty."""
        return self._registry().group(hostname)

    def signing_secret(self, credential: Credential) -> bytes:
        """
        The key of status tokens: an agent sends its secret exactly when it will verify, and verifies with that value.
        With a certificate only, the global secret if there is one. (spec/http-api section 4.5)
        """
        return credential.secret or self._shared_secret

    def _speaks_for(self, credential: Credential, hostname: str) -> bool:
        if credential.certificate:
            return credential.certificate == hostname
        registry = self._registry()
        return self.is_global(credential) or not registry.enabled or registry.matches(hostname, credential.secret)

    def note_failure(
        self, reason: str, address: str, *, hostname: str = "", username: str = "", code: str = ""
    ) -> None:
        """
        Put a failed authentication of a host into the audit trail, which bounds what a stranger can put there.

        :param reason: what was wrong, and where.
        :param hostname: as it was sent; empty when it was not, or is no host name.
        """
        if self._trail is not None:
            self._trail.note(
                AuthenticationFailed,
                username=username,
                hostname=hostname,
                code=code,
                reason=reason,
                remote_addr=address,
            )

    def _no_challenge(self, reason: str, hostname: str, username: str, address: str) -> None:
        self._journal.warn("AUTH_FAILURE", reason=reason, remote_addr=address, host=hostname, user=username)
        self.note_failure(f"{reason}: POST /api/challenge", address, hostname=hostname, username=username)

    def _not_its_own(self, reason: str, challenge: Challenge, address: str) -> None:
        """What the caller said of itself comes from the query string, so the record names only the challenge."""
        self.note_failure(
            f"{reason}: /api/challenge/",
            address,
            hostname=challenge.hostname,
            username=challenge.username,
            code=challenge.user_code,
        )

    def _failed(self, address: str) -> Unauthorized:
        self._throttle.failed(throttle_key(address), self._monotonic())
        self._metrics.auth_failures.inc()
        return Unauthorized()
