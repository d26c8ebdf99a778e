"""Heartbeats, the list of hosts and what is done with them (identree.app.fleet); the answers are in tests.web."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app import fleet
from identree.app.fleet import HOSTS_PER_PAGE, FleetPage, Kept, Seen, Wanted, seen_state
from identree.core.challenge import HistoryEntry
from identree.core.errors import Forbidden, StorageUnavailable
from identree.core.hosts import HostRegistry
from tests.web.house import START, result
from tests.web.yard import Yard

HOUR = timedelta(hours=1)


class FleetCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.yard = Yard()
        self.admin = self.yard.house.caller("carol", "admin")

    def page(self, **wanted: Any) -> FleetPage:
        return result(self.yard.fleet.page(self.admin, Wanted(**wanted)))

    def names(self, **wanted: Any) -> list[str]:
        return [host.name for host in self.page(**wanted).hosts]


class SeenTests(SynchronousTestCase):
    def test_bounds(self) -> None:
        """Ten minutes and an hour, to the second."""
        for seconds, state in ((599, Seen.ONLINE), (600, Seen.STALE), (3599, Seen.STALE), (3600, Seen.OFFLINE)):
            self.assertIs(seen_state(START - timedelta(seconds=seconds), START), state)
        self.assertIs(seen_state(None, START), Seen.NEVER)
        self.assertIs(seen_state(START + HOUR, START), Seen.ONLINE)


class PageTests(FleetCase):
    def test_spellings(self) -> None:
        """All that old servers have stored under several spellings is one host's."""
        self.yard.beat("WEB1", timedelta(days=1))
        self.yard.beat("web1.", timedelta(minutes=1))
        self.yard.keep("Web1", ago=HOUR)
        self.yard.keep("web1", ago=2 * HOUR)
        self.yard.house.session("alice", "WEB1", HOUR)
        self.yard.house.session("bob", "web1", HOUR)
        [host] = self.page().hosts
        assert host.escrow is not None
        self.assertEqual((host.name, host.seen, host.sessions), ("web1", Seen.ONLINE, 2))
        self.assertEqual((host.escrow.hostname, host.link), ("Web1", "https://vault.example/Web1"))

    def test_names_that_are_none(self) -> None:
        """Requests without a host make no host."""
        self.yard.house.history(
            [
                HistoryEntry(at=START, username="alice", action="approved", hostname="(unknown)"),
                HistoryEntry(at=START, username="alice", action="approved", hostname=""),
                HistoryEntry(at=START, username="root", action="claims_updated", hostname="admins"),
                HistoryEntry(at=START, username="alice", action="approved", hostname="Web1"),
            ]
        )
        self.assertEqual(self.names(), ["web1"])

    def test_read_by_pages(self) -> None:
        """Of every source all is read, however many pages that takes."""
        self.patch(fleet, "ROWS_AT_ONCE", 2)
        for number in range(5):
            self.yard.beat(f"a{number}")
            self.yard.keep(f"b{number}")
            self.yard.house.session("alice", f"c{number}", HOUR)
            self.yard.house.history([HistoryEntry(at=START, username="bob", action="approved", hostname=f"d{number}")])
        result(self.yard.fleet.rotate_all(self.admin, Wanted()))
        page = self.page()
        self.assertEqual([host.name for host in page.hosts], [f"{letter}{n}" for letter in "abcd" for n in range(5)])
        self.assertEqual({host.rotation for host in page.hosts}, {START})
        self.assertEqual(sum(host.sessions for host in page.hosts), 5)
        self.assertEqual(len(result(self.yard.fleet.agents(self.admin))), 5)

    def test_counts(self) -> None:
        """They are of all hosts, whatever is listed."""
        self.yard.beat("web1")
        self.yard.beat("web2", timedelta(days=1))
        self.yard.keep("db1")
        page = self.page(search="web")
        self.assertEqual((page.found, page.total, page.escrowed), (2, 3, True))
        self.assertEqual(page.seen, {Seen.ONLINE: 1, Seen.STALE: 0, Seen.OFFLINE: 1, Seen.NEVER: 1})

    def test_age_of_passwords(self) -> None:
        """Too old after the days that are pushed to hosts, or ninety."""
        from dataclasses import replace

        from identree.app.rules import ClientDefaults

        self.yard.keep("web1", ago=timedelta(days=40))
        self.assertEqual(self.page().hosts[0].kept, Kept.ESCROWED)
        self.yard.house.rules = replace(self.yard.house.rules, client=ClientDefaults(breakglass_rotation_days=30))
        self.assertEqual(self.page().hosts[0].kept, Kept.EXPIRED)

    def test_rotation_is_done(self) -> None:
        """Once another password was escrowed later; without escrow nobody can know."""
        self.yard.keep("web1")
        self.yard.beat("web2")
        result(self.yard.fleet.rotate_all(self.admin, Wanted()))
        self.assertEqual([host.rotation for host in self.page().hosts], [START, START])
        self.yard.house.reactor.advance(1)
        self.yard.keep("web1")
        self.assertEqual([host.rotation for host in self.page().hosts], [None, START])

    def test_turned_order(self) -> None:
        """Equal ones stand by name in either order."""
        for name in ("c", "a", "b"):
            self.yard.beat(name)
        self.yard.house.session("alice", "b", HOUR)
        self.assertEqual(self.names(sort="sessions", descending=True), ["b", "a", "c"])
        self.assertEqual(self.names(sort="sessions"), ["a", "c", "b"])

    def test_number_of_the_page(self) -> None:
        """One that is not there is the nearest that is."""
        for number in range(HOSTS_PER_PAGE + 1):
            self.yard.beat(f"web{number:02}")
        self.assertEqual([self.page(number=number).number for number in (-1, 0, 1, 2, 3)], [1, 1, 1, 2, 2])
        self.assertEqual(self.page(search="nothing").pages, 1)


class AuthorisationTests(FleetCase):
    def test_not_an_admin(self) -> None:
        """Decided here, whatever the adapter checks; and nothing is done."""
        someone, yard = self.yard.house.caller("alice"), self.yard.fleet
        calls: list[Callable[[], Any]] = [
            lambda: yard.page(someone, Wanted()),
            lambda: yard.agents(someone),
            lambda: yard.rotate(someone, "web1"),
            lambda: yard.rotate_all(someone, Wanted()),
            lambda: yard.remove(someone, "web1"),
            lambda: yard.elevate(someone, "web1", "bob", 3600),
            lambda: yard.elevate(someone, "web1", "alice", 3600),
        ]
        for call in calls:
            with self.assertRaises(Forbidden):
                result(call())
        self.assertEqual(self.yard.store.events, [])


class ElevateTests(FleetCase):
    def elevate(self, seconds: int) -> timedelta:
        session = result(self.yard.fleet.elevate(self.admin, "web1", "alice", seconds))
        return session.expires_at - self.yard.house.now()

    def test_short_grace_period(self) -> None:
        """It bounds even the shortest."""
        from dataclasses import replace

        self.yard.house.rules = replace(self.yard.house.rules, grace_period=timedelta(minutes=30))
        self.assertEqual(self.elevate(7200), timedelta(minutes=30))

    def test_forged_session(self) -> None:
        """A row that is not ours does not last on."""
        self.yard.house.session("alice", "web1", 7 * HOUR)
        self.yard.store.connection.execute("UPDATE grace_sessions SET hmac_hex = 'f'")
        self.assertEqual(self.elevate(7200), 2 * HOUR)


class RemoveTests(FleetCase):
    def test_registry_cannot_be_looked_at(self) -> None:
        """The host is removed all the same."""

        async def unavailable() -> object:
            raise StorageUnavailable("locked")

        self.yard.beat("web1")
        self.patch(self.yard.fleet, "_follow", unavailable)
        result(self.yard.fleet.remove(self.admin, "web1"))
        self.assertEqual((self.names(), self.yard.store.events), ([], ["host_removed"]))

    def test_registered_without_anything(self) -> None:
        """With a registry a host is listed that was never heard of."""
        entries = {"web1": {"secret": "f" * 64, "users": ["*"], "group": "prod"}}
        self.yard.registry = HostRegistry.parse(json.dumps(entries).encode())
        [host] = self.page().hosts
        self.assertEqual((host.name, host.group, host.seen, host.kept), ("web1", "prod", Seen.NEVER, Kept.NONE))
        self.assertEqual(self.page().groups, ("prod",))
