"""What hosts ask for, through the application, on a memory store."""

from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft, Opened, client_config
from identree.app.hosts import Credential
from identree.app.rules import ClientDefaults, Rules
from identree.core import tokens
from identree.core.challenge import GraceSession, Status
from identree.core.errors import (
    AlreadyResolved,
    CredentialMismatch,
    Gone,
    HostnameMismatch,
    JustificationRequired,
    NotListed,
    Throttled,
    TooManyPending,
    Unauthorized,
)
from identree.core.hosts import HostRegistry
from identree.core.policy import Policies
from tests.app.world import GLOBAL, SECRET, START, World, now_result

HOST_SECRET = "ab" * 32
OTHER_SECRET = "cd" * 32
REGISTRY = HostRegistry.parse(
    f"""{{"web01": {{"secret": "{HOST_SECRET}", "users": ["alice"], "registered_at": "2026-01-01T00:00:00Z"}},
         "db01": {{"secret": "{OTHER_SECRET}", "users": ["*"], "registered_at": "2026-01-01T00:00:00Z"}}}}""".encode()
)


class CreationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def create(self, username: str = "alice", hostname: str = "web01", **more: Any) -> Opened:
        credential = more.pop("credential", GLOBAL)
        draft = Draft(username=username, hostname=hostname, **more)
        return now_result(self.world.challenges.create(draft, credential, "10.0.0.1"))

    def grace(self, expires_in: int = 600, **changes: str) -> None:
        """Give alice on web01 a grace session."""
        at = START + timedelta(seconds=expires_in)
        mac = changes.get("mac") or tokens.grace_mac(self.world.keys.grace, "alice", "web01", int(at.timestamp()))
        session = GraceSession(username="alice", hostname="web01", expires_at=at, mac=mac)
        from identree.storage.interface import GraceChange

        now_result(self.world.store.change_grace("alice", "web01", lambda row: GraceChange(session=session)))

    def test_pending(self) -> None:
        """A challenge waits for its whole life, with a code and a place to decide it."""
        opened = self.create(reason="deploy")
        challenge = opened.challenge
        self.assertEqual((challenge.status, opened.expires_in), (Status.PENDING, 120))
        self.assertRegex(challenge.user_code, r"^[A-HJ-NP-Z]{6}-[0-9]{6}$")
        self.assertEqual(opened.verification_url, f"https://identree.example/approve/{challenge.user_code}")
        self.assertEqual((opened.approval_token, opened.client_config), ("", {}))
        self.assertEqual(self.world.sample("identree_challenges_created_total"), 1)

    def test_bad_secret(self) -> None:
        """A wrong secret is refused, counted and logged without the secret."""
        with self.assertRaises(Unauthorized):
            self.create(credential=Credential(secret=b"x" * 32))
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 1)
        self.assertEqual(self.world.log[-1][0], "AUTH_FAILURE")
        self.assertNotIn("xxxx", repr(self.world.log))

    def test_no_configured_secret_matches_nothing(self) -> None:
        """An empty secret is never the right one."""
        with self.assertRaises(Unauthorized):
            self.create(credential=Credential())

    def test_back_off(self) -> None:
        """Ten failures hold an address off; a right credential from the same address still gets in."""
        wrong = Credential(secret=b"y" * 32)
        for _ in range(10):
            with self.assertRaises(Unauthorized):
                self.create(credential=wrong)
        refusal = self.assertRaises(Throttled, self.world.hosts.admit, wrong, "10.0.0.1")
        self.assertEqual(refusal.retry_after, 60)
        self.world.hosts.admit(GLOBAL, "10.0.0.1")
        self.world.hosts.admit(wrong, "10.0.0.2")

    def test_host_secret(self) -> None:
        """A host's own secret is good for that host and the users listed there."""
        self.world.registry = REGISTRY
        mine = Credential(secret=HOST_SECRET.encode())
        self.assertEqual(self.create(credential=mine).challenge.hostname, "web01")
        with self.assertRaises(Unauthorized):
            self.create(hostname="db01", credential=mine)

    def test_user_not_listed(self) -> None:
        """A user who is not listed is refused, and that does not count against the address."""
        self.world.registry = REGISTRY
        for _ in range(12):
            with self.assertRaises(NotListed):
                self.create(username="mallory", credential=Credential(secret=HOST_SECRET.encode()))
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 0)
        self.world.hosts.admit(Credential(secret=b"z" * 32), "10.0.0.1")

    def test_registry_demands_a_hostname(self) -> None:
        """With a registry the global secret must name a host that lists the user."""
        self.world.registry = REGISTRY
        with self.assertRaises(Unauthorized):
            self.create(hostname="")
        with self.assertRaises(NotListed):
            self.create(username="bob", hostname="web01")
        self.assertEqual(self.create(username="bob", hostname="db01").challenge.username, "bob")

    def test_justification(self) -> None:
        """Where a reason is required, its absence is told with the choices, but not to strangers."""
        self.world.change_rules(require_justification=True, justification_choices=("Incident",))
        with self.assertRaises(JustificationRequired) as refused:
            self.create()
        self.assertEqual(refused.exception.choices, ("Incident",))
        with self.assertRaises(Unauthorized):
            self.create(credential=Credential(secret=b"x" * 32))
        self.assertEqual(self.create(reason="Incident").challenge.reason, "Incident")

    def test_caps(self) -> None:
        """Ten pending challenges of one person are enough."""
        for _ in range(10):
            self.create()
        with self.assertRaises(TooManyPending):
            self.create()
        self.assertEqual(self.world.sample("identree_rate_limit_rejections_total"), 1)
        self.assertEqual(self.create(username="bob").challenge.username, "bob")

    def test_auto_approval(self) -> None:
        """A valid grace session approves at once, verifiably, and is not extended."""
        self.world.change_rules(grace_period=timedelta(hours=1))
        self.grace(600)
        opened = self.create()
        self.assertEqual((opened.challenge.status, opened.grace_remaining), (Status.APPROVED, 600))
        wanted = tokens.status_token_for_host(SECRET.encode(), opened.challenge.id, "approved", "alice", "", "")
        self.assertEqual(opened.approval_token, wanted)
        self.assertEqual(self.world.sample("identree_challenges_auto_approved_total"), 1)

    def test_no_auto_approval(self) -> None:
        """Not with grace off, a wrong MAC, another host, an expired session, or a policy that forbids it."""
        self.grace(600)
        self.assertIs(self.create().challenge.status, Status.PENDING)
        self.world.change_rules(grace_period=timedelta(hours=1))
        self.assertIs(self.create(hostname="web02").challenge.status, Status.PENDING)
        self.world.policies = Policies.parse(b'{"policies":[{"name":"p","match_hosts":["web*"]}]}')
        self.assertIs(self.create().challenge.status, Status.PENDING)
        self.world.policies = Policies.empty()
        self.world.clock.advance(600)
        self.assertIs(self.create().challenge.status, Status.PENDING)
        self.grace(1200, mac="0" * 64)
        self.assertIs(self.create().challenge.status, Status.PENDING)

    def test_policy_snapshot(self) -> None:
        """What the policy demands is stored with the challenge."""
        self.world.policies = Policies.parse(
            b'{"policies":[{"name":"prod","match_hosts":["web*"],"require_admin":true,"min_approvals":2}]}'
        )
        challenge = self.create().challenge
        self.assertEqual(
            (challenge.policy_name, challenge.require_admin, challenge.required_approvals), ("prod", True, 2)
        )

    def test_snapshots_of_revocation_and_rotation(self) -> None:
        """The later rotation and the revocation are frozen as RFC 3339 text."""
        self.world.change_rules(rotate_before=START - timedelta(days=1))
        now_result(self.world.decisions.revoke(self.world.caller("alice"), "web01", owner="", address="10.0.0.9"))
        self.world.clock.advance(5)
        challenge = self.create().challenge
        self.assertEqual(
            (challenge.rotate_before, challenge.revoke_before), ("2026-01-01T03:04:05Z", "2026-01-02T03:04:05Z")
        )

    def test_client_config(self) -> None:
        """Only what is set is pushed; a too short poll interval is raised."""
        rules = Rules(
            external_url="",
            client=ClientDefaults(
                poll_interval=timedelta(milliseconds=200), timeout=timedelta(seconds=90), token_cache_enabled=False
            ),
        )
        self.assertEqual(
            client_config(rules), {"poll_interval": "1s", "timeout": "1m30s", "token_cache_enabled": False}
        )


class PollTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        draft = Draft(username="alice", hostname="web01")
        self.id = now_result(self.world.challenges.create(draft, GLOBAL, "10.0.0.1")).challenge.id
        self.alice = self.world.caller("alice")

    def poll(self, hostname: str = "web01", credential: Credential = GLOBAL) -> Any:
        return now_result(self.world.challenges.poll(self.id, hostname, credential, "10.0.0.1"))

    def test_pending(self) -> None:
        """It says how long is left and carries no token."""
        self.world.clock.advance(20.5)
        polled = self.poll()
        self.assertEqual((polled.challenge.status, polled.remaining, polled.token), (Status.PENDING, 99, ""))

    def test_approved(self) -> None:
        """The token is signed with the secret that the host presented."""
        now_result(self.world.decisions.approve(self.alice, self.id))
        polled = self.poll()
        wanted = tokens.status_token_for_host(SECRET.encode(), self.id, "approved", "alice", "", "")
        self.assertEqual((polled.challenge.status, polled.token), (Status.APPROVED, wanted))

    def test_signed_for_the_host_that_asks(self) -> None:
        """A host with its own secret can verify."""
        self.world.registry = REGISTRY
        now_result(self.world.decisions.approve(self.alice, self.id))
        polled = self.poll(credential=Credential(secret=HOST_SECRET.encode()))
        wanted = tokens.status_token_for_host(HOST_SECRET.encode(), self.id, "approved", "alice", "", "")
        self.assertEqual(polled.token, wanted)

    def test_another_host(self) -> None:
        """Neither with another name nor with another host's secret."""
        with self.assertRaises(HostnameMismatch):
            self.poll(hostname="db01")
        self.world.registry = REGISTRY
        with self.assertRaises(CredentialMismatch):
            self.poll(credential=Credential(secret=OTHER_SECRET.encode()))

    def test_expired(self) -> None:
        """A pending one is gone at its expiry; a decided one stays readable for 60 s more."""
        self.world.clock.advance(119)
        now_result(self.world.decisions.approve(self.alice, self.id))
        self.world.clock.advance(60)
        self.assertIs(self.poll().challenge.status, Status.APPROVED)
        self.world.clock.advance(1)
        with self.assertRaises(Gone):
            self.poll()

    def test_undecided_is_gone_at_its_expiry(self) -> None:
        """At exactly the instant of expiry."""
        self.world.clock.advance(120)
        with self.assertRaises(Gone):
            self.poll()

    def test_held_until_decided(self) -> None:
        """A held poll is answered by the decision."""
        held = Deferred.fromCoroutine(self.world.challenges.poll(self.id, "web01", GLOBAL, "10.0.0.1", hold_seconds=25))
        self.assertNoResult(held)
        now_result(self.world.decisions.reject(self.alice, self.id, reason="not now"))
        polled = self.successResultOf(held)
        self.assertEqual((polled.challenge.status, polled.challenge.deny_reason), (Status.DENIED, "not now"))
        self.assertEqual(len(self.world.waiters), 0)

    def test_decided_while_it_was_read(self) -> None:
        """A decision that falls between the first reading and the hold is answered at once."""
        read = self.world.store.challenge

        async def slowly(id: str) -> Any:
            self.world.store.challenge = read  # type: ignore[method-assign]
            challenge = await read(id)
            await self.world.decisions.approve(self.alice, id)
            return challenge

        self.world.store.challenge = slowly  # type: ignore[method-assign]
        held = Deferred.fromCoroutine(self.world.challenges.poll(self.id, "web01", GLOBAL, "10.0.0.1", hold_seconds=25))
        self.assertIs(self.successResultOf(held).challenge.status, Status.APPROVED)

    def test_held_in_vain(self) -> None:
        """Without a decision it is answered as pending after its time."""
        held = Deferred.fromCoroutine(self.world.challenges.poll(self.id, "web01", GLOBAL, "10.0.0.1", hold_seconds=25))
        self.world.clock.advance(25)
        self.assertIs(self.successResultOf(held).challenge.status, Status.PENDING)

    def test_cancelled(self) -> None:
        """Cancelling ends it once; it can be repeated, and nobody can approve it any more."""
        for _ in range(2):
            now_result(self.world.challenges.cancel(self.id, "web01", GLOBAL, "10.0.0.1"))
        with self.assertRaises(AlreadyResolved):
            now_result(self.world.decisions.approve(self.alice, self.id))
        self.assertEqual(self.world.sample("identree_challenges_cancelled_total"), 1)

    def test_too_late_to_cancel(self) -> None:
        """A decided challenge stays decided."""
        now_result(self.world.decisions.approve(self.alice, self.id))
        with self.assertRaises(AlreadyResolved):
            now_result(self.world.challenges.cancel(self.id, "web01", GLOBAL, "10.0.0.1"))

    def test_expiry_is_counted_once(self) -> None:
        """The sweep expires an overdue challenge once."""
        self.world.clock.advance(121)
        self.assertEqual(now_result(self.world.challenges.expire_overdue()), 1)
        self.assertEqual(now_result(self.world.challenges.expire_overdue()), 0)
        self.assertEqual(self.world.sample("identree_challenges_expired_total"), 1)

    def test_grace_status(self) -> None:
        """An approval leaves a grace session that the host can ask for; a revocation is told."""
        self.world.change_rules(grace_period=timedelta(minutes=30))
        now_result(self.world.decisions.approve(self.alice, self.id))
        status = now_result(self.world.challenges.grace_status("alice", "web01", GLOBAL, "10.0.0.1"))
        self.assertEqual((status.remaining, status.revoke_tokens_before), (1800, ""))
        now_result(self.world.decisions.revoke(self.alice, "web01"))
        status = now_result(self.world.challenges.grace_status("alice", "web01", GLOBAL, "10.0.0.1"))
        self.assertEqual((status.remaining, status.revoke_tokens_before), (0, "2026-01-02T03:04:05Z"))

    def test_grace_status_of_another_host(self) -> None:
        """A host may only ask about itself."""
        self.world.registry = REGISTRY
        with self.assertRaises(HostnameMismatch):
            now_result(
                self.world.challenges.grace_status(
                    "alice", "web01", Credential(secret=OTHER_SECRET.encode()), "10.0.0.1"
                )
            )
