"""
What people decide with forms: challenges and grace sessions (spec/http-api section 8).

Browsers without script follow the redirect and read the flash. Our own scripts ask for JSON and get the same answer as
a value, so that they can always show what the server said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions, Outcome
from identree.app.people import People
from identree.app.rules import Rules
from identree.core import names
from identree.core.challenge import UNKNOWN_HOST
from identree.core.errors import AdminRequired
from identree.web.forms import Forms
from identree.web.reading import Addresses, wants_json
from identree.web.replies import see_other, send_json
from identree.web.router import CardAnswers, Cards, Router
from identree.web.sessions import BrowserSessions, Flash, flash_item

# The value of ``from`` that a decision on the dashboard itself sends: the row is shown again, highlighted.
INLINE = "inline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """
    What happened.

    :ivar location: path that the browser goes on with.
    :ivar details: further members for scripts.
    """

    flashes: tuple[Flash, ...] = ()
    location: str = "/"
    details: Mapping[str, object] = field(default_factory=dict)


class ActionRoutes:
    router = Router()

    def __init__(
        self,
        *,
        decisions: Decisions,
        people: People,
        sessions: BrowserSessions,
        addresses: Addresses,
        cards: Cards,
        rules: Callable[[], Rules],
    ) -> None:
        self.answers = CardAnswers(cards)
        self._decisions = decisions
        self._forms = Forms(people=people, sessions=sessions, addresses=addresses)
        self._sessions = sessions
        self._rules = rules

    # -- challenges ---------------------------------------------------------------------------------------------------
    @router.route("/api/challenges/approve", methods=["POST"])
    async def approve(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        id = names.challenge_id(sent.get("challenge_id"))
        outcome = await self._decisions.approve(
            sent.caller, id, reason=names.decision_reason(sent.get("reason")), address=sent.address
        )
        challenge = outcome.challenge
        if not outcome.complete:
            count = (str(len(challenge.approvals)), str(challenge.required_approvals))
            partial = ("partial_approve", (challenge.user_code, *count))
            return self._answer(request, Done(flashes=(partial,), details=_details(outcome)))
        until = outcome.grace_until or challenge.approved_at
        unix = str(int(until.timestamp())) if until else "0"
        flashes: tuple[Flash, ...] = (("approved", (challenge.shown_host, challenge.username, unix)),)
        if sent.get("from") == INLINE:
            flashes += (("highlight", (challenge.username, challenge.shown_host)),)
        return self._answer(request, Done(flashes=flashes, details=_details(outcome)))

    @router.route("/api/challenges/approve-all", methods=["POST"])
    async def approve_all(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        outcomes = await self._decisions.approve_all(sent.caller, address=sent.address)
        done = _counted("approved_all", len(outcomes))
        left = await self._decisions.left_to_approve(sent.caller)
        if left:
            done = replace(done, flashes=(*done.flashes, ("left_out", (str(left),))))
        return self._answer(request, done)

    @router.route("/api/challenges/withdraw", methods=["POST"])
    async def withdraw(self, request: IRequest) -> bytes:
        """Take one's own approval back, as long as others are missing. Deployed versions do not have it."""
        sent = await self._forms.accepted(request)
        id = names.challenge_id(sent.get("challenge_id"))
        challenge = await self._decisions.withdraw(sent.caller, id, address=sent.address)
        withdrawn = ("withdrawn", (challenge.user_code,))
        return self._answer(request, Done(flashes=(withdrawn,), details={"status": challenge.status.value}))

    @router.route("/api/challenges/override", methods=["POST"])
    async def override(self, request: IRequest) -> bytes:
        """Deployed pages send no ``reason``; here one is required, since it is what an emergency leaves behind."""
        sent = await self._forms.accepted(request)
        if not sent.caller.is_admin:
            raise AdminRequired
        id = names.challenge_id(sent.get("challenge_id"))
        outcome = await self._decisions.override(
            sent.caller, id, reason=names.decision_reason(sent.get("reason")), address=sent.address
        )
        challenge = outcome.challenge
        overridden = ("break_glass_override", (challenge.shown_host, challenge.username))
        return self._answer(request, Done(flashes=(overridden,), details=_details(outcome)))

    @router.route("/api/challenges/reject", methods=["POST"])
    async def reject(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        id = names.challenge_id(sent.get("challenge_id"))
        outcome = await self._decisions.reject(
            sent.caller, id, reason=names.decision_reason(sent.get("deny_reason")), address=sent.address
        )
        rejected = ("rejected", (outcome.challenge.shown_host,))
        return self._answer(request, Done(flashes=(rejected,), details=_details(outcome)))

    @router.route("/api/challenges/reject-all", methods=["POST"])
    async def reject_all(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        outcomes = await self._decisions.reject_all(
            sent.caller, reason=names.decision_reason(sent.get("deny_reason")), address=sent.address
        )
        return self._answer(request, _counted("rejected_all", len(outcomes)))

    # -- grace sessions -----------------------------------------------------------------------------------------------
    @router.route("/api/sessions/revoke", methods=["POST"])
    async def revoke(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        owner, hostname = sent.owner(), sent.hostname()
        owner = await self._decisions.revoke(sent.caller, hostname, owner=owner, address=sent.address)
        shown = hostname or UNKNOWN_HOST
        return self._answer(request, Done(flashes=(("revoked", (shown, owner)),), location=sent.back))

    @router.route("/api/sessions/revoke-all", methods=["POST"])
    async def revoke_all(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        count = await self._decisions.revoke_all(sent.caller, owner=sent.owner(), address=sent.address)
        revoked = ("revoked_all", (str(count),))
        return self._answer(request, Done(flashes=(revoked,), location=sent.back, details={"count": count}))

    @router.route("/api/sessions/extend", methods=["POST"])
    async def extend(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        owner, hostname = sent.owner(), sent.hostname()
        session = await self._decisions.extend(
            sent.caller, hostname, seconds=_seconds(sent.get("duration")), owner=owner, address=sent.address
        )
        unix = int(session.expires_at.timestamp())
        extended = ("extended", (session.shown_host, session.username, str(unix)))
        return self._answer(request, Done(flashes=(extended,), location=sent.back, details={"until": unix}))

    @router.route("/api/sessions/extend-all", methods=["POST"])
    async def extend_all(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        count, until = await self._decisions.extend_all(sent.caller, owner=sent.owner(), address=sent.address)
        unix = int(until.timestamp())
        extended = ("extended_all", (str(count), str(unix)))
        details = {"count": count, "until": unix}
        return self._answer(request, Done(flashes=(extended,), location=sent.back, details=details))

    # -- inside -------------------------------------------------------------------------------------------------------
    def _answer(self, request: IRequest, done: Done) -> bytes:
        if wants_json(request):
            shown = ",".join(flash_item(flash) for flash in done.flashes)
            return send_json(request, 200, {"ok": True, "flash": shown, "location": done.location, **done.details})
        self._sessions.flash(request, done.flashes)
        return see_other(request, self._rules().external_url + done.location)


def _counted(code: str, count: int) -> Done:
    return Done(flashes=((code, (str(count),)),) if count else (), details={"count": count})


def _details(outcome: Outcome) -> dict[str, object]:
    challenge = outcome.challenge
    return {
        "status": challenge.status.value,
        "current_approvals": len(challenge.approvals),
        "required_approvals": challenge.required_approvals,
    }


def _seconds(text: str) -> int | None:
    """A number of seconds; None, for as long as possible, when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
