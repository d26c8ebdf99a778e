"""What every store must do, whatever it stands on (identree.storage.interface, spec/storage section 15)."""

from __future__ import annotations

import itertools
import json
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core import audit, events
from identree.core.challenge import (
    Challenge,
    GraceSession,
    HistoryEntry,
    HostContext,
    Live,
    Status,
    Step,
    Strength,
    approve,
    auto_approved,
    cancel,
    deny,
    expire,
    opened,
    override,
    superseded,
    withdraw,
)
from identree.core.errors import (
    AlreadyResolved,
    DuplicateApproval,
    NotFound,
    StorageUnavailable,
    Superseded,
    TooManyPending,
)
from identree.core.explanation import Clause, Explanation
from identree.storage.interface import BrowserSession, Caps, Change, GraceChange, Login, Opening, OwnerState
from identree.storage.script import Do, Script
from identree.storage.store import SqlStore
from tests.fakes import MemoryLog

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
_numbers = itertools.count(1)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def code(number: int) -> str:
    return f"ABCDEF-{number:06}"


def challenge(number: int | None = None, username: str = "alice", hostname: str = "web01", **fields: Any) -> Challenge:
    number = next(_numbers) if number is None else number
    values: dict[str, Any] = {
        "id": f"{number:032x}",
        "user_code": code(number),
        "username": username,
        "hostname": hostname,
        "reason": "because",
        "created_at": NOW,
        "expires_at": at(120),
    }
    return Challenge(**{**values, **fields})


def opening(wanted: Challenge) -> Opening:
    return lambda user_code, state: opened(replace(wanted, user_code=user_code))


def approving(by: str, when: datetime = NOW, grace: datetime | None = None) -> Change:
    def change(present: Challenge, revoked_at: datetime | None) -> Step:
        return approve(
            present,
            by,
            when,
            grace=None
            if grace is None
            else lambda c, _: GraceSession(username=c.username, hostname=c.hostname, expires_at=grace, mac="new"),
            superseded=superseded(present, revoked_at),
        )

    return change


def described(hostnames: Sequence[str]) -> GraceChange:
    return GraceChange(
        session=None,
        events=tuple(events.SessionRevoked(at=NOW, username="alice", hostname=name) for name in hostnames),
        live=(Live(event="session_changed", username="alice"),),
    )


def granting(session: GraceSession | None) -> Callable[[GraceSession | None], GraceChange]:
    return lambda present: GraceChange(session=session)


async def outcomes(doing: Sequence[Awaitable[Any]]) -> list[Any]:
    """Start them all, then wait: each one's result or exception."""

    async def one(wait: Awaitable[Any]) -> Any:
        try:
            return await wait
        except Exception as e:
            return e

    results: list[Any] = await gatherResults([Deferred.fromCoroutine(one(wait)) for wait in doing])
    return results


class StoreContract:
    """
    Mixed into a twisted TestCase that provides ``open`` and sets ``store`` and ``log``.

    :ivar log: what the store's synchronous log has.
    """

    store: SqlStore
    log: MemoryLog

    # what the mixin uses of TestCase
    assertEqual: Any
    assertIsNone: Any
    assertIsInstance: Any
    assertTrue: Any
    assertLess: Any
    fail: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore:
        """Another store on the same database; the test's clean-up stops it."""

    async def assert_raises(self, kind: type[Exception], doing: Awaitable[Any]) -> Any:
        try:
            result = await doing
        except kind as e:
            return e
        return self.fail(f"{kind.__name__} not raised, got {result!r}")

    async def create(self, wanted: Challenge | None = None, **fields: Any) -> Challenge:
        wanted = wanted or challenge(**fields)
        step = await self.store.create_challenge(
            wanted.username, wanted.hostname, [wanted.user_code], opening(wanted), Caps(), wanted.created_at
        )
        return step.challenge

    def kinds(self) -> list[str]:
        return [json.loads(record.plain)["event"] for record in self.log.records]

    # -- creation -----------------------------------------------------------------------------------------------------
    async def test_round_trip(self) -> None:
        """Every field of a challenge comes back as it was stored."""
        wanted = challenge(
            rotate_before="2026-01-01T00:00:00+02:00",
            revoke_before="2025-12-31T23:59:59Z",
            policy_name="prod",
            required_approvals=3,
            require_admin=True,
            bypass_allowed=True,
            reason='100% of "it"; <b>it\'s</b> \\ äöü \u2028 :now',
            context=HostContext(command="apt upgrade", cwd="/root", tty="pts/1", remote_host="203.0.113.9"),
            remote_addr="192.0.2.1",
            forbid_self_approval=True,
            approver_groups=("dba", "Ops & Co"),
            max_grace=timedelta(minutes=15),
            explanation=Explanation(
                policy="prod",
                version=3,
                because=(Clause("host", "*.prod"),),
                asks=(Clause("approvals", "3"), Clause("admin")),
            ),
        )
        await self.create(wanted)
        self.assertEqual(await self.store.challenge(wanted.id), wanted)
        self.assertEqual(await self.store.challenge_by_code(wanted.user_code), wanted)

    async def test_unreadable_policy(self) -> None:
        """A restriction that cannot be read is not taken for none: nobody decides, and it is shown as restricted."""
        wanted = await self.create()

        def spoil() -> Script[None]:
            yield Do("UPDATE challenges SET policy_json = :text", {"text": "[1"})

        await self.store._driver.write(spoil)
        await self.assert_raises(StorageUnavailable, self.store.decide(wanted.id, approving("bob")))
        shown = await self.store.challenge(wanted.id)
        assert shown is not None
        self.assertTrue(shown.forbid_self_approval)

    async def test_withdrawn(self) -> None:
        """An approval that was taken back is gone, and can be given again; that it was an administrator's is kept."""
        wanted = await self.create(challenge(required_approvals=2))
        await self.store.decide(wanted.id, lambda c, _: approve(c, "carol", at(1), as_admin=True))
        step = await self.store.decide(wanted.id, lambda c, _: withdraw(c, "carol", at(2)))
        self.assertEqual(step.challenge.approvals, ())
        self.assertEqual(await self.store.challenge(wanted.id), wanted)
        await self.store.decide(wanted.id, lambda c, _: approve(c, "carol", at(3), as_admin=True))
        shown = await self.store.challenge(wanted.id)
        assert shown is not None
        self.assertEqual([(one.approver, one.as_admin) for one in shown.approvals], [("carol", True)])
        self.assertIn("challenge_approval_withdrawn", self.kinds())

    async def test_overridden(self) -> None:
        """An override is stored as one."""
        wanted = await self.create(challenge(required_approvals=3, bypass_allowed=True))
        await self.store.decide(wanted.id, lambda c, _: override(c, "carol", at(1), reason="fire"))
        shown = await self.store.challenge(wanted.id)
        assert shown is not None
        self.assertEqual((shown.status, shown.overridden, shown.approvers), (Status.APPROVED, True, ("carol",)))

    async def test_strength(self) -> None:
        """What a grace session was opened by comes back with it, alone, in lists, and when a challenge is created."""
        session = GraceSession(
            username="alice",
            hostname="web01",
            expires_at=at(600),
            mac="m",
            strength=Strength(policy="prod", approvals=2, by_admin=True, by_other=True),
            strength_mac="s",
        )
        await self.store.change_grace("alice", "web01", granting(session))
        self.assertEqual(await self.store.grace("alice", "web01"), session)
        self.assertEqual(await self.store.grace_sessions("alice", NOW), [session])
        seen: list[GraceSession | None] = []

        def opened_with(code: str, state: OwnerState) -> Step:
            seen.append(state.grace)
            return opened(replace(challenge(), user_code=code))

        await self.store.create_challenge("alice", "web01", ["ABCDEF-111111"], opened_with, Caps(), NOW)
        self.assertEqual(seen, [session])

    async def test_session_of_groups(self) -> None:
        """A browser session keeps the groups of its sign-in, and when the person was last seen."""
        session = BrowserSession(
            nonce="n", username="alice", started_at=NOW, groups=("dba", "Ä & ö"), authenticated_at=at(-30)
        )
        self.assertEqual(await self.store.browser_session(session), session)
        again = BrowserSession(nonce="n", username="alice", started_at=at(9))
        self.assertEqual(await self.store.browser_session(again), session)

    async def test_fresh_login(self) -> None:
        """A sign-in keeps since when it has to be new."""
        login = Login(
            nonce="n",
            verifier="v",
            client_ip="192.0.2.1",
            return_to="/approve/ABCDEF-123456",
            issued_at=NOW,
            expires_at=at(900),
            fresh_since=at(-2),
        )
        await self.store.start_login(login)
        self.assertEqual(await self.store.take_login("n", at(1)), login)

    async def test_unknown(self) -> None:
        """There is no challenge that nobody created."""
        self.assertIsNone(await self.store.challenge("0" * 32))
        self.assertIsNone(await self.store.challenge_by_code("ABCDEF-000000"))

    async def test_created_event(self) -> None:
        """Creation is answered when its event is sealed and in the log."""
        wanted = await self.create()
        self.assertEqual(self.kinds(), ["challenge_created"])
        self.assertEqual(json.loads(self.log.records[0].plain)["code"], wanted.user_code)

    async def test_taken_code(self) -> None:
        """A user code that exists already is passed over for the next one, and leaves no event."""
        first = await self.create()
        second = challenge()
        step = await self.store.create_challenge(
            "bob", "web01", [first.user_code, "ZZZZZZ-999999"], opening(second), Caps(), NOW
        )
        self.assertEqual(step.challenge.user_code, "ZZZZZZ-999999")
        self.assertEqual(self.kinds(), ["challenge_created"] * 2)

    async def test_no_free_code(self) -> None:
        """Without a free code nothing is created; it may be tried again."""
        first = await self.create()
        doing = self.store.create_challenge("bob", "h", [first.user_code], opening(challenge()), Caps(), NOW)
        await self.assert_raises(StorageUnavailable, doing)
        self.assertEqual(len(await self.store.pending_challenges(None, NOW)), 1)

    async def test_owner_state(self) -> None:
        """Creation is decided with the owner's revocation time and exactly this host's grace session."""
        session = GraceSession(username="alice", hostname="web01", expires_at=at(600), mac="m")
        await self.store.revoke_grace("alice", None, at(-50), described)
        await self.store.change_grace("alice", "web01", granting(session))
        seen: list[OwnerState] = []

        def look(user_code: str, state: OwnerState) -> Step:
            seen.append(state)
            return opened(challenge(user_code=user_code))

        await self.store.create_challenge("alice", "web01", [code(900001)], look, Caps(), NOW)
        self.assertEqual(seen[-1], OwnerState(revoked_at=at(-50), host_rotated_at=None, grace=session))
        await self.store.create_challenge("alice", "", [code(900002)], look, Caps(), NOW)
        self.assertIsNone(seen[-1].grace)

    async def test_auto_approval(self) -> None:
        """A challenge approved in grace is stored decided, with its history and event."""
        wanted = challenge()

        def in_grace(user_code: str, state: OwnerState) -> Step:
            return auto_approved(replace(wanted, user_code=user_code), NOW)

        await self.store.create_challenge("alice", "web01", [wanted.user_code], in_grace, Caps(), NOW)
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual((stored.status, stored.approved_by), (Status.APPROVED, "alice"))
        [entry] = await self.store.history("alice")
        self.assertEqual((entry.action, entry.actor), ("auto_approved", ""))
        self.assertEqual(self.kinds(), ["auto_approved"])

    async def test_cap_per_user(self) -> None:
        """Of 40 concurrent creations for one person exactly ten succeed."""
        doing = [
            self.store.create_challenge("alice", "h", [code(n)], opening(challenge(n)), Caps(), NOW)
            for n in range(100, 140)
        ]
        results = await outcomes(doing)
        self.assertEqual(sum(isinstance(result, Step) for result in results), 10)
        self.assertEqual(sum(isinstance(result, TooManyPending) for result in results), 30)
        self.assertEqual(len(await self.store.pending_challenges("alice", NOW)), 10)
        self.assertEqual(len(self.kinds()), 10)

    async def test_total_cap(self) -> None:
        """The cap of all pending challenges counts those of everybody."""
        for name in ("a", "b", "c"):
            wanted = challenge(username=name)
            await self.store.create_challenge(name, "h", [wanted.user_code], opening(wanted), Caps(total=3), NOW)
        late = challenge(username="d")
        doing = self.store.create_challenge("d", "h", [late.user_code], opening(late), Caps(total=3), NOW)
        await self.assert_raises(TooManyPending, doing)

    async def test_expired_does_not_count(self) -> None:
        """What has run out takes no place, swept or not."""
        for n in range(10):
            await self.create(challenge(200 + n))
        wanted = challenge(created_at=at(120), expires_at=at(240))
        await self.create(wanted)
        self.assertEqual([c.id for c in await self.store.pending_challenges("alice", at(120))], [wanted.id])

    async def test_pending_order(self) -> None:
        """Pending challenges come soonest expiry first, of one person or of everybody, bounded."""
        late = await self.create(expires_at=at(90))
        soon = await self.create(expires_at=at(30))
        other = await self.create(username="bob", expires_at=at(60))
        self.assertEqual([c.id for c in await self.store.pending_challenges("alice", NOW)], [soon.id, late.id])
        self.assertEqual([c.id for c in await self.store.pending_challenges(None, NOW)], [soon.id, other.id, late.id])
        self.assertEqual([c.id for c in await self.store.pending_challenges(None, NOW, 1)], [soon.id])

    # -- decisions ----------------------------------------------------------------------------------------------------
    async def test_approve(self) -> None:
        """An approval commits with history, event and grace session."""
        wanted = await self.create()
        step = await self.store.decide(wanted.id, approving("bob", at(5), grace=at(300)))
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual(stored, step.challenge)
        self.assertEqual((stored.approved_by, stored.approved_at), ("bob", at(5)))
        [entry] = await self.store.history("alice")
        self.assertEqual((entry.action, entry.actor, entry.at), ("approved", "bob", at(5)))
        grace = await self.store.grace("alice", "web01")
        assert grace is not None
        self.assertEqual((grace.expires_at, grace.mac), (at(300), "new"))
        self.assertEqual(self.kinds(), ["challenge_created", "challenge_approved"])

    async def test_one_of_twenty(self) -> None:
        """Of 20 concurrent approvals exactly one wins; the others find it resolved."""
        wanted = await self.create()
        results = await outcomes([self.store.decide(wanted.id, approving(f"p{n}")) for n in range(20)])
        self.assertEqual(sum(isinstance(result, Step) for result in results), 1)
        self.assertEqual(sum(isinstance(result, AlreadyResolved) for result in results), 19)
        self.assertEqual(self.kinds().count("challenge_approved"), 1)

    async def test_quorum(self) -> None:
        """Approvals collect until there are enough; one person counts once."""
        wanted = await self.create(required_approvals=3)
        results = await outcomes([self.store.decide(wanted.id, approving(name)) for name in ("a", "b", "a")])
        self.assertEqual(sum(isinstance(result, DuplicateApproval) for result in results), 1)
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual((stored.status, set(stored.approvers)), (Status.PENDING, {"a", "b"}))
        step = await self.store.decide(wanted.id, approving("c"))
        self.assertEqual(step.challenge.status, Status.APPROVED)
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual(len(stored.approvals), 3)

    async def test_deny(self) -> None:
        """A refusal keeps who and why, and ends it: a later approval is refused."""
        wanted = await self.create()
        await self.store.decide(wanted.id, lambda c, _: deny(c, "bob", at(3), reason="no"))
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual((stored.status, stored.denied_by, stored.deny_reason), (Status.DENIED, "bob", "no"))
        await self.assert_raises(AlreadyResolved, self.store.decide(wanted.id, approving("carol")))

    async def test_cancel(self) -> None:
        """What the person at the terminal gave up is over."""
        wanted = await self.create()
        await self.store.decide(wanted.id, lambda c, _: cancel(c, at(3)))
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual(stored.status, Status.CANCELLED)
        self.assertEqual(self.kinds()[-1], "challenge_cancelled")

    async def test_decide_unknown(self) -> None:
        """Nobody decides what does not exist."""
        await self.assert_raises(NotFound, self.store.decide("f" * 32, approving("bob")))

    async def test_refusal_changes_nothing(self) -> None:
        """What a move refuses leaves no trace, and the next move works."""
        wanted = await self.create()
        await self.assert_raises(AlreadyResolved, self.store.decide(wanted.id, approving("bob", at(120))))
        self.assertEqual(await self.store.challenge(wanted.id), wanted)
        self.assertEqual(await self.store.history(None), [])
        self.assertEqual(self.kinds(), ["challenge_created"])
        await self.store.decide(wanted.id, approving("bob"))

    async def test_bug_is_contained(self) -> None:
        """A bug in one move comes out as it is and does not touch the operations beside it."""
        first, second = await self.create(), await self.create()

        def broken(present: Challenge, _: datetime | None) -> Step:
            raise ZeroDivisionError

        results = await outcomes(
            [
                self.store.decide(first.id, broken),
                self.store.decide(second.id, approving("bob")),
                self.store.append_history([HistoryEntry(at=NOW, username="x", action="revoked")]),
            ]
        )
        self.assertIsInstance(results[0], ZeroDivisionError)
        self.assertIsInstance(results[1], Step)
        self.assertEqual(len(await self.store.history(None)), 2)

    async def test_grace_is_not_shortened(self) -> None:
        """An approval replaces an older grace session and keeps a later one."""
        later = GraceSession(username="alice", hostname="web01", expires_at=at(900), mac="old")
        await self.store.change_grace("alice", "web01", granting(later))
        wanted = await self.create()
        await self.store.decide(wanted.id, approving("bob", grace=at(300)))
        self.assertEqual(await self.store.grace("alice", "web01"), later)
        another = await self.create()
        await self.store.decide(another.id, approving("bob", grace=at(1000)))
        grace = await self.store.grace("alice", "web01")
        assert grace is not None
        self.assertEqual((grace.expires_at, grace.mac), (at(1000), "new"))

    async def test_forged_grace_is_replaced(self) -> None:
        """A later grace session that is not genuine does not survive an approval."""
        store = await self.open(genuine=lambda session: session.mac != "forged")
        forged = GraceSession(username="alice", hostname="web01", expires_at=at(9000), mac="forged")
        await store.change_grace("alice", "web01", granting(forged))
        wanted = await self.create()
        await store.decide(wanted.id, approving("bob", grace=at(300)))
        grace = await store.grace("alice", "web01")
        assert grace is not None
        self.assertEqual((grace.expires_at, grace.mac), (at(300), "new"))

    # -- revocation ---------------------------------------------------------------------------------------------------
    async def test_revoke_then_approve(self) -> None:
        """What was asked for before the owner's sessions were revoked cannot be approved."""
        wanted = await self.create()
        await self.store.revoke_grace("alice", ["web01"], at(1), described)
        await self.assert_raises(Superseded, self.store.decide(wanted.id, approving("bob", at(2))))

    async def test_revoke_whatever_the_clock(self) -> None:
        """Neither a clock that was set back nor two revocations in one second let an older request be approved."""

        def snapping(user_code: str, state: OwnerState) -> Step:
            known = state.revoked_at
            return opened(challenge(user_code=user_code, revoke_before="" if known is None else audit.timestamp(known)))

        for number, when in enumerate((at(1), at(1), at(-3600))):
            made = await self.store.create_challenge("alice", "web01", [code(9000 + number)], snapping, Caps(), NOW)
            wanted = made.challenge
            await self.store.revoke_grace("alice", None, when, described)
            await self.assert_raises(Superseded, self.store.decide(wanted.id, approving("bob", at(2))))

    async def test_revoke_against_approve(self) -> None:
        """However a revocation and approvals race, no grace session outlives a revocation that came later."""
        for n in range(10):
            wanted = await self.create(challenge(username=f"u{n}"))
            results = await outcomes(
                [
                    self.store.decide(wanted.id, approving("bob", at(1), grace=at(300))),
                    self.store.revoke_grace(wanted.username, None, at(1), described),
                ]
            )
            if isinstance(results[0], Step):
                # the approval came first, so the revocation has taken its session
                self.assertEqual(results[1], ["web01"])
            else:
                self.assertIsInstance(results[0], Superseded)
            self.assertIsNone(await self.store.grace(wanted.username, "web01"))

    async def test_revoke(self) -> None:
        """Revoking some host's sessions tells which existed and sets the time, which every revocation moves on."""
        for host in ("a", "b", ""):
            session = GraceSession(username="alice", hostname=host, expires_at=at(60), mac=host)
            await self.store.change_grace("alice", host, granting(session))
        self.assertEqual(await self.store.revoke_grace("alice", ["b", "nope"], at(2), described), ["b"])
        self.assertEqual(self.kinds(), ["session_revoked"] * 2)
        self.assertEqual([s.hostname for s in await self.store.grace_sessions("alice", NOW)], ["", "a"])
        self.assertEqual(await self.store.revoke_grace("alice", None, at(1), described), ["", "a"])
        self.assertEqual(await self.store.revocation_time("alice"), at(3))
        self.assertIsNone(await self.store.revocation_time("bob"))

    async def test_grace_sessions(self) -> None:
        """Unexpired grace sessions come by user, then host."""
        for user, host, end in (("bob", "x", 60), ("alice", "z", 60), ("alice", "y", 60), ("alice", "over", 0)):
            session = GraceSession(username=user, hostname=host, expires_at=at(end), mac="m")
            await self.store.change_grace(user, host, granting(session))
        found = await self.store.grace_sessions(None, NOW)
        self.assertEqual([(s.username, s.hostname) for s in found], [("alice", "y"), ("alice", "z"), ("bob", "x")])
        self.assertEqual(len(await self.store.grace_sessions("alice", NOW, 1)), 1)
        self.assertEqual((await self.store.counts(NOW)).grace_sessions, 3)

    async def test_delete_forged(self) -> None:
        """A row with a wrong MAC goes, unless it was replaced meanwhile; it can be made again."""
        session = GraceSession(username="alice", hostname="h", expires_at=at(60), mac="bad")
        await self.store.change_grace("alice", "h", granting(session))
        await self.store.delete_grace("alice", "h", "other")
        self.assertEqual(await self.store.grace("alice", "h"), session)
        await self.store.delete_grace("alice", "h", "bad")
        self.assertIsNone(await self.store.grace("alice", "h"))
        await self.store.change_grace("alice", "h", granting(replace(session, mac="good")))
        self.assertEqual(await self.store.grace("alice", "h"), replace(session, mac="good"))

    # -- expiry and retention -----------------------------------------------------------------------------------------
    async def test_expiry(self) -> None:
        """An overdue challenge is expired once, with one event and no history."""
        wanted = await self.create()
        self.assertEqual(await self.store.expire_challenges(at(119), lambda c: expire(c, at(119))), [])
        other = await self.open()
        results = await outcomes(
            [store.expire_challenges(at(120), lambda c: expire(c, at(120))) for store in (self.store, other) * 3]
        )
        self.assertEqual([step.challenge.id for steps in results for step in steps], [wanted.id])
        self.assertEqual(self.kinds().count("challenge_expired"), 1)
        stored = await self.store.challenge(wanted.id)
        assert stored is not None
        self.assertEqual(stored.status, Status.EXPIRED)
        self.assertEqual(await self.store.history(None), [])

    async def test_expiry_is_bounded(self) -> None:
        """No more than ``limit`` are expired at once, the most overdue first."""
        first = await self.create(expires_at=at(10))
        await self.create(expires_at=at(20))
        steps = await self.store.expire_challenges(at(60), lambda c: expire(c, at(60)), 1)
        self.assertEqual([step.challenge.id for step in steps], [first.id])

    async def test_retention(self) -> None:
        """Decided challenges go an hour after their expiry, pending ones stay until they are expired."""
        decided, waiting = await self.create(), await self.create()
        await self.store.decide(decided.id, approving("bob", grace=at(60)))
        await self.store.delete_old(at(120 + 3600))
        self.assertTrue(await self.store.challenge(decided.id))
        self.assertIsNone(await self.store.grace("alice", "web01"))
        self.assertEqual(await self.store.delete_old(at(120 + 3601)), 1)
        self.assertIsNone(await self.store.challenge(decided.id))
        self.assertTrue(await self.store.challenge(waiting.id))

    # -- signing in ---------------------------------------------------------------------------------------------------
    def login(self, nonce: str = "a" * 32) -> Login:
        return Login(
            nonce=nonce,
            verifier="v",
            client_ip="192.0.2.1",
            return_to="/approve/X?y=1",
            issued_at=NOW,
            expires_at=at(900),
        )

    async def test_login_is_taken_once(self) -> None:
        """Of ten callbacks with one nonce exactly one gets the login, also on two servers."""
        await self.store.start_login(self.login())
        other = await self.open()
        results = await outcomes([store.take_login("a" * 32, at(1)) for store in (self.store, other) * 5])
        self.assertEqual([result for result in results if result is not None], [self.login()])

    async def test_login_runs_out(self) -> None:
        """A login that took too long is no login; an unknown one neither."""
        await self.store.start_login(self.login())
        self.assertIsNone(await self.store.take_login("a" * 32, at(900)))
        self.assertIsNone(await self.store.take_login("b" * 32, NOW))

    async def test_record_login(self) -> None:
        """A completed sign-in is remembered; its session keeps its beginning."""
        session = BrowserSession(nonce="n", username="alice", started_at=NOW)
        await self.store.record_login(session, events.UserLoggedIn(at=NOW, username="alice"), NOW)
        self.assertEqual(await self.store.last_login("alice"), NOW)
        self.assertIsNone(await self.store.last_login("bob"))
        self.assertEqual(await self.store.browser_session(replace(session, started_at=at(50))), session)
        self.assertEqual(self.kinds(), ["user_logged_in"])

    async def test_first_sight(self) -> None:
        """A session that nobody recorded begins when it is first seen."""
        session = BrowserSession(nonce="n", username="alice", started_at=NOW)
        results = await outcomes([self.store.browser_session(session) for _ in range(5)])
        self.assertEqual(results, [session] * 5)
        self.assertEqual(await self.store.browser_session(replace(session, started_at=at(50))), session)

    async def test_sign_out(self) -> None:
        """Signing out revokes the nonce and all grace sessions; without any the revocation time stays."""
        self.assertEqual(await self.store.sign_out("alice", "n1", at(1), described), [])
        self.assertIsNone(await self.store.revocation_time("alice"))
        for host in ("", "web01"):
            session = GraceSession(username="alice", hostname=host, expires_at=at(60), mac="m")
            await self.store.change_grace("alice", host, granting(session))
        self.assertEqual(await self.store.sign_out("alice", "n2", at(2), described), ["", "web01"])
        self.assertEqual(await self.store.revocation_time("alice"), at(2))
        self.assertEqual(await self.store.grace_sessions(None, NOW), [])
        self.assertEqual((await self.store.revocations()).nonces, {"n1": at(1), "n2": at(2)})
        await self.store.delete_old(at(1 + 2101))
        self.assertEqual((await self.store.revocations()).nonces, {"n2": at(2)})

    async def test_revoke_admins(self) -> None:
        """Of each person the latest time counts; it never goes back."""
        await self.store.revoke_admins(["carol", "dave"], at(10))
        await self.store.revoke_admins(["carol"], at(20))
        await self.store.revoke_admins(["dave"], at(5))
        self.assertEqual((await self.store.revocations()).admins, {"carol": at(20), "dave": at(10)})

    # -- history, gauges, health --------------------------------------------------------------------------------------
    async def test_history(self) -> None:
        """Newest first, of one person or of everybody; the actor is kept when it is somebody else."""
        await self.store.append_history(
            [
                HistoryEntry(at=at(1), username="alice", action="revoked", hostname="h", actor="alice"),
                HistoryEntry(at=at(1), username="alice", action="extended", hostname="h", actor="bob", reason="r"),
                HistoryEntry(at=NOW, username="bob", action="elevated"),
            ]
        )
        found = await self.store.history(None)
        self.assertEqual([entry.action for entry in found], ["extended", "revoked", "elevated"])
        self.assertEqual([entry.actor for entry in found], ["bob", "", ""])
        self.assertEqual(len(await self.store.history("alice", 1)), 1)

    async def test_counts(self) -> None:
        """The gauges count live pending challenges."""
        await self.create()
        decided = await self.create()
        await self.store.decide(decided.id, approving("bob"))
        self.assertEqual((await self.store.counts(NOW)).pending_challenges, 1)
        self.assertEqual((await self.store.counts(at(120))).pending_challenges, 0)

    async def test_ping(self) -> None:
        """A healthy database answers."""
        await self.store.ping()

    # -- wake-ups and the chain ---------------------------------------------------------------------------------------
    async def test_wake_ups(self) -> None:
        """Listeners hear of commits, in order and once, and of nothing that was refused."""
        heard: list[Live] = []
        end = self.store.subscribe(heard.append)
        wanted = await self.create()
        await self.store.decide(wanted.id, approving("bob"))
        await self.assert_raises(AlreadyResolved, self.store.decide(wanted.id, approving("bob")))
        self.assertEqual(
            heard,
            [
                Live(event="challenge_created", username="alice", challenge_id=wanted.id),
                Live(event="challenge_resolved", username="alice", challenge_id=wanted.id),
            ],
        )
        end()
        await self.create()
        self.assertEqual(len(heard), 2)

    async def test_woken_reads_the_truth(self) -> None:
        """Whoever is woken finds the state that woke it."""
        wanted = await self.create()
        found: list[Deferred[Challenge | None]] = []
        self.store.subscribe(lambda live: found.append(Deferred.fromCoroutine(self.store.challenge(live.challenge_id))))
        await self.store.decide(wanted.id, approving("bob"))
        stored = await found[0]
        assert stored is not None
        self.assertEqual(stored.status, Status.APPROVED)

    async def test_deaf_listener(self) -> None:
        """A listener that fails keeps nobody else from hearing, and no operation from succeeding."""
        heard: list[Live] = []

        def deaf(live: Live) -> None:
            raise ZeroDivisionError

        self.store.subscribe(deaf)
        self.store.subscribe(heard.append)
        await self.create()
        self.assertEqual(len(heard), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    flushLoggedErrors: Any

    async def test_chain(self) -> None:
        """Records are chained in order without gaps, also from concurrent operations."""
        await outcomes([self.create(challenge(username=f"u{n}")) for n in range(30)])
        self.assert_chained(self.log)
        self.assertEqual(len(self.log.records), 30)

    async def test_chain_goes_on(self) -> None:
        """A restart continues the chain where it stood."""
        await self.create()
        await self.store.stop()
        self.store = await self.open(log=self.log)
        await self.create()
        self.assert_chained(self.log)
        self.assertEqual([record.seq for record in self.log.records], [0, 1])

    def assert_chained(self, log: MemoryLog) -> None:
        previous = ""
        for number, record in enumerate(log.records):
            values = json.loads(record.plain)
            self.assertEqual((values["seq"], values.get("prev_hash", "")), (number, previous))
            previous = record.hash

    async def test_id_token(self) -> None:
        """An approval of an own request keeps the session's ID token; another person's session has none for it."""
        for owner, kept in (("alice", "sealed"), ("bob", "")):
            nonce = f"{owner}-session"
            session = BrowserSession(nonce=nonce, username="alice", started_at=NOW, id_token="sealed")
            await self.store.record_login(session, events.UserLoggedIn(at=NOW, username="alice"), NOW)
            wanted = await self.create(username=owner)
            self.assertEqual(await self.store.id_token(wanted.id), "")
            await self.store.decide(wanted.id, approving("alice"), session=nonce)
            self.assertEqual(await self.store.id_token(wanted.id), kept)
        self.assertEqual(await self.store.id_token("nobody"), "")

    async def test_sink(self) -> None:
        """A sink gets what was committed, in order, from where it acknowledged, also after a restart."""
        first, second = await self.create(), await self.create()
        outbox = self.store.outbox
        records = await outbox.after(await outbox.position("syslog"), 1)
        self.assertEqual([json.loads(record.plain)["code"] for record in records], [first.user_code])
        self.assertEqual(records, self.log.records[:1])
        await outbox.acknowledge("syslog", records[-1].seq)
        await self.store.stop()
        self.store = await self.open(log=self.log)
        outbox = self.store.outbox
        records = await outbox.after(await outbox.position("syslog"), 10)
        self.assertEqual([json.loads(record.plain)["code"] for record in records], [second.user_code])

    async def test_sink_waits(self) -> None:
        """A sink without anything to send waits for the next commit, and may stop waiting."""
        await self.create()
        outbox = self.store.outbox
        given_up = Deferred.fromCoroutine(outbox.reached(1))
        given_up.addErrback(lambda failure: None)
        waiting = Deferred.fromCoroutine(outbox.reached(1))
        given_up.cancel()
        self.assertTrue(not waiting.called)
        wanted = await self.create()
        await waiting
        [record] = await outbox.after(0, 10)
        self.assertEqual(json.loads(record.plain)["code"], wanted.user_code)

    async def test_cancelled_operation(self) -> None:
        """Whoever stops waiting for an operation does not break the next one."""
        wanted = await self.create()
        doing = [Deferred.fromCoroutine(self.store.decide(wanted.id, approving(f"p{n}"))) for n in range(5)]
        for waiting in doing:
            waiting.addErrback(lambda failure: None)
            waiting.cancel()
        await self.create()
        await self.store.ping()

    async def test_closed(self) -> None:
        """A closed store says that it is unavailable."""
        await self.store.stop()
        await self.assert_raises(StorageUnavailable, self.store.challenge("x"))
        await self.assert_raises(StorageUnavailable, self.store.ping())
