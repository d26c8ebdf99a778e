"""One-tap links."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.app.onetap import Look, NotYours, OneTapLinks, StaleSignIn
from identree.app.people import Caller
from identree.core import tokens
from identree.core.challenge import Challenge, Status
from identree.core.errors import (
    AdminRequired,
    DuplicateApproval,
    Invalid,
    JustificationRequired,
    NotFound,
    OneTapExpired,
    OneTapInvalid,
    OneTapUsed,
    OutsideWindow,
)
from identree.core.events import UserLoggedIn
from identree.core.policy import Policies
from identree.storage.interface import BrowserSession
from tests.app.world import GLOBAL, World, now_result


class OneTapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.world.change_rules(grace_period=timedelta(hours=1), challenge_ttl=timedelta(minutes=10))
        self.links = OneTapLinks(
            store=self.world.store,
            decisions=self.world.decisions,
            keys=self.world.keys,
            now=self.world.now,
            max_age=lambda: timedelta(hours=24),
        )
        self.alice, self.carol = self.world.caller("alice"), self.world.caller("carol", "admin")
        self.bob = self.world.caller("bob")
        for name in ("alice", "bob", "carol"):
            self.login(name)

    def login(self, name: str) -> None:
        now = self.world.now()
        now_result(
            self.world.store.record_login(
                BrowserSession(nonce=self.world.token(16), username=name, started_at=now),
                UserLoggedIn(at=now, username=name),
                now,
            )
        )

    def policy(self, **fields: Any) -> None:
        self.world.policies = Policies.from_fields([{"name": "p", **fields}])

    def create(self, reason: str = "") -> Challenge:
        draft = Draft(username="alice", hostname="web01", reason=reason)
        return now_result(self.world.challenges.create(draft, GLOBAL, "192.0.2.1")).challenge

    def token(self, challenge: Challenge) -> str:
        return tokens.one_tap_token(
            self.world.keys,
            challenge.id,
            challenge.username,
            int(challenge.expires_at.timestamp()),
            challenge.hostname,
        )

    def look(self, token: str, caller: Caller | None = None) -> Look:
        return now_result(self.links.look(token, caller))

    def use(self, caller: Caller, token: str, reason: str = "") -> Challenge:
        return now_result(self.links.use(caller, token, reason=reason)).challenge

    def status(self, challenge: Challenge) -> Status:
        found = now_result(self.world.store.challenge(challenge.id))
        assert found is not None
        return found.status

    def test_approves(self) -> None:
        """The requester approves with it, once, by an ordinary approval with its event and grace session."""
        challenge = self.create()
        after = self.use(self.alice, self.token(challenge))
        self.assertEqual((after.status, after.one_tap_used, after.approved_by), (Status.APPROVED, True, "alice"))
        self.assertEqual(json.loads(self.world.store.log.records[-1].plain)["event"], "challenge_approved")
        self.assertRaises(NotFound, self.use, self.alice, self.token(challenge))
        self.assertIn("ONETAP_APPROVED", [line for line, _ in self.world.log])

    def test_looking_changes_nothing(self) -> None:
        """Whoever looks, signed in or not, however often: nothing happens."""
        challenge = self.create()
        before = len(self.world.store.log.records)
        for caller in (None, self.alice, self.carol, None):
            self.assertEqual(self.look(self.token(challenge), caller).challenge, challenge)
        self.assertEqual((self.status(challenge), len(self.world.store.log.records)), (Status.PENDING, before))

    def test_form(self) -> None:
        """A link of another form, or of another challenge, person, host or time, is none."""
        challenge = self.create()
        good = self.token(challenge)
        id, expires, mac = good.split(".")
        self.assertRaises(Invalid, self.look, "")
        for bad in ("x", "a.b.c", f"{id}.{expires}", f"{good}.x"):
            self.assertRaises(Invalid, self.look, bad)
        self.assertRaises(OneTapInvalid, self.look, f"{id}.{expires}.{'0' * 64}")
        self.assertRaises(OneTapExpired, self.look, f"{id}.1.{mac}")
        self.assertRaises(NotFound, self.look, f"{'f' * 32}.{expires}.{mac}")
        self.assertRaises(OneTapInvalid, self.look, f"{id}.{int(expires) + 1}.{mac}")
        late = tokens.one_tap_token(self.world.keys, id, "alice", int(expires) + 60, "web01")
        self.assertRaises(OneTapInvalid, self.look, late)

    def test_expired(self) -> None:
        """It ends with its challenge."""
        challenge = self.create()
        self.world.clock.advance(600)
        self.assertRaises(OneTapExpired, self.look, self.token(challenge))

    def test_strangers(self) -> None:
        """Another person's link is of no use; an administrator's is."""
        challenge = self.create()
        self.assertRaises(NotYours, self.use, self.bob, self.token(challenge))
        self.assertEqual(self.status(challenge), Status.PENDING)
        self.assertEqual(self.use(self.carol, self.token(challenge)).approved_by, "carol")

    def test_fresh(self) -> None:
        """Who signed in too long ago has to do it again first; the link is not used up."""
        challenge = self.create()
        self.links._max_age = lambda: timedelta(minutes=1)
        self.world.clock.advance(61)
        token = self.token(challenge)
        self.assertFalse(self.look(token).fresh)
        self.assertFalse(self.look(token, self.alice).fresh)
        self.assertRaises(StaleSignIn, self.use, self.alice, token)
        self.login("alice")
        self.assertTrue(self.look(token).fresh)
        self.assertEqual(self.use(self.alice, token).status, Status.APPROVED)

    def test_policy(self) -> None:
        """The policy holds on this way too: window, administrator, justification."""
        self.policy(allowed_hours="09:00-09:00")
        token = self.token(self.create())
        self.assertRaises(OutsideWindow, self.use, self.alice, token)
        self.assertEqual(type(self.look(token, self.alice).obstacle), OutsideWindow)
        self.policy(require_admin=True)
        token = self.token(self.create())
        for caller in (None, self.alice):
            self.assertRaises(AdminRequired, self.look, token, caller)
        self.assertEqual(self.use(self.carol, token).status, Status.APPROVED)
        self.policy()
        token = self.token(self.create())
        self.world.change_rules(require_justification=True)
        self.assertRaises(JustificationRequired, self.use, self.alice, token)
        self.assertEqual(self.use(self.alice, token, "routine").status, Status.APPROVED)

    def test_quorum(self) -> None:
        """One link serves every approver once, and is used up by the last approval."""
        self.policy(min_approvals=2)
        challenge = self.create()
        token = self.token(challenge)
        self.assertEqual(self.use(self.alice, token).status, Status.PENDING)
        self.assertRaises(DuplicateApproval, self.use, self.alice, token)
        self.assertEqual(self.use(self.carol, token).status, Status.APPROVED)

    def test_used(self) -> None:
        """A link that another server has marked as used does not approve, and says so."""
        challenge = self.create()
        self.world.store.connection.execute("UPDATE challenges SET one_tap_used = 1")
        self.assertRaises(OneTapUsed, self.use, self.alice, self.token(challenge))

    def test_resumable(self) -> None:
        """After a sign-in it goes on for those who may approve, as long as it is good."""
        challenge = self.create()
        token = self.token(challenge)
        asked = [now_result(self.links.resumable(caller, token)) for caller in (self.alice, self.carol, self.bob)]
        self.assertEqual(asked, [True, True, False])
        self.assertFalse(now_result(self.links.resumable(self.alice, "x")))
