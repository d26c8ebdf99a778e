"""
``POST /api/enrol``: a host shows its enrolment token and gets a secret of its own.

Request: JSON ``{"token": …, "hostname": …}``, at most :data:`ENROL_BODY_BYTES`. Answer: 201 with ``hostname`` as it is
registered, ``secret`` and ``server_url``. Refusals are ``{"error": …}``: 400 (not of this form), 401 (the token is
unknown, expired or used: not told apart), 403 (the token is another host's; or the registry is off), 409 (the host is
registered already and the token does not say "again"; or the registry is full), 413, 415, 429 with ``Retry-After``, 503
with ``Retry-After``. Only 201 and 401 say that the token is gone.
"""

from __future__ import annotations

from twisted.web.iweb import IRequest

from identree.app.registry import Enrolments
from identree.core import errors, hosts
from identree.core.errors import Invalid, Refused
from identree.web import replies
from identree.web.reading import Addresses, BadJSON, body, cut, is_json, json_object, json_string
from identree.web.router import UNAVAILABLE_TEXT, Router

ENROL_PATH = b"/api/enrol"
# A token, the longest host name, and room for what later versions may add.
ENROL_BODY_BYTES = 2048

_NO_GOOD = (
    "the enrolment token is unknown, expired or used already; let an administrator make another one: "
    "identree enrol HOSTNAME"
)
_TOO_MANY = "too many attempts, try again later"


class EnrolAnswers:
    """``J(...)``: what hosts understand."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, errors.Throttled):
            replies.retry_after(request, refusal.retry_after)
            return replies.json_error(request, 429, _TOO_MANY)
        if isinstance(refusal, errors.Unauthorized):
            # RFC 9110 section 15.5.2 wants a scheme named; none is registered for a token in a body
            request.responseHeaders.setRawHeaders(b"WWW-Authenticate", [b"Identree"])
            return replies.json_error(request, 401, _NO_GOOD)
        if isinstance(refusal, Invalid):
            return replies.json_error(request, 400, refusal.detail)
        if isinstance(refusal, hosts.OtherHost):
            return replies.json_error(
                request, 403, "the enrolment token is for another host; is this host's name the one it was made for?"
            )
        if isinstance(refusal, hosts.HostExists):
            return replies.json_error(
                request, 409, "the host is registered already; for another secret use identree enrol --again HOSTNAME"
            )
        if isinstance(refusal, hosts.TooManyHosts):
            return replies.json_error(request, 409, "the host registry is full")
        if isinstance(refusal, hosts.RegistryOff):
            return replies.json_error(request, 403, "the host registry is off (IDENTREE_HOST_REGISTRY)")
        return replies.json_error(request, 403, refusal.key)

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        replies.retry_after(request, replies.RETRY_UNAVAILABLE_SECONDS)
        return replies.json_error(request, 503, UNAVAILABLE_TEXT)

    def wrong_method(self, request: IRequest) -> bytes:
        return replies.json_error(request, 405, "method not allowed")


class EnrolRoutes:
    """:param server_url: where hosts reach this server (``IDENTREE_EXTERNAL_URL``)."""

    router = Router()

    def __init__(self, *, enrolments: Enrolments, addresses: Addresses, server_url: str) -> None:
        self.answers = EnrolAnswers()
        self._enrolments = enrolments
        self._addresses = addresses
        self._server_url = server_url

    @router.route(ENROL_PATH.decode("ascii"), methods=["POST"])
    async def enrol(self, request: IRequest) -> bytes:
        # neither a secret nor what was said to who had a wrong token may be kept on the way
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
        address = self._addresses.of(request)
        self._enrolments.admit(address)
        if not is_json(request):
            return replies.json_error(request, 415, "content-type must be application/json")
        if cut(request):
            return replies.json_error(request, 413, "request body too large")
        try:
            members = json_object(body(request))
            token, hostname = json_string(members, "token"), json_string(members, "hostname")
        except BadJSON:
            return replies.json_error(request, 400, "invalid request body")
        if not token or not hostname:
            return replies.json_error(request, 400, "token and hostname required")
        enrolled = await self._enrolments.redeem(token, hostname, address)
        value = {"hostname": enrolled.hostname, "secret": enrolled.secret, "server_url": self._server_url}
        return replies.send_json(request, 201, value)
