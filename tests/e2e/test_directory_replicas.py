"""Two servers on one PostgreSQL with one PocketID: the same entries, fixed numbers, and one that asks for both."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from tests import postgres
from tests.e2e import directory
from tests.e2e.ldaptools import Entries
from tests.e2e.pocketid import PocketIdServer, username
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.server import Server, free_port
from tests.e2e.slapd import BASE_DN

pytestmark = pytest.mark.e2e

USERS, GROUPS, RULES = 300, 20, 8
# More than one transaction's ids.
MANY = 1200
# Nothing comes by the clock while a test waits for the other replica's word.
SELDOM = "10m"
# The shortest there is.
OFTEN_SECONDS = 10.0
# A change by webhook: its pause for others that follow, the refresh, and the word to the other replica.
SOON_SECONDS = 20.0
# Starts that are cut off, and how long after the first answer of the web server that may be; the import takes as long.
KILLS, IMPORT_SECONDS = 8, 0.4
# An insert that shall never end by itself.
STUCK_SECONDS = 3600


@dataclass(frozen=True)
class Replica:
    """:ivar port: of its LDAP listener."""

    server: Server
    port: int

    def uidmap(self) -> dict[str, dict[str, int]]:
        content: dict[str, dict[str, int]] = json.loads((self.server.directory / "uidmap.json").read_text())
        return content


@contextmanager
def database() -> Iterator[str]:
    cluster = postgres.cluster()
    dsn = cluster.create_database()
    try:
        yield dsn
    finally:
        cluster.drop_database(dsn)


def rows(dsn: str, sql: str) -> list[tuple[object, ...]]:
    return postgres.cluster().execute(dsn.rpartition("/")[2], sql)


def given_uids(dsn: str) -> dict[str, int]:
    """By PocketID's id."""
    found = rows(dsn, "SELECT source_id, number FROM posix_ids WHERE kind = 'uid'")
    return {str(id): int(str(number)) for id, number in found}


def replica(place: Path, pocketid: PocketIdServer, dsn: str, interval: str = SELDOM) -> Replica:
    place.mkdir()
    port = free_port()
    settings = {
        "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
        "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
        "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "IDENTREE_DATABASE_DRIVER": "postgres",
        "IDENTREE_DATABASE_DSN": dsn,
        "IDENTREE_LDAP_REFRESH_INTERVAL": interval,
    }
    return Replica(Server(place, {**settings, **directory.settings(place, pocketid, port)}), port)


def start_together(stack: ExitStack, replicas: list[Replica]) -> None:
    """At the same moment, as an orchestrator starts them."""
    # they die with the thread that has started them: it stays for as long as they do
    threads = stack.enter_context(ThreadPoolExecutor(len(replicas)))
    for each in replicas:
        stack.callback(each.server.kill)
    list(threads.map(lambda each: each.server.start(), replicas))
    for each in replicas:
        directory.until(lambda each=each: directory.served(each.port, f"uid={username(1)}"), "the directory")  # type: ignore[misc]


def numbers(entries: Entries, attribute: str = "uidNumber") -> dict[str, int]:
    return {dn: int(entry[attribute][0]) for dn, entry in entries.items() if attribute in entry}


def counted(requests: list[str]) -> int:
    """How often all people were asked for: what a refresh begins with."""
    return sum("/users?" in request and "page]=1&" in f"{request}&" for request in requests)


@pytest.fixture(scope="module")
def pocketid() -> Iterator[PocketIdServer]:
    with PocketIdServer(USERS, GROUPS, RULES) as made:
        yield made


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, pocketid: PocketIdServer) -> Iterator[tuple[Replica, Replica]]:
    """Started together on an empty database."""
    place = tmp_path_factory.mktemp("replicas")
    with database() as dsn, ExitStack() as stack:
        one, other = replica(place / "one", pocketid, dsn), replica(place / "other", pocketid, dsn)
        start_together(stack, [one, other])
        yield one, other


def agree(one: Replica, other: Replica) -> Entries:
    """Wait until both have the last word, and see that they say the same; what they say."""
    said: list[Entries] = []

    def same() -> bool:
        said[:] = directory.everything(one.port), directory.everything(other.port)
        return said[0] == said[1]

    try:
        directory.until(same, "the replicas to agree", SOON_SECONDS)
    except AssertionError:
        differing = [dn for dn in {**said[0], **said[1]} if said[0].get(dn) != said[1].get(dn)]
        dn = differing[0]
        raise AssertionError(f"{len(differing)} differ: {dn}: {said[0].get(dn)} and {said[1].get(dn)}") from None
    return said[0]


class TestTwo:
    def test_first_start(self, both: tuple[Replica, Replica]) -> None:
        """After a first start at the same moment every attribute of every entry is the same, byte for byte."""
        one, other = both
        entries = agree(one, other)
        assert sum("uidNumber" in entry for entry in entries.values()) == USERS
        for name in ("entryUSN", "modifyTimestamp", "createTimestamp", "entryUUID"):
            assert name in entries[f"uid={username(1)},ou=people,{BASE_DN}"], name

    def test_numbers(self, both: tuple[Replica, Replica]) -> None:
        """Nobody shares a number, none was wasted, and both have exported the same map."""
        one, other = both
        entries = agree(one, other)
        uids = numbers(entries)
        assert sorted(uids.values()) == list(range(directory.UID_BASE, directory.UID_BASE + USERS))
        gids = {dn: number for dn, number in numbers(entries, "gidNumber").items() if ",ou=groups," in dn}
        assert sorted(gids.values()) == list(range(directory.GID_BASE, directory.GID_BASE + USERS + GROUPS))
        directory.until(lambda: one.uidmap() == other.uidmap(), "both exports")
        assert set(one.uidmap()["uids"].values()) == set(uids.values())

    def test_change_through_one(self, both: tuple[Replica, Replica], pocketid: PocketIdServer) -> None:
        """What PocketID rings one of them for is served by the other within seconds, which has asked nobody."""
        one, other = both
        before = agree(one, other)
        refreshed = "identree_directory_refresh_duration_seconds_count"
        asked = directory.metric(other.server.port, refreshed)
        pocketid.change_user(username(7), last_name="Changed")
        pocketid.add_user("newcomer")
        directory.refresh(one.server.port)
        directory.until(lambda: directory.served(other.port, "uid=newcomer"), "the other replica", SOON_SECONDS)
        after = agree(one, other)
        dn = f"uid={username(7)},ou=people,{BASE_DN}"
        assert after[dn]["sn"] == (b"Changed",)
        assert after[dn]["entryUSN"] > before[dn]["entryUSN"]
        unchanged = [each for each in before if each != dn and before[each] != after[each]]
        assert not unchanged, unchanged
        assert directory.metric(other.server.port, refreshed) == asked

    def test_both_rung(self, both: tuple[Replica, Replica], pocketid: PocketIdServer) -> None:
        """Two that publish at once end with the same entries and one number for each new person."""
        one, other = both
        for number in range(5):
            pocketid.add_user(f"twin{number}")
        directory.refresh(one.server.port)
        directory.refresh(other.server.port)
        for each in both:
            directory.until(lambda each=each: directory.served(each.port, "uid=twin4"), "twins", SOON_SECONDS)  # type: ignore[misc]
        uids = numbers(agree(one, other))
        assert len(set(uids.values())) == len(uids)

    def test_restarted(self, both: tuple[Replica, Replica]) -> None:
        """One that is killed and started again serves what it served before."""
        one, other = both
        before = agree(one, other)
        other.server.kill()
        other.server.start()
        directory.until(lambda: directory.served(other.port, "uid=newcomer"), "the restarted replica")
        assert agree(one, other) == before


class TestInterval:
    def test_one_asks(self, tmp_path: Path, pocketid: PocketIdServer) -> None:
        """Beside the first look that each takes at its start, PocketID is asked once in an interval, not twice."""
        with database() as dsn, ExitStack() as stack:
            two = [replica(tmp_path / name, pocketid, dsn, f"{OFTEN_SECONDS:.0f}s") for name in ("one", "other")]
            start_together(stack, two)
            agree(*two)
            pocketid.requests()
            asked = 0

            def often(times: int) -> bool:
                nonlocal asked
                asked += counted(pocketid.requests())
                return asked >= times

            directory.until(lambda: often(1), "a refresh", 2 * OFTEN_SECONDS)
            first = time.monotonic()
            directory.until(lambda: often(2), "another one", 3 * OFTEN_SECONDS)
            # they have started together: if both asked, the second one would come right behind the first; whoever has
            # claimed the turn has half of the interval for itself
            assert time.monotonic() - first > 0.2 * OFTEN_SECONDS, "both ask"
            for each in two:
                assert directory.metric(each.server.port, "identree_directory_age_seconds") < 1.5 * OFTEN_SECONDS


class TestKilled:
    def test_in_the_first_import(self, tmp_path: Path) -> None:
        """
        Killed with half of the ids written, and a transaction under way: nobody's number moves, none is given twice,
        and a replica that comes in meanwhile goes on from the same ones.
        """
        with database() as dsn, ExitStack() as stack:
            pocketid = stack.enter_context(PocketIdServer(MANY, GROUPS, RULES))
            one, other = replica(tmp_path / "one", pocketid, dsn), replica(tmp_path / "other", pocketid, dsn)
            stack.callback(one.server.kill)
            stack.callback(other.server.kill)
            # the tables, and no ids yet
            one.server.settings["IDENTREE_LDAP_ENABLED"] = "false"
            one.server.start()
            one.server.stop()
            one.server.settings["IDENTREE_LDAP_ENABLED"] = "true"
            stuck_at = directory.UID_BASE + MANY - 10
            rows(
                dsn,
                "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF NEW.number = {stuck_at} THEN PERFORM pg_sleep({STUCK_SECONDS}); END IF; RETURN NEW; END $$",
            )
            rows(dsn, "CREATE TRIGGER stuck BEFORE INSERT ON posix_ids FOR EACH ROW EXECUTE FUNCTION stuck()")
            one.server.start()
            stuck = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            directory.until(lambda: bool(rows(dsn, stuck)), "the import to be in the middle")
            one.server.kill()
            written = given_uids(dsn)
            assert 0 < len(written) < MANY, "that was not the middle"
            for (pid,) in rows(dsn, stuck):
                rows(dsn, f"SELECT pg_terminate_backend({pid})")
            rows(dsn, "DROP TRIGGER stuck ON posix_ids")
            start_together(stack, [one, other])
            uids = numbers(agree(one, other))
            given = given_uids(dsn)
            assert {id: given[id] for id in written} == written
            assert sorted(uids.values()) == list(range(directory.UID_BASE, directory.UID_BASE + MANY))
            assert sorted(uids.values()) == sorted(given.values())

    def test_again_and_again(self, tmp_path: Path) -> None:
        """
        Killed at any moment of its start, with more people each time: what stood in the database once stands there for
        ever, and in the end everybody has a number that nobody else has.
        """
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        chance, port = random.Random(seed), free_port()
        provider = {
            "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
            "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
            "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        }
        with PocketIdServer(USERS, GROUPS, RULES) as pocketid, ExitStack() as stack:
            server = Server(tmp_path, {**provider, **directory.settings(tmp_path, pocketid, port)})
            stack.callback(server.kill)
            kept: dict[tuple[str, str], int] = {}
            for number in range(KILLS):
                for person in range(10):
                    pocketid.add_user(f"more{number}-{person}")
                server.start()
                time.sleep(chance.uniform(0, IMPORT_SECONDS))
                server.kill()
                with closing(sqlite3.connect(tmp_path / "identree.db")) as database_file:
                    written = database_file.execute("SELECT kind, source_id, number FROM posix_ids").fetchall()
                found = {(kind, id): given for kind, id, given in written}
                assert {key: found.get(key) for key in kept} == kept
                kept = found
            server.start()
            last = f"more{KILLS - 1}-9"
            directory.until(lambda: directory.served(port, f"uid={last}"), "everybody")
            uids = numbers(directory.everything(port))
            assert len(set(uids.values())) == len(uids) == USERS + 10 * KILLS
            exported = json.loads((tmp_path / "uidmap.json").read_text())
            assert {id: exported["uids"][id] for kind, id in kept if kind == "uid"} == {
                id: number for (kind, id), number in kept.items() if kind == "uid"
            }
            assert set(exported["uids"].values()) == set(uids.values())

    def test_unique_in_the_database(self, both: tuple[Replica, Replica]) -> None:
        """Whatever a program does, the database itself gives no number twice."""
        one, _ = both
        dsn = one.server.settings["IDENTREE_DATABASE_DSN"]
        with pytest.raises(psycopg2.errors.UniqueViolation):
            rows(
                dsn,
                "INSERT INTO posix_ids (kind, source_id, number, revision) "
                f"VALUES ('uid', 'somebody', {directory.UID_BASE}, 1)",
            )
