"""The stand-in for PocketID, as its API documents itself to clients; our own client is tested against it elsewhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from identree.demo.pocketid import DemoPocketID, fill
from identree.demo.provider import USERS, DemoProvider

KEY = "demo-key"


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.pocketid = DemoPocketID(api_key=KEY, now=self.now, clock=self.clock)
        root = Resource()
        root.putChild(b"api", self.pocketid.resource())
        self.http = StubTreq(root)

    def now(self) -> datetime:
        return datetime(2026, 5, 6, tzinfo=UTC) + timedelta(seconds=self.clock.seconds())

    def start(self, method: str, target: str, key: str = KEY, **more: Any) -> Deferred[Any]:
        answered: Deferred[Any] = self.http.request(
            method, f"http://127.0.0.1/api/{target}", headers={"X-API-KEY": key}, allow_redirects=False, **more
        )
        return answered

    def ask(self, target: str, method: str = "GET", **more: Any) -> tuple[int, Any]:
        """Status and document."""
        response = self.successResultOf(self.start(method, target, **more))
        body = self.successResultOf(self.http.content(response))
        return response.code, json.loads(body) if body else None

    def page(self, target: str, number: int = 1, limit: int = 100, sort: str = "createdAt") -> Any:
        query = f"pagination[page]={number}&pagination[limit]={limit}&sort[column]={sort}&sort[direction]=asc"
        status, document = self.ask(f"{target}?{query}")
        self.assertEqual(status, 200)
        return document


class PagesTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.names = [f"user{number}" for number in range(230)]
        for name in reversed(self.names):
            self.pocketid.add_user(name)

    def found(self, document: Any) -> list[str]:
        return [user["username"] for user in document["data"]]

    def test_limit(self) -> None:
        """A page has at most a hundred, and twenty unless asked otherwise."""
        self.assertEqual(len(self.page("users", limit=5000)["data"]), 100)
        self.assertEqual(len(self.ask("users")[1]["data"]), 20)

    def test_pagination(self) -> None:
        """The envelope counts pages and rows."""
        self.assertEqual(
            self.page("users", 3)["pagination"],
            {"totalPages": 3, "totalItems": 230, "currentPage": 3, "itemsPerPage": 100},
        )

    def test_beyond_the_end(self) -> None:
        """Beyond the end is the last page again."""
        self.assertEqual(self.page("users", 9), self.page("users", 3))

    def test_sorted(self) -> None:
        """By creation or name when asked; a column that is not sorted by leaves no order to rely on."""
        self.assertEqual(self.found(self.page("users"))[:2], ["user229", "user228"])
        self.assertEqual(self.found(self.page("users", sort="username"))[:2], ["user0", "user1"])
        unsorted = self.found(self.page("users", sort="id"))
        self.assertNotIn(unsorted, (sorted(unsorted), self.found(self.page("users"))))

    def test_descending(self) -> None:
        """The other direction."""
        status, document = self.ask("users?sort[column]=createdAt&sort[direction]=desc")
        self.assertEqual((status, self.found(document)[0]), (200, "user0"))

    def test_none(self) -> None:
        """Of nothing there is one empty page."""
        self.assertEqual(self.page("user-groups")["data"], [])
        self.assertEqual(self.page("user-groups")["pagination"]["totalPages"], 1)


class FieldTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.alice = self.pocketid.add_user("alice", first_name="Alice", claims=[("loginShell", "/bin/zsh")])
        self.ops = self.pocketid.add_group("ops", members=[self.alice], claims=[("sudoCommands", "ALL")])

    def test_user(self) -> None:
        """A listed user has claims and groups; what is not set is null."""
        [user] = self.page("users")["data"]
        self.assertEqual((user["id"], user["email"], user["lastName"]), (self.alice.id, None, None))
        self.assertEqual(user["customClaims"], [{"key": "loginShell", "value": "/bin/zsh"}])
        self.assertEqual([group["id"] for group in user["userGroups"]], [self.ops.id])

    def test_group(self) -> None:
        """A listed group has claims and a count of members."""
        [group] = self.page("user-groups")["data"]
        self.assertEqual((group["name"], group["userCount"], "users" in group), ("ops", 1, False))
        self.assertEqual(group["customClaims"], [{"key": "sudoCommands", "value": "ALL"}])

    def test_old(self) -> None:
        """An old version tells neither groups of users nor claims of listed groups."""
        self.pocketid.old = True
        [user], [group] = self.page("users")["data"], self.page("user-groups")["data"]
        self.assertEqual(("userGroups" in user, "customClaims" in group), (False, False))

    def test_one(self) -> None:
        """One group has its members, one user its groups."""
        status, group = self.ask(f"user-groups/{self.ops.id}")
        self.assertEqual((status, [user["username"] for user in group["users"]]), (200, ["alice"]))
        status, user = self.ask(f"users/{self.alice.id}")
        self.assertEqual((status, [group["name"] for group in user["userGroups"]]), (200, ["ops"]))

    def test_unknown(self) -> None:
        """What is not there is not found."""
        for target in ("users/x", "user-groups/x", "v1/users", "", "custom-claims/user/x"):
            self.assertEqual(self.ask(target), (404, {"error": "Record not found"}))

    def test_key(self) -> None:
        """Without the key nothing is told."""
        for key in ("", "wrong"):
            self.assertEqual(self.ask("users", key=key)[0], 401)

    def test_replace_claims(self) -> None:
        """Claims are replaced as a whole."""
        new = [{"key": "a", "value": "1"}]
        self.page("users")
        self.assertEqual(self.ask(f"custom-claims/user/{self.alice.id}", "PUT", json=new), (200, new))
        self.assertEqual(self.page("users")["data"][0]["customClaims"], new)

    def test_claim_twice(self) -> None:
        """The same key twice is refused, and so is what is no list of claims."""
        for value in ([{"key": "a", "value": "1"}] * 2, [{"key": "a"}], {"key": "a"}, 1):
            self.assertEqual(self.ask(f"custom-claims/user-group/{self.ops.id}", "PUT", json=value)[0], 400)
        self.assertEqual(self.ops.claims, [("sudoCommands", "ALL")])


class TroubleTests(Base):
    def test_failures(self) -> None:
        """Failures are counted down."""
        self.pocketid.fail("users", 500, times=2)
        self.assertEqual([self.ask("users")[0] for _ in range(3)], [500, 500, 200])
        self.assertEqual(self.ask("user-groups")[0], 200)

    def test_rate(self) -> None:
        """What a bucket holds is granted at once, the rest with time."""
        self.pocketid.limit_rate(2, 0.5)
        self.assertEqual([self.ask("users")[0] for _ in range(3)], [200, 200, 429])
        response = self.successResultOf(self.start("GET", "users"))
        self.assertEqual(response.headers.getRawHeaders("retry-after"), ["2"])
        self.clock.advance(2)
        self.assertEqual([self.ask("users")[0] for _ in range(2)], [200, 429])

    def test_rate_untold(self) -> None:
        """Older versions do not say when to come again."""
        self.pocketid.limit_rate(1, 1, tells=False)
        self.ask("users")
        response = self.successResultOf(self.start("GET", "users"))
        self.assertEqual((response.code, response.headers.hasHeader("retry-after")), (429, False))

    def test_slow(self) -> None:
        """It can take its time."""
        self.pocketid.latency_seconds = 3
        answered = self.start("GET", "users")
        self.clock.advance(2.9)
        self.http.flush()
        self.assertNoResult(answered)
        self.clock.advance(0.1)
        self.http.flush()
        self.assertEqual(self.successResultOf(answered).code, 200)


class DemoTests(Base):
    def test_people(self) -> None:
        """The demo's people and groups are those whom one can be."""
        fill(self.pocketid, USERS)
        self.assertEqual({user["username"] for user in self.page("users")["data"]}, set(USERS))
        groups = {user["username"]: [g["name"] for g in user["userGroups"]] for user in self.page("users")["data"]}
        self.assertEqual(groups, {name: list(groups) for name, groups in USERS.items()})

    def test_beside_the_provider(self) -> None:
        """The provider serves it at its own address."""
        provider = DemoProvider(
            self.clock,
            issuer="http://127.0.0.1:8091",
            client_id="demo",
            client_secret="s",
            redirect_uris=[],
            now=self.now,
            pocketid=self.pocketid,
        )
        self.http = StubTreq(provider.resource())
        self.assertEqual(self.ask("users")[0], 200)
