"""
One-tap links: what a notification opens on a phone (spec/http-api section 8, spec/web-ui section 6.2).

A link names one challenge and is signed. Looking at it changes nothing, so that link previewers are harmless; what it
may do is decided by the same rules as on the page, by whoever is signed in then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from identree.app.decisions import Decisions, Outcome
from identree.app.people import Caller
from identree.app.ports import Now
from identree.core import tokens
from identree.core.challenge import Challenge
from identree.core.errors import (
    AdminRequired,
    Invalid,
    NotFound,
    OneTapExpired,
    OneTapInvalid,
    OneTapUsed,
    Refused,
)
from identree.core.verdict import may_see
from identree.storage.interface import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """
    A genuine link of a challenge that waits.

    :ivar fresh: whether the person, or without one the owner, has signed in lately enough; else they have to first.
    :ivar obstacle: why the person's approval would not count; None: it would, or nobody is signed in.
    """

    token: str = field(repr=False)
    challenge: Challenge
    fresh: bool
    obstacle: Refused | None = None


class OneTapLinks:
    """:param max_age: how old the sign-in of whoever uses a link may be (``IDENTREE_ONE_TAP_MAX_AGE``)."""

    def __init__(
        self,
        *,
        store: Store,
        decisions: Decisions,
        keys: tokens.Keys,
        now: Now,
        max_age: Callable[[], timedelta],
    ) -> None:
        self._store = store
        self._decisions = decisions
        self._keys = keys
        self._now = now
        self._max_age = max_age

    async def look(self, token: str, caller: Caller | None) -> Look:
        """
        What a link is about, for whoever has it; the checks come in the order of the contract.

        :param caller: who is signed in; None: nobody.
        :raise Invalid, OneTapExpired, NotFound, OneTapInvalid: it is not genuine, or too late.
        :raise AdminRequired: the challenge needs an administrator, and none is signed in.
        :raise OneTapUsed: it has approved already.
        """
        if not token:
            raise Invalid("token required", key="missing_fields")
        one_tap = tokens.read_one_tap(token)
        now = self._now()
        if one_tap.expires_at <= int(now.timestamp()):
            raise OneTapExpired
        challenge = await self._store.challenge(one_tap.id)
        if challenge is None or not challenge.live(now):
            raise NotFound
        if not tokens.one_tap_valid(self._keys, one_tap, challenge.username, challenge.hostname) or (
            one_tap.expires_at != int(challenge.expires_at.timestamp())
        ):
            raise OneTapInvalid
        if challenge.require_admin and not (caller is not None and caller.is_admin):
            raise AdminRequired
        if challenge.one_tap_used:
            raise OneTapUsed
        return Look(
            token=token,
            challenge=challenge,
            fresh=await self._fresh(challenge, caller),
            obstacle=None if caller is None else self._decisions.obstacle(caller, challenge),
        )

    async def use(self, caller: Caller, token: str, *, reason: str = "", address: str = "") -> Outcome:
        """
        Approve, by the rules of every approval.

        :raise Refused: as for :meth:`look` and :meth:`Decisions.approve`; ``StaleSignIn`` where the sign-in is too old.
        """
        look = await self.look(token, caller)
        if not may_see(look.challenge, caller.approver):
            raise NotYours
        if not look.fresh:
            raise StaleSignIn
        return await self._decisions.approve(caller, look.challenge.id, reason=reason, address=address, one_tap=True)

    async def resumable(self, caller: Caller, token: str) -> bool:
        """Whether a link that was kept over a sign-in is for the person who has just signed in."""
        try:
            look = await self.look(token, caller)
        except Refused:
            return False
        return may_see(look.challenge, caller.approver)

    async def _fresh(self, challenge: Challenge, caller: Caller | None) -> bool:
        seen = caller.authenticated_at if caller is not None else None
        if seen is None:
            seen = await self._store.last_login(challenge.username if caller is None else caller.username)
        return seen is not None and self._now() - seen < self._max_age()


class NotYours(Refused):
    """Neither the requester, nor an administrator, nor an approver."""

    key = "not_authorized_message"


class StaleSignIn(Refused):
    """The sign-in is older than one-tap links accept."""

    key = "oidc_reauth_required"
