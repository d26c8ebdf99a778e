"""What a host asks to be set up for the directory: ``GET /api/client/provision`` (spec/http-api section 7.5)."""

from __future__ import annotations

from twisted.web.iweb import IRequest

from identree.app.authority import CannotIssue
from identree.app.metrics import Metrics
from identree.app.provision import Misconfigured, NotEnabled, NotRegistered, Provisioned, Provisioning, StillCertified
from identree.core import errors
from identree.core.errors import Refused
from identree.web import replies
from identree.web.reading import Addresses, Credentials, first_header
from identree.web.router import Router, TextAnswers

PROVISION_PATH = b"/api/client/provision"
# The statuses of refusals, for the metric.
STATUSES = (400, 401, 403, 404, 429, 500, 503)

_TOO_MANY = "too many failed attempts \u2014 try again later"


class ProvisionAnswers(TextAnswers):
    """``T(...)``, each refusal counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        for status in STATUSES:
            metrics.provision_refused.labels(str(status))

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, NotEnabled):
            return self.say(request, 404, "not found")
        if isinstance(refusal, errors.Throttled):
            replies.retry_after(request, refusal.retry_after)
            return self.say(request, 429, _TOO_MANY)
        if isinstance(refusal, errors.Unauthorized):
            # RFC 9110 section 15.5.2 wants a scheme named; none is registered for a secret in a header of its own
            request.responseHeaders.setRawHeaders(b"WWW-Authenticate", [b"Identree"])
            return self.say(request, 401, "unauthorized")
        if isinstance(refusal, errors.Invalid):
            return self.say(request, 400, refusal.detail)
        if isinstance(refusal, NotRegistered):
            return self.say(request, 403, "hostname not registered")
        if isinstance(refusal, StillCertified):
            return self.say(
                request,
                403,
                "the host's certificate is still valid: show it, or the host's own secret; or let an admin reset it",
            )
        return self.say(request, 403, "hostname mismatch")

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        self._metrics.provision_refused.labels("503").inc()
        return super().unavailable(request, error)

    def say(self, request: IRequest, status: int, message: str) -> bytes:
        self._metrics.provision_refused.labels(str(status)).inc()
        return replies.text(request, status, message)


class ProvisionRoutes:
    router = Router()

    def __init__(
        self, *, provisioning: Provisioning, credentials: Credentials, addresses: Addresses, metrics: Metrics
    ) -> None:
        self.answers = ProvisionAnswers(metrics)
        self._provisioning = provisioning
        self._credentials = credentials
        self._addresses = addresses

    @router.route("/api/client/provision", methods=["GET"])
    async def provision(self, request: IRequest) -> bytes:
        hostname = first_header(request, b"X-Hostname").decode("latin-1").strip(" \t")
        try:
            provisioned = await self._provisioning.provision(
                self._credentials.of(request), hostname, self._addresses.of(request)
            )
        except Misconfigured:
            return self.answers.say(request, 500, "server misconfigured")
        except CannotIssue:
            return self.answers.say(request, 500, "failed to issue client certificate")
        # the answer holds a password and a private key
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
        return replies.send_json(request, 200, _members(provisioned))


def _members(provisioned: Provisioned) -> dict[str, object]:
    """In the order of the contract."""
    value: dict[str, object] = {
        "ldap_url": provisioned.url,
        "base_dn": provisioned.base_dn,
        "bind_dn": provisioned.bind_dn,
        "bind_password": provisioned.bind_password,
    }
    if provisioned.ca_cert:
        value["tls_ca_cert"] = provisioned.ca_cert
    issued = provisioned.issued
    if issued is not None:
        value["client_cert"] = issued.certificate
        value["client_key"] = issued.key
        value["ca_cert"] = issued.ca
        value["cert_serial"] = issued.serial
    return value
