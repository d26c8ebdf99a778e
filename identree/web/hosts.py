"""
What hosts ask (spec/http-api sections 7.1 to 7.3): a challenge, its state, its end, the grace session.

``/api/challenge`` is the busiest path of all, so these handlers run without a router (``router.Direct``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.iweb import IRequest

from identree.app.challenges import Challenges, Draft, Opened, Polled
from identree.app.hosts import GRACE_STATUS, Credential, Hosts
from identree.app.waiters import LONGEST_HOLD_SECONDS
from identree.core import errors, names
from identree.core.challenge import Status
from identree.core.errors import Invalid, Refused
from identree.web import replies
from identree.web.reading import (
    Addresses,
    BadJSON,
    Credentials,
    body,
    is_json,
    json_object,
    json_string,
    query,
)
from identree.web.router import unavailable_text

CHALLENGE_PATH = b"/api/challenge"
CHALLENGE_PREFIX = b"/api/challenge/"
GRACE_STATUS_PATH = b"/api/grace-status"

# A legal reason of 500 characters and what the host tells about the command, in UTF-8.
CHALLENGE_BODY_BYTES = 8192
# No refusal of a creation is faster: what the checks cost tells a stranger nothing.
REFUSAL_SECONDS = 0.005
# A cap is free again when somebody decides; agents may ask again after this.
RETRY_PENDING_SECONDS = 5

_WAIT = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6})?")

_TOO_MANY_CREATING = "too many failed attempts \u2014 try again later"
_TOO_MANY_ASKING = "too many auth failures"


class HostAnswers:
    """``J(...)``: what hosts understand."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        """Refusals that mean the same on every path; the others are mapped by the handlers."""
        if isinstance(refusal, errors.Throttled):
            return _throttled(request, _TOO_MANY_ASKING, refusal.retry_after)
        if isinstance(refusal, errors.Unauthorized):
            # RFC 9110 section 15.5.2 wants a scheme named; none is registered for a secret in a header of its own
            request.responseHeaders.setRawHeaders(b"WWW-Authenticate", [b"Identree"])
            return replies.json_error(request, 401, "unauthorized")
        if isinstance(refusal, errors.HostnameMismatch):
            return replies.json_error(request, 403, "hostname mismatch")
        if isinstance(refusal, errors.CredentialMismatch):
            return replies.json_error(request, 403, "credential does not match challenge hostname")
        if isinstance(refusal, errors.Gone):
            return replies.send_json(request, 410, {"status": "expired"})
        if isinstance(refusal, errors.NotFound):
            return replies.json_error(request, 409, "already decided")
        if isinstance(refusal, Invalid):
            return replies.json_error(request, 400, refusal.detail)
        if isinstance(refusal, errors.TooManyPending):
            return _throttled(request, "rate limit exceeded", RETRY_PENDING_SECONDS)
        if isinstance(refusal, errors.JustificationRequired):
            value = {"error": refusal.key, "justification_choices": list(refusal.choices)}
            return replies.send_json(request, 422, value)
        return replies.json_error(request, 403, refusal.key)

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        replies.retry_after(request, replies.RETRY_UNAVAILABLE_SECONDS)
        seconds = replies.RETRY_UNAVAILABLE_SECONDS
        return replies.json_error(request, 503, unavailable_text(error), poll_after=seconds)

    def wrong_method(self, request: IRequest) -> bytes:
        return replies.json_error(request, 405, "method not allowed")


class HostRoutes:
    """
    :param clock: times the slowness of refusals.
    :param credentials: reads what hosts present; by default without client certificates.
    """

    def __init__(
        self,
        *,
        challenges: Challenges,
        hosts: Hosts,
        addresses: Addresses,
        clock: IReactorTime,
        credentials: Credentials | None = None,
    ) -> None:
        self.answers = HostAnswers()
        self._challenges = challenges
        self._hosts = hosts
        self._addresses = addresses
        self._clock = clock
        self._credentials = credentials or Credentials()

    # -- POST /api/challenge ------------------------------------------------------------------------------------------
    async def create(self, request: IRequest) -> bytes:
        try:
            opened = await self._create(request)
        except Refused as refusal:
            await deferLater(self._clock, REFUSAL_SECONDS)
            if isinstance(refusal, errors.Throttled):
                return _throttled(request, _TOO_MANY_CREATING, refusal.retry_after)
            return self.answers.refused(request, refusal)
        except BadJSON:
            await deferLater(self._clock, REFUSAL_SECONDS)
            return replies.json_error(request, 400, "invalid request body")
        if opened is None:
            return replies.json_error(request, 415, "content-type must be application/json")
        return replies.send_json(request, 201, _opened(opened))

    async def _create(self, request: IRequest) -> Opened | None:
        """None for a wrong content type."""
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        if not is_json(request):
            return None
        members = json_object(body(request))
        username = json_string(members, "username")
        hostname = json_string(members, "hostname")
        reason = json_string(members, "reason")
        told = {name: json_string(members, name) for name in ("command", "cwd", "tty", "remote_host")}
        if not username:
            raise Invalid("username required")
        draft = Draft(
            username=_checked(names.username, username, "invalid username format"),
            hostname=_checked(names.optional_hostname, hostname, "invalid hostname format"),
            reason=_checked(names.reason, reason, "reason contains invalid characters"),
            context=names.host_context(**told),
        )
        return await self._challenges.create(draft, presented, address)

    # -- GET and DELETE /api/challenge/{id} ---------------------------------------------------------------------------
    async def challenge(self, request: IRequest) -> bytes:
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        id = self._id(request, presented, address)
        parameters = query(request)
        hostname = names.normalised_hostname(parameters.get("hostname", ""))
        if request.method == b"DELETE":
            await self._challenges.cancel(id, hostname, presented, address)
            return replies.empty(request, 204)
        polled = await self._challenges.poll(
            id, hostname, presented, address, hold_seconds=_hold(parameters.get("wait", ""))
        )
        return replies.send_json(request, 200, _polled(polled))

    def _id(self, request: IRequest, presented: Credential, address: str) -> str:
        id: str = request.path[len(CHALLENGE_PREFIX) :].decode("latin-1")
        try:
            return names.challenge_id(id)
        except Invalid:
            # strangers learn nothing about ids, not even their form
            self._hosts.authenticate(presented, address, f"{request.method.decode('latin-1')} /api/challenge/")
            raise Invalid("invalid challenge ID" if id else "challenge ID required") from None

    # -- GET /api/grace-status ----------------------------------------------------------------------------------------
    async def grace_status(self, request: IRequest) -> bytes:
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        self._hosts.authenticate(presented, address, GRACE_STATUS)
        parameters = query(request)
        username = parameters.get("username", "")
        if not username:
            raise Invalid("username required")
        status = await self._challenges.grace_status(
            _checked(names.username, username, "invalid username"),
            _checked(names.optional_hostname, parameters.get("hostname", ""), "invalid hostname"),
            presented,
            address,
        )
        value: dict[str, object] = {"grace_remaining": status.remaining}
        if status.revoke_tokens_before:
            value["revoke_tokens_before"] = status.revoke_tokens_before
        return replies.send_json(request, 200, value)


def _checked(check: Callable[[str], str], value: str, message: str) -> str:
    """The value as ``check`` returns it, refused with the contract's words."""
    try:
        return check(value)
    except Invalid:
        raise Invalid(message) from None


def _hold(text: str) -> float:
    """Seconds to hold a poll; what is no number holds nothing."""
    return min(float(text), LONGEST_HOLD_SECONDS) if _WAIT.fullmatch(text) else 0.0


def _throttled(request: IRequest, message: str, seconds: int) -> bytes:
    replies.retry_after(request, seconds)
    return replies.json_error(request, 429, message, poll_after=seconds)


def _opened(opened: Opened) -> dict[str, object]:
    """The creation reply, keys sorted, empty ones left out."""
    challenge = opened.challenge
    approved = challenge.status is Status.APPROVED
    value: dict[str, object] = {}
    if opened.approval_token:
        value["approval_token"] = opened.approval_token
        value["approval_token_derived"] = opened.approval_token_derived
    value["challenge_id"] = challenge.id
    if opened.client_config:
        value["client_config"] = opened.client_config
    value["expires_in"] = opened.expires_in
    if approved:
        value["grace_remaining"] = opened.grace_remaining
    elif opened.notification_queued:
        value["notification_queued"] = True
    if challenge.revoke_before:
        value["revoke_tokens_before"] = challenge.revoke_before
    if challenge.rotate_before:
        value["rotate_breakglass_before"] = challenge.rotate_before
    if approved:
        value["status"] = "approved"
    value["user_code"] = challenge.user_code
    if not approved:
        value["verification_url"] = opened.verification_url
    return value


def _polled(polled: Polled) -> dict[str, object]:
    """The poll reply, keys sorted."""
    challenge = polled.challenge
    status = challenge.status
    value: dict[str, object] = {}
    if status is Status.APPROVED and polled.token:
        value["approval_token"] = polled.token
        value["approval_token_derived"] = polled.token_derived
    if challenge.required_approvals > 1:
        value["approvers"] = list(challenge.approvers)
        value["current_approvals"] = len(challenge.approvals)
    if status is Status.DENIED and polled.token:
        value["denial_token"] = polled.token
        value["denial_token_derived"] = polled.token_derived
    if status is Status.DENIED and polled.may_tell and challenge.deny_reason:
        value["deny_reason"] = challenge.deny_reason
    value["expires_in"] = polled.remaining
    if status is Status.APPROVED and polled.may_tell and polled.grace_remaining > 0:
        value["grace_remaining"] = polled.grace_remaining
    if polled.id_token:
        value["id_token"] = polled.id_token
    if challenge.required_approvals > 1:
        value["required_approvals"] = challenge.required_approvals
    value["status"] = status.value
    return value
