"""Our PocketID client against the stand-in, in memory and over TCP, and against answers that PocketID never gives."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treq.testing import StubTreq
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from identree.app.ports import SourceRefused, SourceUnavailable
from identree.clients import pocketid as client_module
from identree.clients.http import build_http_client, build_pool
from identree.clients.pocketid import (
    FETCH_SECONDS,
    LISTING_TRIES,
    LONGEST_WAIT_SECONDS,
    MAX_PAGES,
    PAGE_BYTES,
    PARALLEL,
    PROBE_SECONDS,
    REQUEST_SECONDS,
    REQUEST_TRIES,
    PocketID,
)
from identree.demo.pocketid import DemoPocketID
from identree.directory.source import Source
from tests.e2e.pocketid import PocketIdServer, groupname, username

URL = "https://id.example"
KEY = "pocketid-api-key-0123456789"
NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
USERS = "users"
GROUPS = "user-groups"


def names(source: Source) -> list[str]:
    return [user.username for user in source.users]


def members(source: Source) -> dict[str, list[str]]:
    """User names by group name."""
    by_id = {user.id: user.username for user in source.users}
    return {group.name: [by_id[id] for id in group.member_ids] for group in source.groups}


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.server = DemoPocketID(api_key=KEY, now=self.now, clock=self.clock)
        root = Resource()
        root.putChild(b"api", self.server.resource())
        self.http = StubTreq(root)
        self.client = self.build()

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.clock.seconds())

    def build(self, **changes: Any) -> PocketID:
        values: dict[str, Any] = {"http": self.http, "base_url": URL + "/", "api_key": KEY}
        # its monotonic clock stands still: nothing is put off for want of time
        return PocketID(clock=self.clock, now=self.now, **{"monotonic": lambda: 0.0, **values, **changes})

    def populate(self, count: int) -> None:
        for number in range(count):
            self.server.add_user(f"user{number:05d}")

    def start(self) -> Deferred[Source]:
        return Deferred.fromCoroutine(self.client.fetch())

    def pass_time(self, work: Deferred[Any], seconds: float, step: float = 0.5) -> None:
        """Let the clock run until the work is over, but not longer than this."""
        end = self.clock.seconds() + seconds
        self.http.flush()
        while not work.called and self.clock.seconds() < end:
            self.clock.advance(step)
            self.http.flush()

    def fetch(self) -> Source:
        """Everything, without waiting for anything."""
        return self.successResultOf(self.start())

    def unavailable(self, work: Deferred[Source] | None = None) -> SourceUnavailable:
        error = self.failureResultOf(work or self.start(), SourceUnavailable).value
        assert isinstance(error, SourceUnavailable)
        self.assertNotIn(KEY, str(error))
        return error

    def refused(self) -> SourceRefused:
        error = self.failureResultOf(self.start(), SourceRefused).value
        assert isinstance(error, SourceRefused)
        self.assertNotIn(KEY, str(error))
        return error

    def answer(self, path: str, document: object, **more: Any) -> None:
        """Have the server say this instead."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.server.fail(path, 200, body=body, **more)

    def asked(self, path: str = "") -> list[str]:
        """The requests so far whose path after ``/api/`` begins so."""
        return [line for line in self.server.requests if line.partition(" /api/")[2].startswith(path)]


def page(*items: object, **more: object) -> dict[str, Any]:
    """One page that is all."""
    pagination = {"totalPages": 1, "totalItems": len(items), "currentPage": 1, "itemsPerPage": 100}
    return {"data": list(items), "pagination": {**pagination, **more}}


class SourceTests(Base):
    def test_everything(self) -> None:
        """People and groups with all that the directory needs of them."""
        alice = self.server.add_user(
            "alice",
            email="alice@example.com",
            first_name="Alice",
            last_name="Sørensen",
            claims=[("loginShell", "/bin/zsh"), ("sshPublicKey", "ssh-ed25519 AAAA")],
        )
        bob = self.server.add_user("bob", disabled=True)
        ops = self.server.add_group(
            "ops", friendly_name="Operations", members=[bob, alice], claims=[("sudoCommands", "ALL")]
        )
        source = self.fetch()
        first, second = source.users
        self.assertEqual(
            (first.id, first.username, first.email, first.first_name, first.last_name, first.disabled),
            (alice.id, "alice", "alice@example.com", "Alice", "Sørensen", False),
        )
        self.assertEqual(first.claims, (("loginShell", "/bin/zsh"), ("sshPublicKey", "ssh-ed25519 AAAA")))
        self.assertEqual((second.username, second.disabled), ("bob", True))
        [group] = source.groups
        self.assertEqual((group.id, group.name, group.friendly_name), (ops.id, "ops", "Operations"))
        self.assertEqual(group.claims, (("sudoCommands", "ALL"),))
        self.assertEqual(set(group.member_ids), {alice.id, bob.id})

    def test_null(self) -> None:
        """PocketID sends null for what is not set: it is empty."""
        self.server.add_user("alice", email=None, last_name=None)
        [user] = self.fetch().users
        self.assertEqual((user.email, user.last_name), ("", ""))

    def test_null_lists(self) -> None:
        """A list of nothing may be null."""
        self.answer(USERS, page({"id": "a", "username": "alice", "customClaims": None, "userGroups": None}))
        self.answer(GROUPS, {"data": None, "pagination": {"totalPages": 0, "totalItems": 0}})
        source = self.fetch()
        self.assertEqual((source.users[0].claims, source.groups), ((), ()))

    def test_nobody(self) -> None:
        """Without people and groups there are none."""
        self.assertEqual(self.fetch(), Source())

    def test_order(self) -> None:
        """People and groups come in the order of their creation."""
        for name in ("zoe", "alice", "mike"):
            self.server.add_user(name)
            self.server.add_group(name + "s")
        source = self.fetch()
        self.assertEqual(names(source), ["zoe", "alice", "mike"])
        self.assertEqual([group.name for group in source.groups], ["zoes", "alices", "mikes"])

    def test_pages(self) -> None:
        """A page has a hundred; all are read, in order, with the key, and each once."""
        self.populate(250)
        self.assertEqual(names(self.fetch()), [f"user{number:05d}" for number in range(250)])
        self.assertEqual(
            self.asked(USERS),
            [
                f"GET /api/users?pagination[page]={number}&pagination[limit]=100&sort[column]=createdAt"
                "&sort[direction]=asc"
                for number in (1, 2, 3)
            ],
        )

    def test_two_listings(self) -> None:
        """Where the listings tell everything, groups are not asked for one by one."""
        person = self.server.add_user("alice")
        for number in range(5):
            self.server.add_group(f"group{number}", members=[person])
        self.fetch()
        self.assertEqual(len(self.asked()), 2)

    def test_repeated_claim(self) -> None:
        """A claim that is there twice is kept twice, in order: which one counts is not decided here."""
        self.server.add_user("alice", claims=[("a", "1"), ("a", "2")])
        self.assertEqual(self.fetch().users[0].claims, (("a", "1"), ("a", "2")))

    def test_bare_list(self) -> None:
        """A list without an envelope is the whole."""
        self.answer(USERS, [{"id": "a", "username": "alice", "userGroups": []}])
        self.assertEqual(names(self.fetch()), ["alice"])

    def test_unknown_members(self) -> None:
        """What we do not know is not looked at."""
        self.answer(USERS, {**page({"id": "a", "username": "alice", "new": {"x": [1]}, "userGroups": []}), "more": 1})
        self.assertEqual(names(self.fetch()), ["alice"])

    def test_twice_without_total(self) -> None:
        """Without a total, a listing with somebody in it twice is read anew; it may miss somebody else."""
        twice = {"id": "a", "username": "alice", "userGroups": []}
        self.answer(USERS, {"data": [twice, twice], "pagination": {"totalPages": 1}}, times=1)
        self.server.add_user("bob")
        self.assertEqual(names(self.fetch()), ["bob"])


class OldTests(Base):
    """Versions that tell less in their listings."""

    def setUp(self) -> None:
        super().setUp()
        self.server.old = True
        self.alice, self.bob = self.server.add_user("alice"), self.server.add_user("bob")

    def test_details(self) -> None:
        """Members and claims are asked for group by group."""
        self.server.add_group("ops", members=[self.bob, self.alice], claims=[("sudoCommands", "ALL")])
        self.server.add_group("empty")
        source = self.fetch()
        self.assertEqual(members(source), {"ops": ["alice", "bob"], "empty": []})
        self.assertEqual(source.groups[0].claims, (("sudoCommands", "ALL"),))

    def test_member_order(self) -> None:
        """Members come in the order of people, whatever order they are told in, so that this is no change."""
        team = self.server.add_group("ops", members=[self.bob, self.alice])
        first = self.fetch()
        team.members = dict(reversed(team.members.items()))
        self.server.changed()
        self.assertIs(self.fetch(), first)

    def test_unknown_member(self) -> None:
        """A member who was created after the listing of people is told all the same; ids are only ids."""
        team = self.server.add_group("ops", members=[self.alice])
        late = {"id": "late", "username": "late"}
        body = {"id": team.id, "name": "ops", "customClaims": [], "users": [late, {"id": self.bob.id}]}
        self.answer(f"user-groups/{team.id}", body)
        self.assertEqual(self.fetch().groups[0].member_ids, (self.bob.id, "late"))

    def test_gone(self) -> None:
        """A group that is deleted between the listing and its turn is gone; the others are there."""
        ops = self.server.add_group("ops", members=[self.alice])
        self.server.add_group("dev", members=[self.bob])

        def before(path: str, query: Mapping[str, str]) -> None:
            if path == f"user-groups/{ops.id}" and ops.id in self.server.teams:
                self.server.delete_group(ops)

        self.server.before = before
        self.assertEqual(members(self.fetch()), {"dev": ["bob"]})

    def test_one_failure(self) -> None:
        """Any other failure of one group is one of the whole."""
        self.server.add_group("ops")
        dev = self.server.add_group("dev")
        self.server.fail(f"user-groups/{dev.id}", 500)
        self.assertIn(f"group {dev.id}: it answered 500 (Something went wrong)", str(self.unavailable()))

    def test_strange_id(self) -> None:
        """A group whose id cannot stand in a URL is left out, with one warning for all time."""
        lines: list[Any] = []
        self.patch(PocketID, "_log", Logger(observer=lines.append))
        self.server.add_group("ops", id="../users", members=[self.alice])
        self.server.add_group("dev", members=[self.bob])
        self.assertEqual(members(self.fetch()), {"dev": ["bob"]})
        self.fetch()
        self.assertEqual([line["id"] for line in lines], ["../users"])
        self.assertEqual(self.asked("user-groups/../"), [])

    def test_again(self) -> None:
        """Details that did not change make the identical whole; one that did makes another."""
        team = self.server.add_group("ops", members=[self.alice])
        first = self.fetch()
        self.assertIs(self.fetch(), first)
        team.members[self.bob.id] = None
        self.server.changed()
        self.assertEqual(members(self.fetch()), {"ops": ["alice", "bob"]})

    def test_malformed(self) -> None:
        """A group without a list of members is not one without members."""
        team = self.server.add_group("ops", members=[self.alice])
        self.answer(f"user-groups/{team.id}", {"id": team.id, "name": "ops", "customClaims": []})
        self.assertIn("users is missing", str(self.unavailable()))


class ChangingTests(Base):
    """What changes while it is read."""

    def once(self, path: str, number: int, change: Any) -> None:
        """Do it before this page of the listing is answered for the first time from now on."""

        def before(asked: str, query: Mapping[str, str]) -> None:
            if asked == path and query.get("pagination[page]") == str(number):
                self.server.before = None
                change()

        self.server.before = before

    def test_deleted(self) -> None:
        """Somebody is deleted, and the rest moves up by one: nobody is missing."""
        self.populate(250)
        self.once("users", 2, lambda: self.server.delete_user(self.server.user("user00007")))
        found = names(self.fetch())
        self.assertEqual((len(found), "user00100" in found), (249, True))

    def test_created(self) -> None:
        """Somebody is created meanwhile: nobody is missing, and nobody twice."""
        self.populate(200)
        self.once("users", 2, lambda: self.server.add_user("late"))
        self.assertEqual(names(self.fetch())[-1], "late")

    def test_deleted_and_created(self) -> None:
        """
        One is deleted and one created, so that the totals agree although one slipped between two pages. Who was there
        before and is missing now is looked for again.
        """
        self.populate(250)
        self.fetch()

        def change() -> None:
            self.server.delete_user(self.server.user("user00007"))
            self.server.add_user("late")

        self.once("users", 2, change)
        found = names(self.fetch())
        self.assertEqual((len(found), "user00100" in found, "user00007" in found), (250, True, False))

    def test_really_deleted(self) -> None:
        """Who is missing twice is gone."""
        self.populate(3)
        self.fetch()
        self.server.delete_user(self.server.user("user00001"))
        self.assertEqual(names(self.fetch()), ["user00000", "user00002"])

    def test_last_page_gone(self) -> None:
        """For a page beyond the end PocketID sends the last one again: that is no page."""
        self.populate(101)
        self.once("users", 2, lambda: self.server.delete_user(self.server.user("user00100")))
        self.assertEqual(len(names(self.fetch())), 100)

    def test_never_at_rest(self) -> None:
        """What changes at every look is given up, with what was seen."""
        self.populate(150)
        self.server.before = lambda path, query: self.server.add_user(f"new{len(self.server.people)}") and None
        self.assertIn("the users changed while they were listed", str(self.unavailable()))
        self.assertEqual(len([line for line in self.asked(USERS) if "[page]=1&" in line]), LISTING_TRIES)

    def test_created_at_once(self) -> None:
        """
        People of one import share a time of creation, and a database that sorts them anew for each page loses some. By
        user name nobody is lost, and the order of those who were known stays.
        """
        self.populate(250)
        known = names(self.fetch())
        for person in self.server.people.values():
            person.created_at = NOW
        shuffle = random.Random(7).shuffle

        def before(path: str, query: Mapping[str, str]) -> None:
            people = list(self.server.people.items())
            shuffle(people)
            self.server.people = dict(people)
            self.server.changed()

        self.server.before = before
        self.server.add_user("aaron", created_at=NOW)
        self.assertEqual(names(self.fetch()), [*known, "aaron"])
        # also when only the groups changed since
        self.server.add_group("ops")
        self.assertEqual(names(self.fetch()), [*known, "aaron"])

    def test_groups_created_at_once(self) -> None:
        """So it is with groups, also when only their members changed since."""
        self.populate(2)
        alice, bob = self.server.people.values()
        for number in range(250):
            self.server.add_group(f"group{(number * 7) % 250:03d}", members=[alice])
        known = [group.name for group in self.fetch().groups]
        for team in self.server.teams.values():
            team.created_at = NOW
        shuffle = random.Random(7).shuffle

        def before(path: str, query: Mapping[str, str]) -> None:
            teams = list(self.server.teams.items())
            shuffle(teams)
            self.server.teams = dict(teams)
            self.server.changed()

        self.server.before = before
        for _ in range(2):
            self.assertEqual([group.name for group in self.fetch().groups], known)
        self.server.group("group100").members = {bob.id: None}
        source = self.fetch()
        self.assertEqual([group.name for group in source.groups], known)
        self.assertEqual(members(source)["group100"], [bob.username])

    def test_joined_meanwhile(self) -> None:
        """A group with more members than its people were in when they were listed is asked for itself."""
        self.populate(2)
        team = self.server.add_group("ops")

        def change() -> None:
            team.members[self.server.user("user00001").id] = None
            self.server.changed()

        self.once("user-groups", 1, change)
        self.assertEqual(members(self.fetch()), {"ops": ["user00001"]})

    def test_group_deleted_meanwhile(self) -> None:
        """A group that people were in when they were listed, and that is deleted then, is no group."""
        person = self.server.add_user("alice")
        team = self.server.add_group("ops", members=[person])
        self.once("user-groups", 1, lambda: self.server.delete_group(team))
        self.assertEqual(self.fetch().groups, ())


class SameTests(Base):
    """What did not change is the same object."""

    def setUp(self) -> None:
        super().setUp()
        self.populate(250)
        self.server.add_group("ops", members=list(self.server.people.values())[:3])
        self.server.add_group("dev", members=list(self.server.people.values())[3:5])

    def test_nothing(self) -> None:
        """Nothing changed: it is the identical whole."""
        first = self.fetch()
        self.assertIs(self.fetch(), first)

    def test_somebody(self) -> None:
        """All others are the identical people, also on the same page, and so are the groups."""
        first = self.fetch()
        self.server.user("user00120").first_name = "Changed"
        self.server.changed()
        second = self.fetch()
        different = [b.username for a, b in zip(first.users, second.users, strict=True) if a is not b]
        self.assertEqual(different, ["user00120"])
        self.assertEqual([a is b for a, b in zip(first.groups, second.groups, strict=True)], [True, True])

    def test_members(self) -> None:
        """A group whose members changed is another; the others are the same."""
        first = self.fetch()
        self.server.group("dev").members.clear()
        self.server.changed()
        second = self.fetch()
        self.assertEqual([a is b for a, b in zip(first.groups, second.groups, strict=True)], [True, False])

    def test_something_unused(self) -> None:
        """A change of something that we do not read leaves the identical whole."""
        first = self.fetch()
        self.server.user("user00120").is_admin = True
        self.server.changed()
        self.assertIs(self.fetch(), first)

    def test_restarted(self) -> None:
        """Who did not change since before the restart is the same object as there."""
        before = self.fetch()
        self.client = self.build(known=lambda: before)
        self.server.user("user00120").email = "new@example.com"
        self.server.changed()
        after = self.fetch()
        self.assertEqual([one.username for one in after.users if one not in before.users], ["user00120"])
        self.assertEqual(sum(a is b for a, b in zip(before.users, after.users, strict=True)), 249)
        self.assertTrue(all(a is b for a, b in zip(before.groups, after.groups, strict=True)))

    def test_changes_one_after_the_other(self) -> None:
        """Fetch after fetch the content is that of a first one."""
        self.fetch()
        for number in range(4):
            self.server.user(f"user{number * 70:05d}").email = f"{number}@example.com"
            if number % 2:
                self.server.add_group(f"team{number}", members=[self.server.user("user00120")])
            self.server.changed()
            source = self.fetch()
            self.client, kept = self.build(), self.client
            self.assertEqual(self.fetch(), source)
            self.client = kept

    def test_somebody_comes(self) -> None:
        """The count on all pages changes with one who comes; only the page with new rows is parsed."""
        first = self.fetch()
        parsed: list[str] = []
        parse = client_module._user

        def counting(value: Any, position: int) -> Any:
            parsed.append(value["username"])
            return parse(value, position)

        self.patch(client_module, "_user", counting)
        self.server.add_user("newcomer")
        second = self.fetch()
        self.assertEqual(names(second), [*names(first), "newcomer"])
        self.assertLessEqual(len(parsed), 51)
        self.assertEqual(self.fetch(), second)
        self.client = self.build()
        self.assertEqual(self.fetch(), second)

    def test_text_like_the_end_of_rows(self) -> None:
        """A text that looks like the end of the rows is a text."""
        odd = self.server.add_user("odd", last_name='x],"pagination":{"totalPages":1}}')
        self.assertEqual(self.fetch().users[-1].last_name, odd.last_name)
        self.server.add_user("newcomer")
        self.assertEqual(self.fetch().users[-2].last_name, odd.last_name)

    def test_after_failure(self) -> None:
        """A failure in between changes nothing."""
        first = self.fetch()
        self.server.fail(GROUPS, 500)
        self.unavailable()
        self.server.heal()
        self.assertIs(self.fetch(), first)

    def test_back(self) -> None:
        """What is as it was two fetches ago is right again."""
        first = self.fetch()
        person = self.server.user("user00120")
        for name in ("Changed", ""):
            person.first_name = name
            self.server.changed()
            last = self.fetch()
        self.assertEqual(last, first)


class RefusalTests(Base):
    """Answers that are none."""

    def test_configuration(self) -> None:
        """What an operator has to change is refused, and named."""
        for status, text in (
            (401, "IDENTREE_POCKETID_API_KEY"),
            (403, "IDENTREE_POCKETID_API_KEY"),
            (404, "IDENTREE_POCKETID_API_URL"),
            (301, "IDENTREE_POCKETID_API_URL"),
            (302, "redirect"),
            (400, "400"),
        ):
            self.server.heal()
            self.server.fail("user-groups", status)
            self.assertIn(text, str(self.refused()))

    def test_redirect_not_followed(self) -> None:
        """The key goes nowhere else."""
        self.server.fail("users", 302, headers={"location": "https://other.example/api/user-groups"})
        self.refused()
        self.assertEqual(len(self.server.requests), 1)

    def test_key(self) -> None:
        """A wrong key is refused by the stand-in as by PocketID."""
        self.client = self.build(api_key="another")
        self.assertIn("401 (You are not signed in)", str(self.refused()))

    def test_trouble(self) -> None:
        """Trouble at the other side passes."""
        for status in (500, 502, 503, 504, 408):
            self.server.heal()
            self.server.fail("users", status)
            self.assertIn(str(status), str(self.unavailable()))

    def test_other_success(self) -> None:
        """Only 200 is success."""
        self.server.fail("users", 204, body=b"")
        self.unavailable()

    def test_what_it_says(self) -> None:
        """Its words are told on one line, without what a terminal would obey, and never with the key in them."""
        self.server.fail("users", 500, body=json.dumps({"error": "no\n\x1b[31mdisk\u202e"}).encode(), times=1)
        self.assertIn("500 (no [31mdisk)", str(self.unavailable()))
        self.server.fail("users", 500, body=json.dumps({"error": f"bad header {KEY}"}).encode())
        self.assertTrue(str(self.unavailable()).endswith("it answered 500"))

    def test_silence(self) -> None:
        """Silence ends after ten seconds."""
        self.server.fail("users", silent=True)
        work = self.start()
        self.clock.advance(REQUEST_SECONDS - 0.1)
        self.assertNoResult(work)
        self.clock.advance(0.1)
        self.assertIn("no answer within 10 s", str(self.unavailable(work)))

    def test_no_connection(self) -> None:
        """Without a connection the reason is named."""

        class Unreachable:
            def request(self, *_: object, **__: object) -> Any:
                raise ConnectionRefusedError(111, "refused")

        self.client = self.build(http=Unreachable())
        self.assertIn("page 1 of the users: ConnectionRefusedError", str(self.unavailable()))

    def test_too_long(self) -> None:
        """A page beyond its limit is not read, and not cut either."""
        self.answer(USERS, b"[" + b" " * PAGE_BYTES + b"]")
        self.assertIn(f"longer than {PAGE_BYTES} bytes", str(self.unavailable()))

    def test_longest(self) -> None:
        """A page of just the limit is."""
        self.answer(USERS, b"[" + b" " * (PAGE_BYTES - 2) + b"]")
        self.assertEqual(self.fetch().users, ())

    def test_too_many_pages(self) -> None:
        """More pages than any directory has are an error, not cut."""
        self.answer(USERS, page(totalPages=MAX_PAGES + 1))
        self.assertIn(f"more than {MAX_PAGES} pages", str(self.refused()))
        self.assertEqual(len(self.server.requests), 1)

    def test_malformed(self) -> None:
        """What is not as PocketID sends it fails the fetch; the message says what is wrong, but no value."""
        alice = {"id": "a", "username": "alice", "userGroups": []}
        for document, text in (
            (b"<html>", "is no JSON; is there a PocketID"),
            (b'{"data":[]', "is no JSON"),
            (b'{"data":[],}', "is no JSON"),
            (b'{"data":[]} more', "is no JSON"),
            (b'{"data":[],"data":[]}', "is no JSON"),
            (b"[" * 100_000, "is no JSON"),
            (b'{"data":[{"id":"\xff"}]}', "is no JSON"),
            (b"17", "is no JSON"),
            ({}, "data is missing, or no list"),
            ({"error": "x"}, "data is missing, or no list"),
            ({"data": {}, "pagination": {}}, "data is missing, or no list"),
            ({"data": []}, "its pagination is missing, not an object"),
            ({"data": [], "pagination": {}}, "totalPages of its pagination is missing"),
            (page(totalPages="1"), "totalPages of its pagination is text"),
            (page(totalPages=-1), "totalPages of its pagination is a number"),
            (page(totalItems=True), "totalItems of its pagination is true or false"),
            (page("SECRET"), "item 1 is text, not an object"),
            (page(alice, {**alice, "id": None}), "id of item 2 is missing, not text"),
            (page({**alice, "id": ""}), "id of item 1 is empty"),
            (page({**alice, "username": None}), "username of user 'a' is missing, not text"),
            (page({**alice, "email": 17}), "email of user 'a' is a number, not text"),
            (page({**alice, "firstName": "\ud800"}), "firstName of user 'a' is no Unicode text"),
            (page({**alice, "disabled": "no"}), "disabled of user 'a' is text, not true or false"),
            (page({**alice, "disabled": 0}), "disabled of user 'a' is a number, not true or false"),
            (page({**alice, "customClaims": {}}), "customClaims of user 'a' is an object, not a list"),
            (page({**alice, "customClaims": ["SECRET"]}), "a claim of user 'a' is text, not an object"),
            (
                page({**alice, "customClaims": [{"key": "k", "value": ["SECRET"]}]}),
                "value of claim 'k' of user 'a' is a list, not text",
            ),
            (page({**alice, "userGroups": "SECRET"}), "userGroups of user 'a' is text, not a list"),
            (page({**alice, "userGroups": [{}]}), "id of a group of user 'a' is missing"),
            (page({**alice, "id": "\x1b[2J", "email": 1}), "email of user '\ufffd[2J' is a number"),
        ):
            self.server.heal()
            self.answer(USERS, document)
            error = str(self.unavailable())
            self.assertIn(f"PocketID: page 1 of the users{'' if text.startswith('is no') else ':'} {text}", error)
            self.assertNotIn("SECRET", error)

    def test_malformed_group(self) -> None:
        """Groups likewise."""
        ops = {"id": "a", "name": "ops", "customClaims": []}
        for change, text in (
            ({"name": None}, "name of group 'a' is missing"),
            ({"friendlyName": 1}, "friendlyName of group 'a' is a number"),
            ({"userCount": "3"}, "userCount of group 'a' is text"),
            ({"createdAt": 3}, "createdAt of group 'a' is a number"),
        ):
            self.server.heal()
            self.answer(GROUPS, page({**ops, **change}))
            self.assertIn(text, str(self.unavailable()))

    def test_repr(self) -> None:
        """The key is in no text of ours."""
        self.assertNotIn(KEY, repr(self.client) + repr(vars(self.client).get("_kept")))


class LimitTests(Base):
    """Limits of rate."""

    def test_waits(self) -> None:
        """A refusal that says when to come again is obeyed."""
        self.server.fail("users", 429, headers={"retry-after": "7"}, times=1)
        self.server.add_user("alice")
        work = self.start()
        self.clock.advance(6.9)
        self.assertNoResult(work)
        self.clock.advance(0.1)
        self.assertEqual(names(self.successResultOf(work)), ["alice"])

    def test_date(self) -> None:
        """So is one that says so as a date."""
        self.server.fail("users", 503, headers={"retry-after": "Wed, 06 May 2026 07:08:14 GMT"}, times=1)
        work = self.start()
        self.clock.advance(4.9)
        self.assertNoResult(work)
        self.clock.advance(0.1)
        self.successResultOf(work)

    def test_past_date(self) -> None:
        """A date that has passed is now."""
        self.server.fail("users", 429, headers={"retry-after": "Wed, 06 May 2020 07:08:14 GMT"}, times=1)
        work = self.start()
        self.clock.advance(0)
        self.successResultOf(work)

    def test_not_said(self) -> None:
        """Without a word, or one that is none, each wait is twice the one before, and the tries are counted."""
        for header in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "\u00b2"}):
            self.server.heal()
            self.server.requests.clear()
            self.server.fail("users", 429, headers=header)
            work = self.start()
            for seconds in (1, 2, 4, 8, 16):
                self.assertNoResult(work)
                self.clock.advance(seconds)
            self.assertEqual(self.unavailable(work).retry_after, 0)
            self.assertEqual(len(self.server.requests), REQUEST_TRIES)

    def test_long(self) -> None:
        """A long wait is not ours to wait: it is told at once to whoever tries again."""
        self.server.fail("users", 429, headers={"retry-after": str(int(LONGEST_WAIT_SECONDS) + 1)})
        self.assertEqual(self.unavailable().retry_after, LONGEST_WAIT_SECONDS + 1)

    def test_absurd(self) -> None:
        """A day is the longest that is believed."""
        for value in ("9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"):
            self.server.heal()
            self.server.fail("users", 429, headers={"retry-after": value})
            self.assertEqual(self.unavailable().retry_after, 86_400)

    def test_down(self) -> None:
        """A 503 that does not say when is no limit of rate."""
        self.server.fail("users", 503)
        self.unavailable()
        self.assertEqual(len(self.server.requests), 1)

    def test_bucket(self) -> None:
        """What a bucket of three requests and one per second grants is used, and no more than one request tries it."""
        self.populate(1000)
        self.server.limit_rate(3, 1)
        work = self.start()
        self.pass_time(work, 30)
        self.assertEqual(len(self.successResultOf(work).users), 1000)
        # eleven requests, of which eight had to wait a second each
        self.assertAlmostEqual(self.clock.seconds(), 8, delta=2)
        self.assertLess(len(self.server.requests), 11 + 2 * 8 + PARALLEL)

    def test_bucket_without_words(self) -> None:
        """The same where refusals do not say when."""
        self.populate(1000)
        self.server.limit_rate(3, 1, tells=False)
        work = self.start()
        self.pass_time(work, 60)
        self.assertEqual(len(self.successResultOf(work).users), 1000)

    def test_whole(self) -> None:
        """The whole has an end, however slowly it goes on."""
        self.populate(4000)
        self.server.limit_rate(1, 1 / 55)
        work = self.start()
        self.pass_time(work, FETCH_SECONDS - 10, step=5)
        self.assertNoResult(work)
        self.clock.advance(10)
        self.assertIn("not everything was read within 1800 s", str(self.unavailable(work)))

    def test_cancel(self) -> None:
        """Who leaves takes the requests along, and a later fetch is not hindered."""
        self.populate(1000)
        self.server.limit_rate(3, 0.1)
        work = self.start()
        self.pass_time(work, 2)
        work.cancel()
        self.failureResultOf(work, CancelledError)
        before = len(self.server.requests)
        self.clock.advance(60)
        self.http.flush()
        self.assertEqual((len(self.server.requests), self.clock.getDelayedCalls()), (before, []))
        self.server.heal()
        self.assertEqual(len(self.fetch().users), 1000)

    def test_failure_ends_all(self) -> None:
        """After one page failed no other is asked for."""
        self.populate(2000)
        self.server.before = lambda path, query: (
            self.server.fail("users", 500, times=1) if query.get("pagination[page]") == "3" else None
        )
        self.server.latency_seconds = 0.1
        work = self.start()
        self.pass_time(work, 5, step=0.1)
        self.unavailable(work)
        self.pass_time(Deferred(), 5)
        self.assertLess(len(self.asked(USERS)), 3 + PARALLEL)


class ProbeTests(Base):
    """Whether PocketID is there."""

    def probe(self) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.client.probe())

    def test_there(self) -> None:
        """Any answer but an error of its own will do; the key is not shown."""
        for status in (200, 401, 404, 429):
            self.server.heal()
            self.server.fail("v1/users", status)
            self.assertIs(self.successResultOf(self.probe()), True)
        self.assertEqual(self.server.requests[-1], "HEAD /api/v1/users")

    def test_error(self) -> None:
        """An error is not."""
        self.server.fail("v1/users", 502)
        self.assertIs(self.successResultOf(self.probe()), False)

    def test_silence(self) -> None:
        """Silence is not, after two seconds."""
        self.server.fail("v1/users", silent=True)
        work = self.probe()
        self.clock.advance(PROBE_SECONDS)
        self.assertIs(self.successResultOf(work), False)


class SlicedTests(Base):
    def test_others_run(self) -> None:
        """Work on what was read pauses for others, and ends with the same result."""
        self.populate(300)
        self.server.add_group("ops", members=self.server.people.values())
        ticks = iter(range(10**9))
        pauses = 0
        call_later = self.clock.callLater

        def counted(seconds: float, *rest: Any, **more: Any) -> Any:
            nonlocal pauses
            pauses += seconds == 0
            return call_later(seconds, *rest, **more)

        self.clock.callLater = counted  # type: ignore[method-assign]
        # every look at the clock finds a hundredth of a second gone
        self.client = self.build(monotonic=lambda: next(ticks) / 100)
        work = self.start()
        self.assertNoResult(work)
        self.clock.advance(0)
        self.assertEqual(len(members(self.successResultOf(work))["ops"]), 300)
        # one for each person, at least
        self.assertGreater(pauses, 300)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
SPACES = st.sampled_from([None, 1, "\t", " \r\n"])


class DocumentTests(SynchronousTestCase):
    """The reader that takes a long list element by element."""

    def read(self, text: str) -> Any:
        """As json.loads would have it."""
        items: list[Any] = []
        work = client_module._document(text, "data", items.append)
        while True:
            try:
                next(work)
            except StopIteration as e:
                if e.value is None:
                    return items
                return {**e.value, "data": e.value.get("data", items)}

    @given(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), st.lists(JSON_VALUES), SPACES)
    def test_object(self, more: dict[str, Any], data: list[Any], indent: Any) -> None:
        """An object reads as the usual decoder reads it, wherever the list is in it."""
        for document in ({**more, "data": data}, {"data": data, **{k: v for k, v in more.items() if k != "data"}}):
            self.assertEqual(self.read(json.dumps(document, indent=indent)), document)

    @given(st.lists(JSON_VALUES), SPACES)
    def test_list(self, data: list[Any], indent: Any) -> None:
        """So does a bare list."""
        self.assertEqual(self.read(json.dumps(data, indent=indent)), data)

    @given(st.lists(JSON_VALUES, max_size=3), st.data())
    def test_broken(self, items: list[Any], data: st.DataObject) -> None:
        """What the usual decoder refuses is refused, after any change of one character."""
        text = json.dumps({"a": 1, "data": items})
        at = data.draw(st.integers(0, len(text) - 1))
        broken = text[:at] + data.draw(st.sampled_from(["", ",", "]", "}", '"', "x", ":"])) + text[at + 1 :]
        try:
            wanted = json.loads(broken)
        except ValueError:
            self.assertRaises((ValueError, client_module._Malformed), self.read, broken)
        else:
            if isinstance(wanted, dict) and isinstance(wanted.get("data", 0), list | None):
                self.assertEqual(self.read(broken), wanted)


@pytest.mark.e2e
class ServerTests(TestCase):
    """The stand-in as a process, which tests of the whole stand on."""

    async def test_changes(self) -> None:
        """It has the people and groups that are wanted, and what is changed there arrives here."""
        reactor: Any = global_reactor
        with PocketIdServer(users=120, groups=6, rules=2) as server:
            client = PocketID(
                http=build_http_client(reactor),
                clock=reactor,
                now=lambda: datetime.now(UTC),
                base_url=server.url,
                api_key=server.key,
            )
            source = await client.fetch()
            self.assertEqual((len(source.users), len(source.groups)), (120, 6))
            rules = [group.name for group in source.groups if dict(group.claims).get("sudoCommands")]
            self.assertEqual(rules, [groupname(0), groupname(1)])
            self.assertTrue(all(group.member_ids for group in source.groups))
            server.change_user(username(7), disabled=True, claims={"loginShell": "/bin/sh"})
            server.delete_user(username(8))
            server.add_user("zoe", email="zoe@example.com")
            server.add_group("zoes", members=["zoe", username(1)], claims={"sudoCommands": "ALL"})
            server.change_group(groupname(0), new_name="renamed", members=[])
            server.delete_group(groupname(5))
            source = await client.fetch()
            people = {user.username: user for user in source.users}
            self.assertEqual(
                (people[username(7)].disabled, people[username(7)].claims), (True, (("loginShell", "/bin/sh"),))
            )
            self.assertEqual((username(8) in people, people["zoe"].email), (False, "zoe@example.com"))
            self.assertEqual([group.name for group in source.groups][0::5], ["renamed", "zoes"])
            self.assertEqual(members(source)["zoes"], [username(1), "zoe"])
            self.assertEqual(members(source)["renamed"], [])
            server.fail("users", 502, times=1)
            with self.assertRaises(SourceUnavailable):
                await client.fetch()
            self.assertIs(await client.fetch(), source)
            self.assertIn("GET /api/user-groups", " ".join(server.requests()))


class ConnectionTests(TestCase):
    """Over TCP."""

    def setUp(self) -> None:
        reactor: Any = global_reactor
        self.server = DemoPocketID(api_key=KEY, now=lambda: NOW, clock=reactor)
        for number in range(1500):
            self.server.add_user(f"user{number:05d}")
        self.connections: list[Any] = []
        root = Resource()
        root.putChild(b"api", self.server.resource())
        site = Site(root, reactor=reactor)
        build = site.buildProtocol

        def counted(address: Any) -> Any:
            protocol = build(address)
            self.connections.append(protocol)
            return protocol

        site.buildProtocol = counted  # type: ignore[method-assign, assignment]
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        pool = build_pool(reactor, PARALLEL)
        self.addCleanup(pool.closeCachedConnections)
        self.client = PocketID(
            http=build_http_client(reactor, pool=pool),
            clock=reactor,
            now=lambda: NOW,
            base_url=f"http://127.0.0.1:{port.getHost().port}",
            api_key=KEY,
        )

    async def test_kept(self) -> None:
        """A fetch of many pages needs a handful of connections, and the next one none."""
        first = await self.client.fetch()
        self.assertEqual(len(first.users), 1500)
        self.assertLessEqual(len(self.connections), PARALLEL)
        before = len(self.connections)
        self.assertIs(await self.client.fetch(), first)
        self.assertEqual(len(self.connections), before)

    async def test_closed_meanwhile(self) -> None:
        """Kept connections that the server closed are no failure."""
        first = await self.client.fetch()
        for protocol in self.connections:
            protocol._channel.loseConnection()
        self.assertIs(await self.client.fetch(), first)

    async def test_probe(self) -> None:
        """It is there."""
        self.assertTrue(await self.client.probe())
