"""The audit records of everything that exists so far, column by column (spec/audit-and-metrics section 4)."""

from __future__ import annotations

import json
from datetime import timedelta

from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.core.challenge import Challenge
from tests.app.world import GLOBAL, World, now_result

HOST_ADDRESS = "192.0.2.10"
BROWSER = "198.51.100.20"
# In every record; the chain and the times have tests of their own.
ALWAYS = ("seq", "prev_hash", "timestamp", "source", "version", "instance")


class CatalogueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.world.change_rules(grace_period=timedelta(hours=1))
        self.alice, self.carol = self.world.caller("alice"), self.world.caller("carol", "admin")
        self.seen = 0

    def create(self, hostname: str = "web01", reason: str = "asked") -> Challenge:
        draft = Draft(username="alice", hostname=hostname, reason=reason)
        return now_result(self.world.challenges.create(draft, GLOBAL, HOST_ADDRESS)).challenge

    def forget(self) -> None:
        self.seen = len(self.world.store.log.records)

    def only(self, event: str, **columns: str) -> None:
        """Exactly this event came, with exactly these columns; ``username`` is there even when empty."""
        records = [json.loads(record.plain) for record in self.world.store.log.records[self.seen :]]
        for record in records:
            for name in ALWAYS:
                record.pop(name, None)
        self.assertEqual(records, [{"event": event, **columns}])

    def waiting(self, hostname: str = "web01") -> Challenge:
        challenge = self.create(hostname)
        self.forget()
        return challenge

    def session(self) -> None:
        now_result(self.world.decisions.approve(self.alice, self.create().id, address=BROWSER))
        self.forget()

    def test_created(self) -> None:
        """The host name as it is, the request's reason, the host's address; nobody acted."""
        code = self.create().user_code
        self.only(
            "challenge_created",
            username="alice",
            hostname="web01",
            code=code,
            reason="asked",
            remote_addr=HOST_ADDRESS,
        )

    def test_created_without_host(self) -> None:
        """An unnamed host has no column here."""
        code = self.create(hostname="", reason="").user_code
        self.only("challenge_created", username="alice", code=code, remote_addr=HOST_ADDRESS)

    def test_auto_approved(self) -> None:
        """The owner acted; there is no creation beside it."""
        self.session()
        code = self.create().user_code
        self.only(
            "auto_approved",
            username="alice",
            hostname="web01",
            code=code,
            actor="alice",
            reason="asked",
            remote_addr=HOST_ADDRESS,
        )

    def test_approved(self) -> None:
        """The approver's reason before the request's; the approver's address."""
        challenge = self.waiting()
        now_result(self.world.decisions.approve(self.carol, challenge.id, reason="said", address=BROWSER))
        self.only(
            "challenge_approved",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor="carol",
            reason="said",
            remote_addr=BROWSER,
        )

    def test_approved_all(self) -> None:
        """The request's reason, and a name for the host that has none."""
        challenge = self.waiting("")
        now_result(self.world.decisions.approve_all(self.alice, address=BROWSER))
        self.only(
            "challenge_approved",
            username="alice",
            hostname="(unknown)",
            code=challenge.user_code,
            actor="alice",
            reason="asked",
            remote_addr=BROWSER,
        )

    def test_rejected(self) -> None:
        """Only the reason of the refusal, never the request's."""
        challenge = self.waiting()
        now_result(self.world.decisions.reject(self.carol, challenge.id, reason="no", address=BROWSER))
        columns = {"username": "alice", "hostname": "web01", "remote_addr": BROWSER}
        self.only("challenge_rejected", code=challenge.user_code, actor="carol", reason="no", **columns)
        challenge = self.waiting()
        now_result(self.world.decisions.reject_all(self.alice, address=BROWSER))
        self.only("challenge_rejected", code=challenge.user_code, actor="alice", **columns)

    def test_expired(self) -> None:
        """Nobody, from nowhere; once."""
        challenge = self.waiting()
        self.world.clock.advance(121)
        now_result(self.world.challenges.expire_overdue())
        now_result(self.world.challenges.expire_overdue())
        self.only("challenge_expired", username="alice", hostname="web01", code=challenge.user_code)

    def test_revoked(self) -> None:
        """Whose session, where, and who ended it."""
        self.session()
        now_result(self.world.decisions.revoke(self.carol, "web01", owner="alice", address=BROWSER))
        self.only("session_revoked", username="alice", hostname="web01", actor="carol", remote_addr=BROWSER)

    def test_revoked_all(self) -> None:
        """One record for all, without a host; none when there was nothing."""
        self.session()
        now_result(self.world.decisions.revoke_all(self.alice, address=BROWSER))
        now_result(self.world.decisions.revoke_all(self.alice, address=BROWSER))
        self.only("sessions_revoked_bulk", username="alice", actor="alice", remote_addr=BROWSER)

    def test_extended(self) -> None:
        """Whose session, where, and who extended it."""
        self.session()
        now_result(self.world.decisions.extend(self.carol, "web01", owner="alice", address=BROWSER))
        self.only("session_extended", username="alice", hostname="web01", actor="carol", remote_addr=BROWSER)

    def test_extended_all(self) -> None:
        """One record for all, without a host."""
        self.session()
        now_result(self.world.decisions.extend_all(self.alice, address=BROWSER))
        self.only("session_extended", username="alice", actor="alice", remote_addr=BROWSER)

    def test_logged_in(self) -> None:
        """Who, from where."""
        start = now_result(self.world.people.begin_login(address=BROWSER))
        state = start.url.partition("state=")[2].partition("&")[0]
        now_result(
            self.world.people.finish_login(state=state, code="good", error="", address=BROWSER, browser=start.browser)
        )
        self.only("user_logged_in", username="alice", remote_addr=BROWSER)
