"""The moves of a challenge."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from twisted.trial.unittest import SynchronousTestCase

from identree.core import challenge as moves
from identree.core.challenge import Challenge, GraceSession, Status
from identree.core.errors import AlreadyResolved, DuplicateApproval, Superseded

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def pending(**changes: object) -> Challenge:
    challenge = Challenge(
        id="00112233445566778899aabbccddeeff",
        user_code="ABCDEF-123456",
        username="alice",
        hostname="web01",
        reason="deploy",
        created_at=AT,
        expires_at=AT + timedelta(seconds=120),
    )
    return replace(challenge, **changes)  # type: ignore[arg-type]


class LifeTests(SynchronousTestCase):
    def test_live_until_its_expiry(self) -> None:
        """The instant of expiry is too late, the second before is not, whatever its fraction."""
        challenge = pending()
        self.assertTrue(challenge.live(AT + timedelta(seconds=119, microseconds=999_999)))
        self.assertFalse(challenge.live(AT + timedelta(seconds=120)))

    def test_readable(self) -> None:
        """A decided one for 60 s past its expiry; one that nobody decided, or that was cancelled in time, likewise."""
        late = AT + timedelta(seconds=179)
        for status, wanted in (
            (Status.APPROVED, True),
            (Status.DENIED, True),
            (Status.CANCELLED, True),
            (Status.PENDING, False),
            (Status.EXPIRED, False),
        ):
            self.assertEqual(pending(status=status).readable(late), wanted, status)
        self.assertFalse(pending(status=Status.APPROVED).readable(late + timedelta(seconds=1)))

    def test_remaining(self) -> None:
        """Truncated, and never negative."""
        self.assertEqual(pending().remaining_seconds(AT + timedelta(seconds=0.5)), 119)
        self.assertEqual(pending().remaining_seconds(AT + timedelta(seconds=500)), 0)


class MoveTests(SynchronousTestCase):
    def test_nothing_moves_what_is_decided(self) -> None:
        """Every move of a decided or overdue challenge raises."""
        over = AT + timedelta(seconds=120)
        cases = [(pending(status=status), AT) for status in Status if status is not Status.PENDING]
        for challenge, now in [*cases, (pending(), over)]:
            self.assertRaises(AlreadyResolved, moves.approve, challenge, "alice", now)
            self.assertRaises(AlreadyResolved, moves.deny, challenge, "alice", now)
            self.assertRaises(AlreadyResolved, moves.cancel, challenge, now)

    def test_expire(self) -> None:
        """Only a pending one, only when its time is over; no history."""
        self.assertRaises(AlreadyResolved, moves.expire, pending(), AT)
        self.assertRaises(AlreadyResolved, moves.expire, pending(status=Status.DENIED), AT + timedelta(hours=1))
        step = moves.expire(pending(), AT + timedelta(seconds=120))
        self.assertEqual((step.challenge.status, step.history), (Status.EXPIRED, ()))

    def test_quorum(self) -> None:
        """The last of several different approvers decides, and only then is there a grace session."""
        session = GraceSession(username="alice", hostname="web01", expires_at=AT + timedelta(hours=1))
        first = moves.approve(pending(required_approvals=2), "alice", AT, grace=lambda c, now: session)
        self.assertEqual((first.resolved, first.grace, first.history), (False, None, ()))
        self.assertRaises(DuplicateApproval, moves.approve, first.challenge, "alice", AT)
        second = moves.approve(first.challenge, "carol", AT, grace=lambda c, now: session)
        self.assertEqual((second.resolved, second.challenge.approved_by, second.grace), (True, "carol", session))
        self.assertEqual(second.challenge.approvers, ("alice", "carol"))

    def test_reason(self) -> None:
        """The approver's reason stands before the request's; of a rejection the audit has only the rejecter's."""
        approved = moves.approve(pending(), "carol", AT, reason="checked")
        self.assertEqual((approved.events[0].reason, approved.history[0].reason), ("checked", "checked"))
        self.assertEqual(moves.approve(pending(), "carol", AT).events[0].reason, "deploy")
        denied = moves.deny(pending(), "carol", AT)
        self.assertEqual((denied.events[0].reason, denied.history[0].reason), ("", "deploy"))

    def test_without_a_host(self) -> None:
        """The record of a creation has the stored name, the others a word for it."""
        challenge = pending(hostname="")
        self.assertEqual(moves.opened(challenge).events[0].hostname, "")
        self.assertEqual(moves.deny(challenge, "alice", AT).events[0].hostname, "(unknown)")


class SupersededTests(SynchronousTestCase):
    def test_revoked_since(self) -> None:
        """Another revocation than the one of the snapshot came after it, also in the same second."""
        self.assertFalse(moves.superseded(pending(), None))
        self.assertTrue(moves.superseded(pending(), AT))
        self.assertFalse(moves.superseded(pending(revoke_before="2026-01-02T03:04:05Z"), AT))
        self.assertTrue(moves.superseded(pending(revoke_before="2026-01-02T03:04:05Z"), AT + timedelta(seconds=1)))

    def test_snapshot_with_an_offset(self) -> None:
        """Deployed versions write their local time; it is the same instant."""
        self.assertFalse(moves.superseded(pending(revoke_before="2026-01-02T05:04:05+02:00"), AT))

    def test_unreadable_snapshot(self) -> None:
        """What cannot be read does not count as seen."""
        self.assertTrue(moves.superseded(pending(revoke_before="yesterday"), AT))

    def test_refused(self) -> None:
        """A superseded request cannot be approved."""
        self.assertRaises(Superseded, moves.approve, pending(), "alice", AT, superseded=True)
