"""
The audit records of everything that exists so far, column by column (spec/audit-and-metrics sections 4 and 15.7), and
the lines of the server log beside them (section 14).
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.app.hosts import Credential
from identree.app.ports import Identity
from identree.app.sudorules import SudoRules
from identree.core.challenge import Challenge
from identree.core.errors import LoginFailed, Refused
from identree.core.events import KINDS
from identree.core.hosts import HostRegistry
from identree.core.policy import Policies
from identree.directory.sudo import SudoRule
from tests.app.memoryrules import MemoryRules, at_once
from tests.app.provisioning import ADDRESS as PROVISIONED_FROM
from tests.app.provisioning import Workshop
from tests.app.world import GLOBAL, World, now_result

HOST_ADDRESS = "192.0.2.10"
BROWSER = "198.51.100.20"
# In every record; the chain and the times have tests of their own.
ALWAYS = ("seq", "prev_hash", "timestamp", "source", "version", "instance")

# Section 4, name by name.
CATALOGUE = """
    challenge_created auto_approved challenge_approved challenge_rejected challenge_expired break_glass_policy_override
    session_revoked sessions_revoked_bulk session_extended grace_elevated breakglass_rotation_requested
    breakglass_escrowed revealed_breakglass break_glass_used config_changed user_removed claims_updated host_removed
    deployed sudo_rule_modified server_restarted user_logged_in notification_channel_added notification_channel_deleted
    notification_route_added notification_route_deleted certificate_issued
""".split()
# What deployed versions did not record (section 15).
ADDED = """
    challenge_partially_approved challenge_cancelled user_signed_out authentication_failed approval_refused
    ldap_bind_failed audit_checkpoint host_registered host_registration_changed host_secret_rotated
    enrolment_token_created host_enrolled host_unconfigured challenge_approval_withdrawn notification_channel_changed
    notification_route_changed notification_preference_saved notification_preference_deleted notification_tested
    push_device_added push_device_removed
""".split()


class KindTests(SynchronousTestCase):
    def test_all(self) -> None:
        """Every event of the catalogue has its kind, by its name, and nothing else goes by a name."""
        self.assertEqual(sorted(KINDS), sorted(CATALOGUE + ADDED))
        self.assertEqual([kind.kind for kind in KINDS.values()], list(KINDS))


class CatalogueCase(SynchronousTestCase):
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
        """Of alice on web01, one hour long."""
        now_result(self.world.decisions.approve(self.alice, self.create().id, address=BROWSER))
        self.forget()

    def everyone(self) -> None:
        """A session of alice and one of bob."""
        for person in ("alice", "bob"):
            challenge = now_result(
                self.world.challenges.create(Draft(username=person, hostname="web01"), GLOBAL, HOST_ADDRESS)
            ).challenge
            now_result(self.world.decisions.approve(self.world.caller(person), challenge.id, address=BROWSER))
        self.forget()

    def policy(self, **fields: object) -> None:
        policy = {"name": "prod", "match_hosts": ["*"], **fields}
        self.world.policies = Policies.parse(json.dumps({"policies": [policy]}).encode())

    def line(self, message: str, **attributes: object) -> None:
        """The last line of the log, with these attributes in this order."""
        self.assertEqual(
            (self.world.log[-1][0], list(self.world.log[-1][1].items())), (message, list(attributes.items()))
        )


class ChallengeTests(CatalogueCase):
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

    def test_approved_without_own_reason(self) -> None:
        """The request's reason stands in for an approver who gave none; the unnamed host has a name."""
        challenge = self.waiting("")
        now_result(self.world.decisions.approve(self.alice, challenge.id, address=BROWSER))
        self.only(
            "challenge_approved",
            username="alice",
            hostname="(unknown)",
            code=challenge.user_code,
            actor="alice",
            reason="asked",
            remote_addr=BROWSER,
        )

    def test_each_of_all(self) -> None:
        """Approve-all and reject-all say one thing per request."""
        for decide, event in (
            (self.world.decisions.approve_all, "challenge_approved"),
            (self.world.decisions.reject_all, "challenge_rejected"),
        ):
            self.world.change_rules(grace_period=timedelta(0))
            first, second = self.create(), self.create("db01")
            self.forget()
            now_result(decide(self.alice, address=BROWSER))
            records = [json.loads(record.plain) for record in self.world.store.log.records[self.seen :]]
            self.assertEqual([record["event"] for record in records], [event] * 2)
            self.assertEqual({record["code"] for record in records}, {first.user_code, second.user_code})

    def test_partially_approved(self) -> None:
        """As an approval, each but the last."""
        self.policy(min_approvals=2)
        challenge = self.waiting()
        now_result(self.world.decisions.approve(self.carol, challenge.id, address=BROWSER))
        self.only(
            "challenge_partially_approved",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor="carol",
            reason="asked",
            remote_addr=BROWSER,
        )

    def test_lost_race(self) -> None:
        """A decision that comes too late leaves nothing."""
        challenge = self.waiting()
        now_result(self.world.decisions.reject(self.alice, challenge.id))
        self.forget()
        for again in (self.world.decisions.approve, self.world.decisions.reject):
            with self.assertRaises(Refused):
                now_result(again(self.alice, challenge.id, address=BROWSER))
        self.assertEqual(self.world.store.log.records[self.seen :], [])

    def test_cancelled(self) -> None:
        """The owner, from the host's address; without the request's reason, and once."""
        challenge = self.waiting()
        for _ in range(2):
            now_result(self.world.challenges.cancel(challenge.id, "web01", GLOBAL, HOST_ADDRESS))
        self.only(
            "challenge_cancelled",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor="alice",
            remote_addr=HOST_ADDRESS,
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

    def test_expired_without_host(self) -> None:
        """An unnamed host has no column here."""
        challenge = self.waiting("")
        self.world.clock.advance(121)
        now_result(self.world.challenges.expire_overdue())
        self.only("challenge_expired", username="alice", code=challenge.user_code)


class SessionTests(CatalogueCase):
    def test_revoked(self) -> None:
        """Whose session, where, and who ended it."""
        self.session()
        now_result(self.world.decisions.revoke(self.carol, "web01", owner="alice", address=BROWSER))
        self.only("session_revoked", username="alice", hostname="web01", actor="carol", remote_addr=BROWSER)

    def test_revoked_without_host(self) -> None:
        """The session need not exist; the one of no host has a name."""
        now_result(self.world.decisions.revoke(self.alice, "", address=BROWSER))
        self.only("session_revoked", username="alice", hostname="(unknown)", actor="alice", remote_addr=BROWSER)

    def test_revoked_all(self) -> None:
        """One record for all, without a host; none when there was nothing."""
        self.session()
        now_result(self.world.decisions.approve(self.alice, self.waiting("db01").id, address=BROWSER))
        self.forget()
        for _ in range(2):
            now_result(self.world.decisions.revoke_all(self.alice, address=BROWSER))
        self.only("sessions_revoked_bulk", username="alice", actor="alice", remote_addr=BROWSER)

    def test_revoked_all_of_one(self) -> None:
        """Whom the admin named."""
        self.everyone()
        now_result(self.world.decisions.revoke_all(self.carol, owner="bob", address=BROWSER))
        self.only("sessions_revoked_bulk", username="bob", actor="carol", remote_addr=BROWSER)

    def test_revoked_everybodys(self) -> None:
        """One record for everybody, with nobody's name; none when nobody had a session."""
        self.everyone()
        self.assertEqual(now_result(self.world.decisions.revoke_all(self.carol, address=BROWSER)), 2)
        self.assertEqual(now_result(self.world.decisions.revoke_all(self.carol, address=BROWSER)), 0)
        self.only("sessions_revoked_bulk", username="", actor="carol", remote_addr=BROWSER)

    def test_revoked_everybodys_many(self) -> None:
        """Everybody is everybody, also when there are more sessions than the store lists at a time."""
        read = self.world.store.grace_sessions
        self.everyone()
        self.world.store.grace_sessions = lambda username, now: read(username, now, 1)  # type: ignore[method-assign]
        self.assertEqual(now_result(self.world.decisions.revoke_all(self.carol, address=BROWSER)), 2)
        self.only("sessions_revoked_bulk", username="", actor="carol", remote_addr=BROWSER)

    def test_extended(self) -> None:
        """Whose session, where, and who extended it."""
        self.session()
        now_result(self.world.decisions.extend(self.carol, "web01", owner="alice", address=BROWSER))
        self.only("session_extended", username="alice", hostname="web01", actor="carol", remote_addr=BROWSER)

    def test_extended_without_host(self) -> None:
        """The session of no host has a name."""
        now_result(self.world.decisions.approve(self.alice, self.create("").id))
        self.forget()
        now_result(self.world.decisions.extend(self.alice, "", address=BROWSER))
        self.only("session_extended", username="alice", hostname="(unknown)", actor="alice", remote_addr=BROWSER)

    def test_not_extended(self) -> None:
        """Where there is no session nothing is recorded."""
        with self.assertRaises(Refused):
            now_result(self.world.decisions.extend(self.alice, "web01", address=BROWSER))
        self.assertEqual(self.world.store.events, [])

    def test_extended_all(self) -> None:
        """One record for all, without a host, also when there was none."""
        self.session()
        now_result(self.world.decisions.approve(self.alice, self.waiting("db01").id))
        self.forget()
        now_result(self.world.decisions.extend_all(self.carol, owner="alice", address=BROWSER))
        self.only("session_extended", username="alice", actor="carol", remote_addr=BROWSER)
        self.forget()
        now_result(self.world.decisions.extend_all(self.carol, owner="bob", address=BROWSER))
        self.only("session_extended", username="bob", actor="carol", remote_addr=BROWSER)


class PeopleTests(CatalogueCase):
    def sign_in(self, code: str = "good", address: str = BROWSER, browser: str | None = None) -> None:
        start = now_result(self.world.people.begin_login(address=BROWSER))
        state = start.url.partition("state=")[2].partition("&")[0]
        kept = start.browser if browser is None else browser
        now_result(self.world.people.finish_login(state=state, code=code, error="", address=address, browser=kept))

    def test_logged_in(self) -> None:
        """Who, from where."""
        self.sign_in()
        self.only("user_logged_in", username="alice", remote_addr=BROWSER)

    def test_signed_out(self) -> None:
        """Who, from where; once, whatever sessions end with it."""
        self.everyone()
        now_result(self.world.people.sign_out(self.alice, BROWSER))
        self.only("user_signed_out", username="alice", actor="alice", remote_addr=BROWSER)

    def test_development(self) -> None:
        """A session without a sign-in is in the log, and no sign-in."""
        now_result(self.world.people.sign_in_for_development("alice", "admin", BROWSER))
        self.assertEqual(self.world.store.events, [])

    def test_sign_in_refused(self) -> None:
        """Nobody yet, from where, and what was wrong; not when a person pressed 'cancel' or came too late."""
        self.world.change_rules(enforce_ip_binding=True)
        for changes, reason in (
            ({"code": "bad"}, "login_exchange_failed: sign-in"),
            ({"browser": ""}, "begun in another browser: sign-in"),
            ({"address": HOST_ADDRESS}, "begun from another address: sign-in"),
        ):
            self.forget()
            self.assertRaises(LoginFailed, self.sign_in, **changes)
            address = changes.get("address", BROWSER)
            self.only("authentication_failed", username="", reason=reason, remote_addr=address)
        self.forget()
        self.assertRaises(LoginFailed, self.sign_in, code="")
        self.assertEqual(self.world.store.log.records[self.seen :], [])


class OthersTests(CatalogueCase):
    def test_sudo_rules(self) -> None:
        """The admin, the rule's group as the host, for each of the three changes."""
        rules = SudoRules(
            file=MemoryRules(SudoRule(group="dba", commands="/usr/bin/psql")),
            reports=lambda: (),
            no_authenticate=lambda: "false",
            store=self.world.store,
            now=self.world.now,
            journal=self.world.journal,
            sliced=at_once,
        )
        fields = {"group": "ops", "commands": "/usr/bin/apt"}
        for change, marker in (
            (rules.add(self.carol, fields, address=BROWSER), "SUDO_RULE_ADDED"),
            (rules.update(self.carol, fields, address=BROWSER), "SUDO_RULE_UPDATED"),
            (rules.delete(self.carol, "ops", address=BROWSER), "SUDO_RULE_DELETED"),
        ):
            self.forget()
            now_result(change)
            self.only("sudo_rule_modified", username="carol", hostname="ops", actor="carol", remote_addr=BROWSER)
            self.line(marker, admin="carol", group="ops", remote_addr=BROWSER)

    def test_certificate(self) -> None:
        """The host's name twice, the serial in lower-case hex without leading zeros."""
        shop = Workshop(add_cleanup=self.addCleanup)
        self.world = shop.world
        shop.serials = iter([0x0ABC])
        shop.provision("Web1")
        self.only("certificate_issued", username="Web1", hostname="Web1", code="abc", remote_addr=PROVISIONED_FROM)


class AuthenticationTests(CatalogueCase):
    """What a host presented was wrong; not when the server has no such feature, or was asked nonsense."""

    WRONG = Credential(secret=b"wrong")
    WEB01 = Credential(secret=b"f" * 64)
    DB01 = Credential(secret=b"e" * 64)

    def register(self) -> None:
        self.world.registry = HostRegistry.parse(
            json.dumps(
                {"web01": {"secret": "f" * 64, "users": ["alice"]}, "db01": {"secret": "e" * 64, "users": ["*"]}}
            ).encode()
        )

    def refused(self, work: Coroutine[Any, Any, object]) -> None:
        with self.assertRaises(Refused):
            now_result(work)

    def open(self, presented: Credential, username: str = "alice", hostname: str = "web01") -> None:
        self.refused(self.world.challenges.create(Draft(username=username, hostname=hostname), presented, HOST_ADDRESS))

    def test_creating(self) -> None:
        """Who and what was asked for, as the log line has it."""
        for presented in (self.WRONG, Credential()):
            self.forget()
            self.open(presented)
            self.only(
                "authentication_failed",
                username="alice",
                hostname="web01",
                reason="unauthorized: POST /api/challenge",
                remote_addr=HOST_ADDRESS,
            )
            self.line("AUTH_FAILURE", reason="unauthorized", remote_addr=HOST_ADDRESS, host="web01", user="alice")

    def test_not_listed(self) -> None:
        """A person who may not use the host, and a host that does not say which one it is."""
        self.register()
        for username, hostname, reason in (
            ("bob", "web01", "user not authorized on this host"),
            ("bob", "", "hostname required when host registry is enabled"),
        ):
            self.forget()
            self.open(GLOBAL, username, hostname)
            columns = {"hostname": hostname} if hostname else {}
            self.only(
                "authentication_failed",
                username=username,
                **columns,
                reason=f"{reason}: POST /api/challenge",
                remote_addr=HOST_ADDRESS,
            )

    def test_polling(self) -> None:
        """A stranger's poll and cancellation say where; what he asked for stays out."""
        challenge = self.waiting()
        for work, where in (
            (self.world.challenges.poll(challenge.id, "web01", self.WRONG, HOST_ADDRESS), "GET /api/challenge/"),
            (self.world.challenges.cancel(challenge.id, "web01", self.WRONG, HOST_ADDRESS), "DELETE /api/challenge/"),
        ):
            self.forget()
            self.refused(work)
            self.only(
                "authentication_failed",
                username="",
                reason=f"invalid shared secret: {where}",
                remote_addr=HOST_ADDRESS,
            )
            self.line("AUTH_FAILURE invalid shared secret", path=where, remote_addr=HOST_ADDRESS)

    def test_another_hosts(self) -> None:
        """A right credential on another host's challenge: whose it is, and what does not fit."""
        self.register()
        challenge = self.waiting()
        for hostname, reason in (("db01", "hostname mismatch"), ("web01", "credential mismatch")):
            self.forget()
            self.refused(self.world.challenges.poll(challenge.id, hostname, self.DB01, HOST_ADDRESS))
            self.only(
                "authentication_failed",
                username="alice",
                hostname="web01",
                code=challenge.user_code,
                reason=f"{reason}: /api/challenge/",
                remote_addr=HOST_ADDRESS,
            )

    def test_grace_status(self) -> None:
        """A stranger, and another host's credential."""
        self.register()
        self.refused(self.world.challenges.grace_status("alice", "web01", self.WRONG, HOST_ADDRESS))
        self.only(
            "authentication_failed",
            username="",
            reason="invalid shared secret: GET /api/grace-status",
            remote_addr=HOST_ADDRESS,
        )
        self.line("AUTH_FAILURE grace-status invalid secret", remote_addr=HOST_ADDRESS)
        self.forget()
        self.refused(self.world.challenges.grace_status("alice", "web01", self.DB01, HOST_ADDRESS))
        self.only(
            "authentication_failed",
            username="",
            hostname="web01",
            reason="hostname mismatch: GET /api/grace-status",
            remote_addr=HOST_ADDRESS,
        )
        self.line("AUTH_FAILURE grace-status hostname mismatch", host="web01", remote_addr=HOST_ADDRESS)

    def test_blocked(self) -> None:
        """Further tries of a blocked address are counted, and told with the next record of the kind."""
        for _ in range(10):
            self.open(self.WRONG)
        for _ in range(5):
            self.assertRaises(Refused, self.world.hosts.admit, self.WRONG, HOST_ADDRESS)
        self.assertEqual(self.world.store.events, ["authentication_failed"] * 10)
        self.forget()
        self.world.clock.advance(61)
        self.open(self.WRONG)
        [record] = [json.loads(record.plain) for record in self.world.store.log.records[self.seen :]]
        self.assertEqual(
            record["reason"],
            "unauthorized: POST /api/challenge; and 5 more of this kind since 2026-01-02T03:04:05Z",
        )

    def test_provisioning(self) -> None:
        """The same for each reason why a host is not provisioned; a stranger's nonsense is no host name."""
        shop = Workshop(add_cleanup=self.addCleanup, strict=True)
        self.world = shop.world
        shop.register("web1", "web2")
        shop.provision("web1")
        where = "GET /api/client/provision"
        for hostname, presented, named, reason in (
            ("web1", self.WRONG, "web1", "invalid shared secret"),
            ("<script>", self.WRONG, "", "invalid shared secret"),
            ("web9", GLOBAL, "web9", "hostname not registered"),
            ("web2", self.WEB01, "web2", "hostname mismatch"),
            ("web1", GLOBAL, "web1", "certificate still valid"),
        ):
            self.forget()
            self.assertRaises(Refused, shop.provision, hostname, presented)
            columns = {"hostname": named} if named else {}
            self.only(
                "authentication_failed",
                username="",
                **columns,
                reason=f"{reason}: {where}",
                remote_addr=PROVISIONED_FROM,
            )


class RefusedApprovalTests(CatalogueCase):
    """Whose request, who wanted to approve it, and the rule; nothing where no rule refused it."""

    def refused(self, reason: str, *, by: str = "alice", role: str = "user") -> None:
        challenge = self.waiting()
        caller = self.world.caller(by, role)
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(caller, challenge.id, address=BROWSER))
        self.only(
            "approval_refused",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor=by,
            reason=reason,
            remote_addr=BROWSER,
        )

    def test_window(self) -> None:
        """At the wrong time."""
        self.policy(allowed_hours="09:00-17:00")
        self.refused("outside the time window 09:00-17:00 (policy prod)")

    def test_stale(self) -> None:
        """By somebody who signed in too long ago."""
        self.policy(require_fresh_oidc="5m")
        self.refused("no sign-in within 5m0s (policy prod)")

    def test_admin(self) -> None:
        """By no admin."""
        self.policy(require_admin=True)
        self.refused("not an admin (policy prod)")

    def test_foreign(self) -> None:
        """Somebody else's, by no admin, who is told that it does not exist."""
        self.refused("neither the own request nor an admin", by="bob")

    def test_twice(self) -> None:
        """By one who is counted already."""
        self.policy(min_approvals=2)
        challenge = self.waiting()
        now_result(self.world.decisions.approve(self.carol, challenge.id, address=BROWSER))
        self.forget()
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(self.carol, challenge.id, address=BROWSER))
        self.only(
            "approval_refused",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor="carol",
            reason="already approved by the same person (policy prod)",
            remote_addr=BROWSER,
        )

    def test_superseded(self) -> None:
        """Older than a revocation."""
        challenge = self.waiting()
        now_result(self.world.decisions.revoke(self.alice, "web01"))
        self.forget()
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(self.alice, challenge.id, address=BROWSER))
        self.only(
            "approval_refused",
            username="alice",
            hostname="web01",
            code=challenge.user_code,
            actor="alice",
            reason="older than the last revocation of the owner's sessions",
            remote_addr=BROWSER,
        )

    def test_form(self) -> None:
        """A reason that is missing can be given: no rule refused the approval."""
        challenge = self.create(reason="")
        self.forget()
        self.world.change_rules(require_justification=True)
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(self.alice, challenge.id))
        self.assertEqual(self.world.store.log.records[self.seen :], [])

    def test_all(self) -> None:
        """Approve-all is the same decision."""
        self.policy(allowed_hours="09:00-17:00")
        self.waiting()
        now_result(self.world.decisions.approve_all(self.alice, address=BROWSER))
        self.assertEqual(self.world.store.events[-1], "approval_refused")


class LineTests(CatalogueCase):
    """Lines of the server log: their first words, their attributes and the order of these are contract."""

    def test_created(self) -> None:
        """A request, and the policy that counts for it."""
        self.policy()
        challenge = self.create()
        self.line(
            "CHALLENGE created",
            challenge=challenge.id[:8],
            user="alice",
            remote_addr=HOST_ADDRESS,
            host="web01",
            policy="prod",
        )

    def test_auto_approved(self) -> None:
        """By a session."""
        self.session()
        challenge = self.create()
        self.line("GRACE auto-approved", user="alice", challenge=challenge.id[:8])

    def test_rate_limit(self) -> None:
        """Too many at a time."""
        self.world.change_rules(max_pending_per_user=1)
        self.create()
        self.assertRaises(Refused, self.create)
        self.line("RATE_LIMIT", user="alice", remote_addr=HOST_ADDRESS, host="web01")

    def test_approved(self) -> None:
        """One approval, a part of one, and all."""
        challenge = self.waiting()
        now_result(self.world.decisions.approve(self.carol, challenge.id, address=BROWSER))
        shown = {"user": "alice", "approver": "carol", "host": "web01", "challenge": challenge.id[:8]}
        self.line("BULK_APPROVED", **shown, remote_addr=BROWSER)
        self.world.change_rules(grace_period=timedelta(0))
        self.policy(min_approvals=2)
        challenge = self.waiting()
        now_result(self.world.decisions.approve(self.carol, challenge.id, address=BROWSER))
        self.line(
            "PARTIAL_APPROVAL",
            **{**shown, "challenge": challenge.id[:8]},
            approvals=1,
            required=2,
            remote_addr=BROWSER,
        )
        now_result(self.world.decisions.approve_all(self.alice, address=BROWSER))
        self.line("BULK_APPROVE_ALL", user="alice", host="web01", challenge=challenge.id[:8], remote_addr=BROWSER)
        challenge = self.waiting()
        now_result(self.world.decisions.approve_all(self.alice, address=BROWSER))
        self.line(
            "BULK_APPROVE_ALL_PARTIAL",
            user="alice",
            host="web01",
            challenge=challenge.id[:8],
            approver="alice",
            remote_addr=BROWSER,
        )

    def test_refused(self) -> None:
        """By the two rules that have lines of their own."""
        self.policy(allowed_hours="09:00-17:00")
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(self.carol, self.create().id))
        self.line(
            "APPROVAL_REJECTED outside time window", user="alice", host="web01", policy="prod", window="09:00-17:00"
        )
        self.policy(require_fresh_oidc="5m")
        with self.assertRaises(Refused):
            now_result(self.world.decisions.approve(self.carol, self.create().id))
        self.line(
            "APPROVAL_REJECTED stale OIDC auth", approver="carol", host="web01", policy="prod", require_fresh="5m0s"
        )

    def test_rejected(self) -> None:
        """One, and all."""
        challenge = self.waiting()
        now_result(self.world.decisions.reject(self.carol, challenge.id, reason="no", address=BROWSER))
        shown = {"user": "alice", "host": "web01"}
        self.line("REJECTED", **shown, challenge=challenge.id[:8], reason="no", remote_addr=BROWSER)
        challenge = self.waiting()
        now_result(self.world.decisions.reject_all(self.alice, reason="no", address=BROWSER))
        self.line("BULK_REJECT_ALL", **shown, challenge=challenge.id[:8], reason="no", remote_addr=BROWSER)

    def test_revoked(self) -> None:
        """One's own, somebody else's, and all."""
        self.session()
        now_result(self.world.decisions.revoke(self.alice, "web01", address=BROWSER))
        self.line("SESSION_REVOKED", user="alice", host="web01", remote_addr=BROWSER)
        now_result(self.world.decisions.revoke(self.carol, "", owner="alice", address=BROWSER))
        self.line(
            "CROSS_USER_SESSION_REVOKE",
            actor="carol",
            target_user="alice",
            host="(unknown)",
            remote_addr=BROWSER,
        )
        self.session()
        now_result(self.world.decisions.revoke_all(self.alice, address=BROWSER))
        self.line("BULK_REVOKE_ALL", user="alice", host="web01", remote_addr=BROWSER)

    def test_extended(self) -> None:
        """One, with how long it has from then on as durations are written; all, with their number."""
        self.session()
        now_result(self.world.decisions.extend(self.alice, "web01", address=BROWSER))
        self.line("EXTENDED", user="alice", host="web01", remaining="1h0m0s", remote_addr=BROWSER)
        now_result(self.world.decisions.extend_all(self.carol, owner="alice", address=BROWSER))
        self.line("BULK_EXTEND_ALL", user="carol", count=1, target_user="alice", remote_addr=BROWSER)
        self.assertEqual([message for message, _ in self.world.log].count("EXTENDED"), 1)

    def test_signed_in(self) -> None:
        """Who, with which role; and without authentication."""
        self.world.provider.identity = Identity(username="carol", groups=("admins",))
        start = now_result(self.world.people.begin_login(address=BROWSER))
        state = start.url.partition("state=")[2].partition("&")[0]
        now_result(
            self.world.people.finish_login(state=state, code="good", error="", address=BROWSER, browser=start.browser)
        )
        self.line("SESSIONS", user="carol", role="admin", remote_addr=BROWSER)
        now_result(self.world.people.sign_in_for_development("bob", "user", BROWSER))
        self.line("DEV_LOGIN used without authentication", user="bob", role="user", remote_addr=BROWSER)

    def test_another_hosts(self) -> None:
        """A poll with another name than the challenge's."""
        challenge = self.waiting()
        with self.assertRaises(Refused):
            now_result(self.world.challenges.poll(challenge.id, "db01", GLOBAL, HOST_ADDRESS))
        self.line(
            "AUTH_FAILURE poll hostname mismatch", challenge_host="web01", req_host="db01", remote_addr=HOST_ADDRESS
        )
