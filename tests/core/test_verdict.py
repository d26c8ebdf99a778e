"""Who may decide what."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import verdict
from identree.core.challenge import Approval, Challenge, Strength
from identree.core.errors import (
    AccountDisabled,
    AdminRequired,
    FreshLoginRequired,
    NotAnApprover,
    OutsideWindow,
    OverrideNotAllowed,
    Refused,
    SelfApprovalForbidden,
)
from identree.core.policy import Requirement
from identree.core.verdict import Approver

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ALICE = Approver(username="alice", is_admin=False, authenticated_at=NOW)
CAROL = Approver(username="carol", is_admin=True, authenticated_at=NOW)
DORA = Approver(username="dora", is_admin=False, groups=frozenset({"dba"}), authenticated_at=NOW)


def challenge(**fields: Any) -> Challenge:
    values: dict[str, Any] = {
        "id": "0" * 32,
        "user_code": "ABCDEF-123456",
        "username": "alice",
        "hostname": "web01",
        "reason": "",
        "created_at": NOW,
        "expires_at": NOW + timedelta(minutes=2),
        "policy_name": "p",
    }
    return Challenge(**(values | fields))


def refusal(wanted: Challenge, who: Approver, required: Requirement | None = None, disabled: bool = False) -> Any:
    try:
        verdict.may_approve(wanted, who, required or Requirement(), NOW, owner_disabled=disabled)
    except Refused as e:
        return type(e)
    return None


class ApproveTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """Without a policy the requester and every administrator may."""
        self.assertEqual([refusal(challenge(), who) for who in (ALICE, CAROL)], [None, None])

    def test_admin(self) -> None:
        """Where an administrator is required nobody else may."""
        wanted = challenge(require_admin=True)
        self.assertEqual([refusal(wanted, who) for who in (ALICE, CAROL)], [AdminRequired, None])

    def test_self(self) -> None:
        """One's own request, by whatever spelling of the name, also as an administrator."""
        wanted = challenge(forbid_self_approval=True)
        names = ("alice", "Alice")
        for name in names:
            own = Approver(username=name, is_admin=True, authenticated_at=NOW)
            self.assertEqual(refusal(wanted, own), SelfApprovalForbidden)
        self.assertEqual(refusal(wanted, CAROL), None)

    def test_groups(self) -> None:
        """Only members, administrators or not."""
        wanted = challenge(approver_groups=("ops", "dba"))
        self.assertEqual([refusal(wanted, who) for who in (ALICE, CAROL, DORA)], [NotAnApprover, NotAnApprover, None])

    def test_window(self) -> None:
        """Outside the window nobody, where a policy applied."""
        closed = Requirement(window_ok=False, window="x")
        self.assertEqual(refusal(challenge(), CAROL, closed), OutsideWindow)
        self.assertEqual(refusal(challenge(policy_name=""), CAROL, closed), None)

    def test_fresh(self) -> None:
        """Only who was seen lately; who was never seen is not."""
        required = Requirement(require_fresh=timedelta(minutes=5))
        for seen, wanted in (
            (NOW - timedelta(minutes=5), None),
            (NOW - timedelta(minutes=5, seconds=1), FreshLoginRequired),
            (None, FreshLoginRequired),
        ):
            self.assertEqual(refusal(challenge(), replace(CAROL, authenticated_at=seen), required), wanted)

    def test_disabled(self) -> None:
        """Nobody approves for a disabled account."""
        self.assertEqual(refusal(challenge(), CAROL, disabled=True), AccountDisabled)


class OtherTests(SynchronousTestCase):
    def test_see(self) -> None:
        """The requester, administrators, and approvers of the policy."""
        wanted = challenge(approver_groups=("dba",))
        eve = Approver(username="eve", is_admin=False, groups=frozenset({"staff"}))
        seen = [verdict.may_see(wanted, who) for who in (ALICE, CAROL, DORA, eve)]
        self.assertEqual(seen, [True, True, True, False])
        self.assertFalse(verdict.may_see(challenge(), DORA))

    def override(self, who: Approver, disabled: bool = False, **fields: Any) -> Any:
        try:
            verdict.may_override(challenge(**fields), who, owner_disabled=disabled)
        except Refused as e:
            return type(e)
        return None

    def test_override(self) -> None:
        """Administrators, where the policy lets them, and with four eyes where it wants four."""
        self.assertEqual(self.override(ALICE, bypass_allowed=True), AdminRequired)
        self.assertEqual(self.override(CAROL), OverrideNotAllowed)
        self.assertEqual(self.override(CAROL, bypass_allowed=True), None)
        self.assertEqual(self.override(CAROL, True, bypass_allowed=True), AccountDisabled)
        own = {"bypass_allowed": True, "forbid_self_approval": True, "username": "carol"}
        self.assertEqual(self.override(CAROL, **own), SelfApprovalForbidden)

    def test_approvers(self) -> None:
        """Whose approval would still count, by who they are."""
        people = (ALICE, CAROL, DORA)
        self.assertEqual(verdict.approvers_of(challenge(), people), ("alice", "carol"))
        self.assertEqual(verdict.approvers_of(challenge(forbid_self_approval=True), people), ("carol",))
        self.assertEqual(verdict.approvers_of(challenge(approver_groups=("dba",)), people), ("dora",))
        counted = challenge(approvals=(Approval(approver="carol", at=NOW),))
        self.assertEqual(verdict.approvers_of(counted, people), ("alice",))

    def test_elevate(self) -> None:
        """Whoever could approve alone; an administrator also where more is asked for, or later."""

        def may(who: Approver, **fields: Any) -> Any:
            try:
                verdict.may_elevate(Requirement(**fields), who, "alice", NOW)
            except Refused as e:
                return type(e)
            return None

        self.assertEqual(may(ALICE), None)
        self.assertEqual(may(ALICE, min_approvals=2), AdminRequired)
        self.assertEqual(may(CAROL, min_approvals=2), None)
        self.assertEqual(may(ALICE, require_admin=True), AdminRequired)
        self.assertEqual(may(ALICE, forbid_self_approval=True), SelfApprovalForbidden)
        self.assertEqual(may(CAROL, approver_groups=("dba",)), NotAnApprover)
        self.assertEqual(may(ALICE, window_ok=False), OutsideWindow)
        self.assertEqual(may(CAROL, window_ok=False), None)
        stale = replace(CAROL, authenticated_at=None)
        self.assertEqual(may(stale, require_fresh=timedelta(minutes=1)), FreshLoginRequired)


REQUIREMENTS = st.builds(
    Requirement,
    policy_name=st.sampled_from(["p", "q"]),
    min_approvals=st.integers(1, 3),
    require_admin=st.booleans(),
    auto_approve_grace=st.booleans(),
    window_ok=st.booleans(),
    require_fresh=st.none() | st.just(timedelta(minutes=5)),
    forbid_self_approval=st.booleans(),
    approver_groups=st.sampled_from([(), ("dba",)]),
)
STRENGTHS = st.builds(
    Strength,
    policy=st.sampled_from(["", "p", "q"]),
    approvals=st.integers(1, 3),
    by_admin=st.booleans(),
    by_other=st.booleans(),
)


class GraceTests(SynchronousTestCase):
    @settings(max_examples=500, deadline=None)
    @given(REQUIREMENTS, STRENGTHS)
    def test_never_weaker(self, required: Requirement, strength: Strength) -> None:
        """A session stands in only for what it was opened by: no fewer people, nobody of less standing."""
        enough = (
            required.auto_approve_grace
            and required.window_ok
            and strength.approvals >= required.min_approvals
            and (strength.by_admin or not required.require_admin)
            and (strength.by_other or not required.forbid_self_approval)
        )
        if verdict.grace_suffices(required, strength):
            self.assertTrue(enough)
        elif enough:
            # then only who it was, or when, could not be told of another policy's session
            self.assertNotEqual(strength.policy, required.policy_name)
            self.assertTrue(required.approver_groups or required.require_fresh is not None)

    def test_own_approval(self) -> None:
        """What was opened by the owner alone, or by nobody knows whom, is enough where the owner alone would be."""
        self.assertTrue(verdict.grace_suffices(Requirement(), Strength()))
        for wants in (
            {"min_approvals": 2},
            {"require_admin": True},
            {"forbid_self_approval": True},
            {"approver_groups": ("dba",), "policy_name": "p"},
            {"require_fresh": timedelta(minutes=1), "policy_name": "p"},
            {"auto_approve_grace": False},
            {"window_ok": False},
        ):
            self.assertFalse(verdict.grace_suffices(Requirement(**wants), Strength()), wants)
