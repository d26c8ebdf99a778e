"""
What others call when something changed at their side: PocketID's webhook (spec/ldap section 9.4, http-api section 4.7).
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.iweb import IRequest

from identree.app.journal import Journal
from identree.app.ports import Monotonic
from identree.app.trail import Trail
from identree.core.events import AuthenticationFailed
from identree.core.limits import SlidingWindow
from identree.core.tokens import webhook_valid
from identree.web.reading import Addresses, body, cut, first_header, is_json
from identree.web.replies import empty, text
from identree.web.router import Router, TextAnswers

WEBHOOK_PATH = b"/api/webhook/pocketid"
# One byte more is refused.
WEBHOOK_BODY_BYTES = 65_535
# Wrong signatures that are logged for one address; a stranger must not fill the disk.
LOGGED_FAILURES = 10
LOGGED_SECONDS = 60.0


class HookRoutes:
    """
    :param secret: that senders sign with; empty: nobody can.
    :param refresh_wanted: to be called when the directory should be read anew. It must be cheap: calls in quick
        succession are for it to join.
    :param trail: gets the audit records of wrong signatures; None: there are none.
    """

    router = Router()

    def __init__(
        self,
        *,
        secret: str,
        refresh_wanted: Callable[[], object],
        addresses: Addresses,
        journal: Journal,
        monotonic: Monotonic,
        trail: Trail | None = None,
    ) -> None:
        self.answers = TextAnswers()
        self._secret = secret.encode()
        self._refresh_wanted = refresh_wanted
        self._addresses = addresses
        self._journal = journal
        self._monotonic = monotonic
        self._trail = trail
        self._logged = SlidingWindow(LOGGED_FAILURES, LOGGED_SECONDS)

    @router.route(WEBHOOK_PATH.decode("ascii"), methods=["POST"])
    async def pocketid(self, request: IRequest) -> bytes:
        """The body says nothing that we use: whatever happened, the directory is read anew as a whole."""
        if not is_json(request):
            return text(request, 415, "content-type must be application/json")
        if not self._secret:
            return text(request, 403, "webhook not configured")
        signature = first_header(request, b"X-Webhook-Signature").decode("latin-1")
        # of a body that is too long there is only the beginning, which nobody signed
        if cut(request) or not webhook_valid(self._secret, signature, body(request)):
            self._mismatch(request)
            return text(request, 403, "invalid signature")
        self._refresh_wanted()
        return empty(request, 204)

    def _mismatch(self, request: IRequest) -> None:
        address, now = self._addresses.of(request), self._monotonic()
        if self._trail is not None:
            reason = f"signature mismatch: POST {WEBHOOK_PATH.decode('ascii')}"
            self._trail.note(AuthenticationFailed, reason=reason, remote_addr=address)
        if self._logged.allowed(address, now):
            self._logged.record(address, now)
            self._journal.warn("AUTH_FAILURE webhook signature mismatch", remote_addr=address)
