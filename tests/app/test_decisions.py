"""What signed-in people decide, on a memory store."""

from datetime import timedelta
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.core.challenge import Status
from identree.core.errors import (
    AdminRequired,
    DuplicateApproval,
    FreshLoginRequired,
    JustificationRequired,
    NotFound,
    OutsideWindow,
    Superseded,
)
from identree.core.policy import Policies
from tests.app.world import GLOBAL, START, World, now_result


class DecisionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.alice = self.world.caller("alice")
        self.bob = self.world.caller("bob")
        self.carol = self.world.caller("carol", "admin")
        self.dave = self.world.caller("dave", "admin")
        self.decisions = self.world.decisions

    def challenge(self, username: str = "alice", hostname: str = "web01", reason: str = "") -> str:
        draft = Draft(username=username, hostname=hostname, reason=reason)
        return now_result(self.world.challenges.create(draft, GLOBAL, "10.0.0.1")).challenge.id

    def status(self, id: str) -> Status:
        challenge = now_result(self.world.store.challenge(id))
        assert challenge is not None
        return challenge.status

    def policy(self, **fields: Any) -> None:
        import json

        policy = {"name": "prod", "match_hosts": ["*"], **fields}
        self.world.policies = Policies.parse(json.dumps({"policies": [policy]}).encode())


class ApprovalTests(DecisionCase):
    def test_own(self) -> None:
        """People approve their own requests; audit, history and metrics say so."""
        outcome = now_result(self.decisions.approve(self.alice, self.challenge(), reason="fix", address="10.9.9.9"))
        self.assertTrue(outcome.complete)
        self.assertEqual(self.world.store.events, ["challenge_created", "challenge_approved"])
        entry = now_result(self.decisions.activity(self.alice))[0]
        self.assertEqual((entry.action, entry.hostname, entry.reason), ("approved", "web01", "fix"))
        self.assertEqual(self.world.sample("identree_challenges_approved_total"), 1)

    def test_somebody_elses(self) -> None:
        """Another person's request does not exist for a user, and can be approved by an admin."""
        id = self.challenge()
        with self.assertRaises(NotFound):
            now_result(self.decisions.approve(self.bob, id))
        now_result(self.decisions.approve(self.carol, id))
        self.assertIs(self.status(id), Status.APPROVED)

    def test_once(self) -> None:
        """The second decision finds nothing to decide."""
        id = self.challenge()
        now_result(self.decisions.approve(self.alice, id))
        for again in (self.decisions.approve(self.carol, id), self.decisions.reject(self.alice, id)):
            with self.assertRaises(NotFound):
                now_result(again)
        self.assertIs(self.status(id), Status.APPROVED)

    def test_too_late(self) -> None:
        """An approval at the instant of expiry is too late, and leaves no event."""
        id = self.challenge()
        self.world.clock.advance(120)
        with self.assertRaises(NotFound):
            now_result(self.decisions.approve(self.alice, id))
        self.assertEqual(self.world.store.events, ["challenge_created"])

    def test_admin_required(self) -> None:
        """A policy that asks for an admin is not satisfied by the owner."""
        self.policy(require_admin=True)
        id = self.challenge()
        with self.assertRaises(AdminRequired):
            now_result(self.decisions.approve(self.alice, id))
        self.assertTrue(now_result(self.decisions.approve(self.carol, id)).complete)

    def test_quorum(self) -> None:
        """Two different people; the same one twice does not count."""
        self.policy(min_approvals=2)
        id = self.challenge()
        self.assertFalse(now_result(self.decisions.approve(self.alice, id)).complete)
        with self.assertRaises(DuplicateApproval):
            now_result(self.decisions.approve(self.alice, id))
        self.assertTrue(now_result(self.decisions.approve(self.carol, id)).complete)
        self.assertEqual(
            self.world.store.events,
            ["challenge_created", "challenge_partially_approved", "approval_refused", "challenge_approved"],
        )

    def test_quorum_of_spellings(self) -> None:
        """One person under two spellings is one person."""
        self.policy(min_approvals=2)
        id = self.challenge()
        now_result(self.decisions.approve(self.world.caller("carol", "admin"), id))
        with self.assertRaises(DuplicateApproval):
            now_result(self.decisions.approve(self.world.caller("Carol", "admin"), id))
        self.assertIs(self.status(id), Status.PENDING)

    def test_outside_the_window(self) -> None:
        """Outside the allowed hours nothing is approved, and the refusal is logged."""
        self.policy(allowed_hours="09:00-17:00")
        id = self.challenge()
        with self.assertRaises(OutsideWindow):
            now_result(self.decisions.approve(self.alice, id))
        self.assertEqual(self.world.log[-1][0], "APPROVAL_REJECTED outside time window")

    def test_stale_login(self) -> None:
        """A policy may ask for a recent sign-in; an unknown one is not recent."""
        self.policy(require_fresh_oidc="5m")
        with self.assertRaises(FreshLoginRequired):
            now_result(self.decisions.approve(self.alice, self.challenge()))
        self.assertEqual(self.world.log[-1][1]["require_fresh"], "5m0s")

    def test_justification(self) -> None:
        """Where a reason is required, the request's own or the approver's will do."""
        self.world.change_rules(require_justification=True)
        with_reason = self.challenge(reason="deploy")
        now_result(self.decisions.approve(self.alice, with_reason))
        self.world.change_rules(require_justification=False)
        without = self.challenge()
        self.world.change_rules(require_justification=True)
        with self.assertRaises(JustificationRequired):
            now_result(self.decisions.approve(self.alice, without))
        now_result(self.decisions.approve(self.alice, without, reason="deploy"))

    def test_superseded(self) -> None:
        """A revocation of the owner's sessions voids the requests made before it, also in the same second."""
        id = self.challenge()
        now_result(self.decisions.revoke(self.alice, "web01"))
        with self.assertRaises(Superseded):
            now_result(self.decisions.approve(self.alice, id))
        after = self.challenge()
        self.assertTrue(now_result(self.decisions.approve(self.alice, after)).complete)

    def test_all(self) -> None:
        """Approve-all takes the caller's own, by the same rules, and leaves the others."""
        mine, other = self.challenge(), self.challenge("bob")
        outcomes = now_result(self.decisions.approve_all(self.alice))
        self.assertEqual([outcome.challenge.id for outcome in outcomes], [mine])
        self.assertIs(self.status(other), Status.PENDING)
        self.policy(allowed_hours="09:00-17:00")
        refused = self.challenge()
        self.assertEqual(now_result(self.decisions.approve_all(self.alice)), [])
        self.assertIs(self.status(refused), Status.PENDING)

    def test_looking_up_a_code(self) -> None:
        """Unknown, decided, expired and another's code are not told apart."""
        challenge = now_result(self.world.store.challenge(self.challenge()))
        assert challenge is not None
        code = challenge.user_code
        self.assertEqual(now_result(self.decisions.by_code(self.alice, code)).id, challenge.id)
        for caller, wanted in ((self.bob, code), (self.alice, "AAAAAA-000000")):
            with self.assertRaises(NotFound):
                now_result(self.decisions.by_code(caller, wanted))
        self.world.clock.advance(120)
        with self.assertRaises(NotFound):
            now_result(self.decisions.by_code(self.alice, code))


class RejectionTests(DecisionCase):
    def test_reason(self) -> None:
        """The reason goes to the host and to the audit."""
        id = self.challenge()
        now_result(self.decisions.reject(self.alice, id, reason="not me"))
        challenge = now_result(self.world.store.challenge(id))
        assert challenge is not None
        self.assertEqual((challenge.status, challenge.deny_reason), (Status.DENIED, "not me"))
        self.assertEqual(self.world.sample("identree_challenges_denied_total", reason="user_rejected"), 1)

    def test_somebody_elses(self) -> None:
        """It does not exist for a user."""
        with self.assertRaises(NotFound):
            now_result(self.decisions.reject(self.bob, self.challenge()))

    def test_all(self) -> None:
        """Reject-all takes the caller's own."""
        self.challenge()
        self.challenge()
        other = self.challenge("bob")
        self.assertEqual(len(now_result(self.decisions.reject_all(self.alice, reason="no"))), 2)
        self.assertIs(self.status(other), Status.PENDING)


class GraceTests(DecisionCase):
    def setUp(self) -> None:
        super().setUp()
        self.world.change_rules(grace_period=timedelta(hours=1))
        now_result(self.decisions.approve(self.alice, self.challenge()))

    def ends(self) -> list[float]:
        return [
            (row.expires_at - START).total_seconds() for row in now_result(self.decisions.grace_sessions(self.alice))
        ]

    def test_an_approval_opens_one(self) -> None:
        """For exactly that person and host; an admin sees everybody's, another user none."""
        self.assertEqual(self.ends(), [3600])
        self.assertEqual(len(now_result(self.decisions.grace_sessions(self.carol))), 1)
        self.assertEqual(now_result(self.decisions.grace_sessions(self.bob)), [])

    def test_extend(self) -> None:
        """Extending moves the end to a full period from now."""
        self.world.clock.advance(1000)
        session = now_result(self.decisions.extend(self.alice, "web01"))
        self.assertEqual(((session.expires_at - START).total_seconds(), self.ends()), (4600, [4600]))

    def test_extending_never_shortens(self) -> None:
        """An hour asked for ten minutes stays an hour."""
        now_result(self.decisions.extend(self.alice, "web01", seconds=600))
        self.assertEqual(self.ends(), [3600])

    def test_extending_never_revives(self) -> None:
        """An expired session, a missing one and a forged one cannot be extended."""
        for hostname in ("web01", "db01"):
            self.world.clock.advance(3600 if hostname == "web01" else 0)
            with self.assertRaises(NotFound):
                now_result(self.decisions.extend(self.alice, hostname))

    def test_forged_row(self) -> None:
        """A row with a wrong MAC is no session."""
        self.world.store.connection.execute("UPDATE grace_sessions SET expiry_unix = expiry_unix + 9999")
        self.assertEqual(self.ends(), [])
        with self.assertRaises(NotFound):
            now_result(self.decisions.extend(self.alice, "web01"))

    def test_revoke(self) -> None:
        """Revoking ends it and is recorded with who did it."""
        now_result(self.decisions.revoke(self.carol, "web01", owner="alice"))
        self.assertEqual(self.ends(), [])
        self.assertEqual(self.world.store.events[-1], "session_revoked")
        self.assertEqual(self.world.log[-1][0], "CROSS_USER_SESSION_REVOKE")

    def test_a_user_revokes_only_own(self) -> None:
        """A user who names somebody else means himself."""
        self.assertEqual(now_result(self.decisions.revoke(self.bob, "web01", owner="alice")), "bob")
        self.assertEqual(self.ends(), [3600])

    def test_revoke_all(self) -> None:
        """A user's own; everybody's when an admin names nobody; one event each time."""
        now_result(self.decisions.approve(self.bob, self.challenge("bob")))
        self.assertEqual(now_result(self.decisions.revoke_all(self.bob)), 1)
        self.assertEqual(self.ends(), [3600])
        self.assertEqual(now_result(self.decisions.revoke_all(self.carol)), 1)
        self.assertEqual(self.ends(), [])
        self.assertEqual(self.world.store.events.count("sessions_revoked_bulk"), 2)

    def test_extend_all(self) -> None:
        """All of one person's."""
        now_result(self.decisions.approve(self.alice, self.challenge(hostname="db01")))
        self.world.clock.advance(100)
        count, until = now_result(self.decisions.extend_all(self.alice))
        self.assertEqual((count, (until - START).total_seconds(), self.ends()), (2, 3700, [3700, 3700]))
        self.assertEqual(self.world.store.events.count("session_extended"), 1)

    def test_extend_none(self) -> None:
        """That somebody wanted it is recorded, also when there was nothing to extend."""
        self.assertEqual(now_result(self.decisions.extend_all(self.bob))[0], 0)
        self.assertEqual(self.world.store.events[-1], "session_extended")

    def test_off(self) -> None:
        """With the grace period off an approval leaves none and nothing can be extended."""
        self.world.change_rules(grace_period=timedelta(0))
        outcome = now_result(self.decisions.approve(self.bob, self.challenge("bob")))
        self.assertIsNone(outcome.grace_until)
        with self.assertRaises(NotFound):
            now_result(self.decisions.extend(self.alice, "web01"))
