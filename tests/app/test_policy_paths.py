"""
No sequence of calls approves what the policy refuses: a machine that does anything people and hosts can do, against an
oracle that judges each approved challenge by what really happened to it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from identree.app.challenges import Draft
from identree.app.onetap import OneTapLinks
from identree.app.people import Caller
from identree.core import tokens
from identree.core.challenge import Challenge, Status
from identree.core.errors import Refused
from identree.core.policy import Policies
from tests.app.world import GLOBAL, World, now_result

PEOPLE = {
    "alice": ("user", frozenset[str]()),
    "bob": ("user", frozenset({"dba"})),
    "carol": ("admin", frozenset[str]()),
    "dora": ("admin", frozenset({"dba"})),
}
HOSTS = ("db01", "web01")
POLICY = st.fixed_dictionaries(
    {"name": st.sampled_from(["p", "q", "default"])},
    optional={
        "match_hosts": st.sampled_from([["db*"], ["*"], ["web01"]]),
        "min_approvals": st.integers(1, 3),
        "require_admin": st.booleans(),
        "auto_approve_grace": st.booleans(),
        "allowed_hours": st.sampled_from(["03:00-03:30", "03:10-05:00"]),
        "require_fresh_oidc": st.sampled_from(["1m", "20m"]),
        "break_glass_bypass": st.booleans(),
        "forbid_self_approval": st.booleans(),
        "approver_groups": st.just(["dba"]),
        "max_grace": st.sampled_from(["0s", "5m"]),
    },
)


class Paths(RuleBasedStateMachine):
    """
    :ivar given: who has approved each challenge and when, by the calls that succeeded.
    :ivar opened: for each person and host, what opened the session: the challenges, or the elevation.
    """

    @initialize(policies=st.lists(POLICY, min_size=1, max_size=2))
    def start(self, policies: list[dict[str, Any]]) -> None:
        self.world = World()
        self.world.change_rules(grace_period=timedelta(minutes=30), challenge_ttl=timedelta(minutes=10))
        self.disabled: set[str] = set()
        self.world.decisions._disabled = self.disabled.__contains__
        self.world.challenges._disabled = self.disabled.__contains__
        self.links = OneTapLinks(
            store=self.world.store,
            decisions=self.world.decisions,
            keys=self.world.keys,
            now=self.world.now,
            max_age=lambda: timedelta(hours=24),
        )
        self.seen = {name: self.world.now() for name in PEOPLE}
        self.world.policies = Policies.from_fields(policies)
        self.ids: list[str] = []
        self.overridden: dict[str, str] = {}
        self.checked: set[str] = set()

    def caller(self, name: str) -> Caller:
        role, groups = PEOPLE[name]
        return replace(self.world.caller(name, role), groups=groups, authenticated_at=self.seen[name])

    def challenge(self, number: int) -> Challenge | None:
        if not self.ids:
            return None
        return now_result(self.world.store.challenge(self.ids[-1 - number % len(self.ids)]))

    # -- what happens around ------------------------------------------------------------------------------------------
    @rule(policies=st.lists(POLICY, max_size=3))
    def policies_change(self, policies: list[dict[str, Any]]) -> None:
        self.world.policies = Policies.from_fields(policies)

    @rule(minutes=st.sampled_from([1, 2, 6, 12]))
    def time_passes(self, minutes: int) -> None:
        self.world.clock.advance(minutes * 60)

    @rule(name=st.sampled_from(sorted(PEOPLE)))
    def signs_in(self, name: str) -> None:
        self.seen[name] = self.world.now()

    @rule(disabled=st.booleans())
    def account(self, disabled: bool) -> None:
        self.disabled.discard("alice")
        if disabled:
            self.disabled.add("alice")

    # -- what people and hosts do -------------------------------------------------------------------------------------
    @rule(name=st.sampled_from(["alice", "bob", "carol"]), host=st.sampled_from(HOSTS))
    def asks(self, name: str, host: str) -> None:
        before = now_result(self.world.store.grace(name, host))
        required = self.world.policies.requirement(name, host, "", self.world.now())
        draft = Draft(username=name, hostname=host, reason="r")
        with suppress(Refused):
            made = now_result(self.world.challenges.create(draft, GLOBAL, "192.0.2.1")).challenge
            self.ids.append(made.id)
            if made.status is Status.APPROVED:
                # in grace: only by a live session that was opened by what would be enough now
                assert before is not None and before.expires_at > self.world.now()
                assert required.auto_approve_grace and required.window_ok and name not in self.disabled
                strength = before.strength
                assert strength.approvals >= required.min_approvals
                assert strength.by_admin or not required.require_admin
                assert strength.by_other or not required.forbid_self_approval
                assert strength.policy == required.policy_name or not required.approver_groups
                self.checked.add(made.id)

    @rule(name=st.sampled_from(sorted(PEOPLE)), number=st.integers(0, 4), way=st.sampled_from(["page", "tap"]))
    def approves(self, name: str, number: int, way: str) -> None:
        challenge = self.challenge(number)
        if challenge is None:
            return
        with suppress(Refused):
            if way == "page":
                now_result(self.world.decisions.approve(self.caller(name), challenge.id))
            else:
                expires = int(challenge.expires_at.timestamp())
                token = tokens.one_tap_token(
                    self.world.keys, challenge.id, challenge.username, expires, challenge.hostname
                )
                now_result(self.links.use(self.caller(name), token))
            self.accepted(challenge, name)

    @rule(name=st.sampled_from(sorted(PEOPLE)))
    def approves_all(self, name: str) -> None:
        for outcome in now_result(self.world.decisions.approve_all(self.caller(name))):
            assert outcome.challenge.username == name
            self.accepted(outcome.challenge, name)

    @rule(name=st.sampled_from(sorted(PEOPLE)), number=st.integers(0, 30))
    def withdraws(self, name: str, number: int) -> None:
        challenge = self.challenge(number)
        if challenge is not None:
            with suppress(Refused):
                now_result(self.world.decisions.withdraw(self.caller(name), challenge.id))

    @rule(name=st.sampled_from(sorted(PEOPLE)), number=st.integers(0, 30))
    def overrides(self, name: str, number: int) -> None:
        challenge = self.challenge(number)
        if challenge is not None:
            with suppress(Refused):
                now_result(self.world.decisions.override(self.caller(name), challenge.id, reason="fire"))
                assert PEOPLE[name][0] == "admin" and challenge.bypass_allowed
                assert challenge.username not in self.disabled
                assert not (challenge.forbid_self_approval and challenge.username == name)
                self.overridden[challenge.id] = name

    @rule(name=st.sampled_from(sorted(PEOPLE)), host=st.sampled_from(HOSTS), owner=st.sampled_from(["", "alice"]))
    def extends(self, name: str, host: str, owner: str) -> None:
        with suppress(Refused):
            now_result(self.world.decisions.extend(self.caller(name), host, owner=owner))

    @rule(name=st.sampled_from(sorted(PEOPLE)), host=st.sampled_from(HOSTS))
    def revokes(self, name: str, host: str) -> None:
        now_result(self.world.decisions.revoke(self.caller(name), host))

    # -- what must hold -----------------------------------------------------------------------------------------------
    def accepted(self, challenge: Challenge, name: str) -> None:
        """This person's approval counted just now: by the snapshot and by what the policies say at this moment."""
        role, groups = PEOPLE[name]
        assert role == "admin" or name == challenge.username or groups.intersection(challenge.approver_groups)
        assert role == "admin" or not challenge.require_admin
        assert name != challenge.username or not challenge.forbid_self_approval
        assert not challenge.approver_groups or groups.intersection(challenge.approver_groups)
        assert challenge.username not in self.disabled
        if challenge.policy_name:
            now = self.world.now()
            required = self.world.policies.requirement(challenge.username, challenge.hostname, "", now)
            assert required.window_ok
            assert required.require_fresh is None or now - self.seen[name] <= required.require_fresh

    @invariant()
    def approved_by_enough(self) -> None:
        for id in self.ids:
            if id in self.checked:
                continue
            challenge = now_result(self.world.store.challenge(id))
            if challenge is None or challenge.status is not Status.APPROVED:
                continue
            self.checked.add(id)
            if id in self.overridden:
                assert challenge.overridden
                continue
            assert not challenge.overridden
            approvers = challenge.approvers
            assert len(approvers) == len(set(approvers)) >= challenge.required_approvals
            assert all(PEOPLE[name][0] == "admin" for name in approvers) or not challenge.require_admin

    @invariant()
    def sessions_are_short_enough(self) -> None:
        for row in now_result(self.world.store.grace_sessions(None, self.world.now())):
            assert tokens.grace_valid(self.world.keys.grace, row)
            assert row.expires_at - self.world.now() <= timedelta(minutes=30)


Paths.TestCase.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
TestPaths = Paths.TestCase
