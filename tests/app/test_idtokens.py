"""ID tokens on their way from a sign-in to the host's token cache."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.app.idtokens import LONGEST_TOKEN_BYTES, IdTokens
from identree.app.people import Caller
from identree.app.ports import Identity
from identree.app.rules import ClientDefaults
from tests.app.world import GLOBAL, World, now_result

ADDRESS = "192.0.2.10"
TOKEN = "e30.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


class SealTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tokens = IdTokens(b"k" * 32, lambda size: b"n" * size)

    def test_round(self) -> None:
        """What was sealed for somebody is opened for that person, and is not readable meanwhile."""
        sealed = self.tokens.seal("alice", TOKEN)
        self.assertNotIn(TOKEN[:8], sealed)
        self.assertEqual(self.tokens.open("alice", sealed), TOKEN)

    def test_not_for_others(self) -> None:
        """Neither for another person, nor with another key, nor damaged, nor none."""
        sealed = self.tokens.seal("alice", TOKEN)
        other = IdTokens(b"o" * 32, lambda size: b"n" * size)
        for opened in (
            self.tokens.open("bob", sealed),
            other.open("alice", sealed),
            self.tokens.open("alice", sealed[:-8] + "AAAAAAA="),
            self.tokens.open("alice", "no base64!"),
            self.tokens.open("alice", "YQ=="),
            self.tokens.open("alice", ""),
        ):
            self.assertEqual(opened, "")

    def test_bounds(self) -> None:
        """None, and one that no agent keeps, is not sealed."""
        self.assertEqual(self.tokens.seal("alice", ""), "")
        self.assertEqual(self.tokens.seal("alice", "a" * (LONGEST_TOKEN_BYTES + 1)), "")

    def test_unseen(self) -> None:
        """It is not shown where an identity is."""
        self.assertNotIn(TOKEN, repr(Identity(username="alice", groups=(), id_token=TOKEN)))


class HandedOnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def signed_in(self, username: str = "alice", *groups: str) -> Caller:
        world = self.world
        world.provider.identity = Identity(username=username, groups=groups or ("staff",), id_token=TOKEN)
        start = now_result(world.people.begin_login(address=ADDRESS))
        state = start.url.partition("state=")[2].partition("&")[0]
        finished = world.people.finish_login(state=state, code="good", error="", address=ADDRESS, browser=start.browser)
        return now_result(finished).caller

    def asked(self) -> str:
        draft = Draft(username="alice", hostname="web01")
        return now_result(self.world.challenges.create(draft, GLOBAL, ADDRESS)).challenge.id

    def polled(self, id: str) -> str:
        return now_result(self.world.challenges.poll(id, "web01", GLOBAL, ADDRESS)).id_token

    def test_own(self) -> None:
        """Who approves an own request hands the token of the sign-in on to the host, also a host that asks again."""
        caller, id = self.signed_in(), self.asked()
        self.assertEqual(self.polled(id), "")
        now_result(self.world.decisions.approve(caller, id, address=ADDRESS))
        self.assertEqual([self.polled(id), self.polled(id)], [TOKEN, TOKEN])

    def test_of_somebody_else(self) -> None:
        """An administrator's approval hands on neither the administrator's token nor the owner's."""
        self.signed_in()
        id = self.asked()
        now_result(self.world.decisions.approve(self.signed_in("carol", "admins"), id, address=ADDRESS))
        self.assertEqual(self.polled(id), "")

    def test_turned_off(self) -> None:
        """Where hosts are told to keep none, none is kept here and none is handed on."""
        self.world.rules = replace(self.world.rules, client=ClientDefaults(token_cache_enabled=False))
        caller, id = self.signed_in(), self.asked()
        now_result(self.world.decisions.approve(caller, id, address=ADDRESS))
        self.assertEqual(self.polled(id), "")
        rows = self.world.store.connection.execute("SELECT id_token FROM browser_sessions").fetchall()
        rows += self.world.store.connection.execute("SELECT raw_id_token FROM challenges").fetchall()
        self.assertEqual(set(rows), {("",)})

    def test_sealed(self) -> None:
        """No token stands in the database as it is."""
        caller, id = self.signed_in(), self.asked()
        now_result(self.world.decisions.approve(caller, id, address=ADDRESS))
        dump = "\n".join(self.world.store.connection.iterdump())
        self.assertNotIn(TOKEN, dump)

    def test_without_secret(self) -> None:
        """A host that could not verify the approval gets no token either."""
        caller, id = self.signed_in(), self.asked()
        now_result(self.world.decisions.approve(caller, id, address=ADDRESS))
        self.world.hosts._shared_secret = b""
        polled = self.world.challenges.poll(id, "web01", replace(GLOBAL, secret=b"", certificate="web01"), ADDRESS)
        self.assertEqual(now_result(polled).id_token, "")

    def test_rejected(self) -> None:
        """Nor is one handed on with a rejection."""
        caller, id = self.signed_in(), self.asked()
        now_result(self.world.decisions.reject(caller, id, address=ADDRESS))
        self.world.clock.advance(timedelta(seconds=1).total_seconds())
        self.assertEqual(self.polled(id), "")
