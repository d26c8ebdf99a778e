"""A whole server and its directory: restarts, losses, ids, ports, rules, swaps, the webhook, and the commands."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import directory, wire
from tests.e2e.ldaptools import BASE, SUB, Client, Told, parse_filter
from tests.e2e.pocketid import PocketIdServer, username
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, SHARED_SECRET, Server, free_port
from tests.e2e.slapd import BASE_DN, BIND_DN
from tests.e2e.sssd import FULL_NAME
from tests.e2e.tls import CA, SecureServer

pytestmark = pytest.mark.e2e

USERS, GROUPS, RULES = 40, 6, 3
SWAPS = 50
# The shortest interval there is, and when what was last read that long ago counts as stale.
INTERVAL_SECONDS = 10.0
STALE_SECONDS = 15.0
# identree.app.bridge looks at the rules file this often.
FOLLOW_SECONDS = 5.0
ALL_WELL = {"ldap_sync": "ok", "ldap_server": "ok", "pocketid": "ok", "oidc": "ok"}


@pytest.fixture(scope="module")
def oidc() -> Iterator[dict[str, str]]:
    with Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider:
        yield provider.settings


def health(server: Server) -> tuple[int, str, dict[str, str]]:
    """HTTP status, overall status, and each check."""
    answer = wire.ask(server.port, "GET", "/healthz")
    return answer.status, answer.json["status"], answer.json["checks"]


def checks(server: Server, **wanted: str) -> bool:
    _, _, found = health(server)
    return {name: found.get(name) for name in wanted} == wanted


def known(server: Server) -> dict[str, dict[str, int]]:
    content: dict[str, dict[str, int]] = json.loads((server.directory / "uidmap.json").read_text())
    return content


# -- restarts and losses ----------------------------------------------------------------------------------------------
class TestWithoutPocketId:
    def test_restart(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """
        With PocketID away, a restarted server says what it said before, attribute by attribute; it is degraded, then
        stale and unhealthy, and goes on serving; it is well again when PocketID is.
        """
        id_port, port = free_port(), free_port()
        with ExitStack() as stack:
            pocketid = PocketIdServer(USERS, GROUPS, RULES, port=id_port)
            stack.callback(pocketid.stop)
            pocketid.start()
            settings = {**oidc, **directory.settings(tmp_path, pocketid, port)}
            settings["IDENTREE_LDAP_REFRESH_INTERVAL"] = f"{INTERVAL_SECONDS:.0f}s"
            server = stack.enter_context(Server(tmp_path, settings))
            directory.until(lambda: checks(server, **ALL_WELL), "health")
            assert health(server)[:2] == (200, "ok")
            before = directory.everything(port)
            assert len(before) > USERS
            server.stop()
            pocketid.stop()

            server.start()
            directory.until(lambda: directory.everything(port) == before, "the kept directory", INTERVAL_SECONDS)
            status, overall, found = health(server)
            assert (found["ldap_sync"], found["ldap_server"], found["pocketid"]) == ("ok", "ok", "unreachable")
            assert (status, overall) == (200, "degraded")
            assert "as they were kept" in server.log

            age = directory.metric(server.port, "identree_directory_age_seconds")
            assert 0 < age < STALE_SECONDS
            directory.until(lambda: checks(server, ldap_sync="stale"), "staleness", 2 * STALE_SECONDS, 0.2)
            assert health(server)[:2] == (503, "unhealthy")
            assert directory.metric(server.port, "identree_directory_age_seconds") >= STALE_SECONDS
            assert directory.metric(server.port, "identree_ldap_sync_failures_total") >= 1
            assert directory.everything(port) == before

            again = PocketIdServer(USERS, GROUPS, RULES, port=id_port)
            stack.callback(again.stop)
            again.start()
            directory.refresh(server.port)
            directory.until(lambda: checks(server, ldap_sync="ok"), "health")
            assert {dn: entry.get("uidNumber") for dn, entry in directory.everything(port).items()} == {
                dn: entry.get("uidNumber") for dn, entry in before.items()
            }

    def test_never_there(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """Without anything to serve, searches are told to come again rather than that there is nobody."""
        port = free_port()
        nowhere = {
            "IDENTREE_POCKETID_API_URL": f"http://127.0.0.1:{free_port()}",
            "IDENTREE_POCKETID_API_KEY": "key-of-nobody-0123456789",
        }
        with Server(tmp_path, {**oidc, **directory.settings(tmp_path, None, port), **nowhere}) as server:
            directory.until(lambda: checks(server, ldap_server="ok"), "the listener")
            with directory.bound(port) as client:
                found = client.search(f"uid={username(1)},ou=people,{BASE_DN}", BASE, ("*", "objectClass"))
            assert found.code in (51, 52), found
            assert health(server)[0] == 503
            assert checks(server, ldap_sync="stale", pocketid="unreachable")


@dataclass(frozen=True)
class World:
    server: Server
    port: int
    pocketid: PocketIdServer


@pytest.fixture
def world(tmp_path: Path, oidc: dict[str, str]) -> Iterator[World]:
    """For tests that change what it serves."""
    port = free_port()
    with (
        PocketIdServer(USERS, GROUPS, RULES) as pocketid,
        Server(tmp_path, {**oidc, **directory.settings(tmp_path, pocketid, port)}) as server,
    ):
        directory.until(lambda: directory.served(port, f"uid={username(1)}"), "the directory")
        yield World(server, port, pocketid)


class TestShrink:
    def test_refused_and_accepted(self, world: World) -> None:
        """Half of the people vanish: nobody does here until an administrator accepts it, having seen how many."""
        server, port = world.server, world.port
        admin = wire.Visitor("carol", "admin")
        for number in range(USERS // 2):
            world.pocketid.delete_user(username(number))
        directory.refresh(server.port)
        directory.until(lambda: "refresh refused" in server.log, "the refusal")
        assert directory.metric(server.port, "identree_directory_refused_total") == 1
        assert directory.served(port, f"uid={username(1)}")
        assert checks(server, ldap_sync="ok"), "the source has answered"
        told = f"{USERS // 2} of {USERS} people would vanish"
        assert told in admin.get(server.port, "/admin/directory").body.decode()

        answer = wire.Visitor("dave").post(server.port, "/api/directory/refresh", accept_shrink="1")
        assert answer.status == 403, answer
        answer = admin.post(server.port, "/api/directory/refresh", accept_shrink="1", seen="1 of 2 people would vanish")
        assert directory.served(port, f"uid={username(1)}"), "something else was accepted than what waits"

        [seen] = re.findall(r'name="seen" value="([^"]+)"', admin.get(server.port, "/admin/directory").body.decode())
        admin.post(server.port, "/api/directory/refresh", accept_shrink="1", seen=seen)
        directory.until(lambda: not directory.served(port, f"uid={username(1)}"), "the smaller directory")
        assert directory.served(port, f"uid={username(USERS - 1)}")
        assert "DIRECTORY_SHRINK_ACCEPTED" in server.log
        assert told not in admin.get(server.port, "/admin/directory").body.decode()

    def test_returned(self, world: World) -> None:
        """Who is back before anybody accepted it was never away; numbers stay with their owners all the time."""
        before = known(world.server)
        world.pocketid.fail("users", 500)
        directory.refresh(world.server.port)
        directory.until(lambda: "refresh failed" in world.server.log, "the failure")
        world.pocketid.heal()
        assert directory.served(world.port, f"uid={username(1)}")
        world.pocketid.add_user("late")
        directory.refresh(world.server.port)
        directory.until(lambda: directory.served(world.port, "uid=late"), "the next refresh")
        after = known(world.server)
        assert {id: after["uids"][id] for id in before["uids"]} == before["uids"]


# -- swaps under load -------------------------------------------------------------------------------------------------
class Load:
    """
    Connections that search while the directory is replaced, each of them as long as the test lasts.

    :ivar served: the swap whose refresh is over; nobody may be answered from before it.
    :ivar answers: how many came; every one was looked at.
    :ivar wrong: what was wrong with the others.
    """

    def __init__(self, port: int, changing: str) -> None:
        self._port = port
        self._changing = changing
        self._over = threading.Event()
        self._steady_entry: dict[str, tuple[bytes, ...]] = {}
        self._last_state = (-1, 0)
        self.served = 0
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []

    def stop(self) -> None:
        self._over.set()

    def run(self, what: str) -> None:
        """:param what: the name of a method."""
        question: Callable[[Client], None] = getattr(self, f"_{what}")
        try:
            with directory.bound(self._port) as client:
                while not self._over.is_set() and not self.wrong:
                    question(client)
                    self.answers[what] += 1
        except Exception as problem:
            self.wrong.append(f"{what}: {type(problem).__name__}: {problem}")

    def _steady(self, client: Client) -> None:
        """Somebody whom no swap concerns."""
        name = username(1)
        found = client.search(
            f"ou=people,{BASE_DN}", SUB, parse_filter(f"(&(uid={name})(objectclass=posixAccount))"), ["*", "entryUSN"]
        )
        assert found.code == 0, found
        assert len(found.order) == 1, found.order
        [entry] = found.entries.values()
        previous, self._steady_entry = self._steady_entry or entry, entry
        assert entry == previous

    def _changed(self, client: Client) -> None:
        """Whoever is changed by every swap: never an older state after a newer one, or after its refresh."""
        served = self.served
        found = client.search(
            f"uid={self._changing},ou=people,{BASE_DN}", BASE, ("*", "objectClass"), ["sn", "entryUSN"]
        )
        assert found.code == 0, found
        [entry] = found.entries.values()
        state = int(entry["sn"][0].removeprefix(b"Swap")), int(entry["entryUSN"][0])
        assert served <= state[0], f"{state} is answered when {served} is served"
        previous, self._last_state = self._last_state, state
        assert previous[0] <= state[0], f"{state} after {previous}"
        assert previous[1] <= state[1], f"{state} after {previous}"
        assert (previous[0] == state[0]) == (previous[1] == state[1]), f"{state} after {previous}"

    def _pages(self, client: Client) -> None:
        """Everybody, once, however many swaps came between the pages."""
        names: list[str] = []
        for page in client.pages(f"ou=people,{BASE_DN}", SUB, ("=", "objectClass", b"posixAccount"), ["uid"], size=7):
            assert page.code == 0, page
            names += page.order
        assert len(names) == len(set(names)) == USERS, f"{len(names)} entries, {len(set(names))} different ones"

    def _changes(self, client: Client) -> None:
        """sssd's smart refresh of what no swap concerns."""
        rules = client.search(f"ou=sudoers,{BASE_DN}", SUB, ("=", "objectClass", b"sudoRole"), ["entryUSN"])
        assert (rules.code, len(rules.entries)) == (0, RULES), rules
        newest = max(int(entry["entryUSN"][0]) for entry in rules.entries.values())
        again = client.search(
            f"ou=sudoers,{BASE_DN}", SUB, parse_filter(f"(&(objectClass=sudoRole)(entryUSN>={newest + 1}))"), ["cn"]
        )
        assert (again.code, again.order) == (0, []), again


class TestSwaps:
    def test_under_load(self, world: World) -> None:
        """
        Fifty directories after each other, each with one change: no search fails, none has an answer that is neither
        the old nor the new one, and no paged search loses or repeats anybody.
        """
        # nobody may send forms that often
        admins = [wire.Visitor(f"carol{number}", "admin") for number in range(SWAPS // 10)]
        name = username(2)
        world.pocketid.change_user(name, last_name="Swap0")
        assert admins[0].post(world.server.port, "/api/directory/refresh").status == 200
        load = Load(world.port, name)
        usn = directory.metric(world.server.port, "identree_directory_change_number")
        questions = ("steady", "changed", "pages", "changes")
        with ThreadPoolExecutor(len(questions)) as threads:
            asking = [threads.submit(load.run, what) for what in questions]
            try:
                for number in range(1, SWAPS + 1):
                    world.pocketid.change_user(name, last_name=f"Swap{number}")
                    admin = admins[number % len(admins)]
                    assert admin.post(world.server.port, "/api/directory/refresh").status == 200
                    load.served = number
                    with directory.bound(world.port) as client:
                        found = client.search(
                            f"ou=people,{BASE_DN}", SUB, ("=", "sn", f"Swap{number}".encode()), ["uid"]
                        )
                    assert found.entries, f"swap {number} is not served when its refresh is over"
            finally:
                load.stop()
            for each in asking:
                each.result()
        assert not load.wrong, load.wrong
        assert directory.metric(world.server.port, "identree_directory_change_number") >= usn + SWAPS
        assert all(load.answers[what] >= SWAPS / 5 for what in questions), load.answers


class TestWebhook:
    def test_good(self, world: World) -> None:
        """A right signature: 204, and what has changed is served."""
        world.pocketid.add_user("rung")
        assert directory.ring(world.server.port).status == 204
        directory.until(lambda: directory.served(world.port, "uid=rung"), "the person")
        assert directory.metric(world.server.port, 'identree_ldap_refresh_total{trigger="webhook"}') == 1

    def test_bad(self, world: World) -> None:
        """A wrong one: 403, a line in the log, and PocketID is left alone."""
        world.pocketid.requests()
        answer = directory.ring(world.server.port, "another-secret-0123456789abcdef01")
        assert answer.status == 403
        missing = wire.ask(
            world.server.port, "POST", "/api/webhook/pocketid", {"Content-Type": "application/json"}, b"{}"
        )
        assert missing.status == 403
        directory.until(lambda: world.server.log.count("webhook signature mismatch") == 2, "the log")
        # a right one after them: the only refresh
        directory.refresh(world.server.port)
        trigger = 'identree_ldap_refresh_total{trigger="webhook"}'
        directory.until(lambda: directory.metric(world.server.port, trigger) >= 1, "the refresh")
        assert sum("page]=1&" in f"{one}&" and "/users?" in one for one in world.pocketid.requests()) == 1

    def test_burst(self, world: World) -> None:
        """Many in a row make one refresh, after the last of them."""
        refreshed = "identree_directory_refresh_duration_seconds_count"
        before = directory.metric(world.server.port, refreshed)
        for number in range(20):
            world.pocketid.add_user(f"burst{number}")
            directory.refresh(world.server.port)
        directory.until(lambda: directory.served(world.port, "uid=burst19"), "the last of them")
        assert directory.metric(world.server.port, refreshed) == before + 1


class TestIds:
    ALICE, BOB, TEAM = "a-lice", "b-ob", "t-eam"

    def test_imported_once_and_exported(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """
        ``uidmap.json`` gives the numbers the first time, and is written byte by byte as it always was; after that the
        database counts, whatever the file says.
        """
        port, file = free_port(), tmp_path / "uidmap.json"
        old = {"uids": {self.ALICE: 1234567}, "gids": {self.ALICE: 7654321, self.TEAM: 700}, "nextUID": 2000000}
        file.touch(0o600)
        file.write_text(json.dumps(old))
        with PocketIdServer() as pocketid:
            pocketid.add_user("alice", id=self.ALICE)
            pocketid.add_user("bob", id=self.BOB)
            pocketid.add_group("team", id=self.TEAM, members=["alice"])
            with Server(tmp_path, {**oidc, **directory.settings(tmp_path, pocketid, port)}) as server:
                directory.until(lambda: directory.served(port, "uid=bob"), "the directory")
                entries = directory.everything(port)
                alice, bob = (entries[f"uid={name},ou=people,{BASE_DN}"] for name in ("alice", "bob"))
                assert (alice["uidNumber"], alice["gidNumber"]) == ((b"1234567",), (b"7654321",))
                assert bob["uidNumber"] == (b"2000000",)
                assert entries[f"cn=team,ou=groups,{BASE_DN}"]["gidNumber"] == (b"700",)
                # nextGID was missing, so that counting went on above what the file had
                written = (
                    '{\n  "uids": {\n    "a-lice": 1234567,\n    "b-ob": 2000000\n  },\n'
                    '  "gids": {\n    "a-lice": 7654321,\n    "b-ob": 7654322,\n    "t-eam": 700\n  },\n'
                    '  "nextUID": 2000001,\n  "nextGID": 7654323\n}'
                )
                directory.until(lambda: file.read_text() == written, f"the export, not {file.read_text()}")
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                server.stop()
                file.write_text(written.replace("1234567", "1234568"))
                server.start()
                directory.until(lambda: directory.served(port, "uid=bob"), "the directory")
                assert directory.everything(port) == entries
                assert "contradicts the database" in server.log
                directory.until(lambda: file.read_text() == written, "the export to be repaired")
                assert (tmp_path / "uidmap.json.contradicts-database").exists()

    def test_unusable(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A file that cannot be understood stops the start: without it people would get new numbers."""
        file = tmp_path / "uidmap.json"
        file.touch(0o600)
        file.write_text('{"uids": {"a": 1')
        with PocketIdServer() as pocketid:
            status, said = Server(tmp_path, {**oidc, **directory.settings(tmp_path, pocketid, free_port())}).fails()
        assert status != 0
        assert "uidmap.json" in said
        assert "restore it from a backup" in said


class TestBusyPort:
    def test_web_runs(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A taken LDAP port stops nobody's sudo: the server runs, health and log say what is wrong and what to do."""
        with socket.socket() as taken, PocketIdServer(USERS) as pocketid:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with Server(tmp_path, {**oidc, **directory.settings(tmp_path, pocketid, port)}) as server:
                directory.until(lambda: "IDENTREE_LDAP_LISTEN_ADDR" in server.log, "the log")
                assert f"cannot listen on 127.0.0.1:{port}" in server.log
                directory.until(lambda: checks(server, ldap_sync="ok"), "the directory")
                assert checks(server, ldap_server="not_started")
                assert health(server)[:2] == (503, "unhealthy")
                assert wire.create(server.port, username(1)).status == 201
                assert server.stop() is not None


# -- bridge mode ------------------------------------------------------------------------------------------------------
class TestBridge:
    def test_rules(self, tmp_path: Path, oidc: dict[str, str]) -> None:
        """A file edited by hand, one that became nonsense, and the endpoint: what is right is served, soon."""
        port, file = free_port(), tmp_path / "sudorules.json"
        admin = wire.Visitor("carol", "admin")

        def save(text: str) -> None:
            new = file.with_suffix(".new")
            new.touch(0o600)
            new.write_text(text)
            new.rename(file)

        save(json.dumps([{"group": "ops", "commands": "/usr/bin/apt"}]))
        with Server(tmp_path, {**oidc, **directory.settings(tmp_path, None, port)}) as server:
            directory.until(lambda: directory.served(port, "cn=ops", "sudoers"), "the rules")
            assert health(server)[:2] == (200, "ok")
            assert "pocketid" not in health(server)[2]
            save(json.dumps([{"group": "ops", "commands": "/usr/bin/apt"}, {"group": "web", "commands": "/bin/w"}]))
            directory.until(lambda: directory.served(port, "cn=web", "sudoers"), "the edit", 3 * FOLLOW_SECONDS)
            before = directory.everything(port)
            save("[{")
            directory.until(lambda: server.log.count("sudorules.json") >= 1, "the log", 3 * FOLLOW_SECONDS)
            assert directory.everything(port) == before
            refused = admin.post(server.port, "/api/sudo-rules/add", group="dba", commands="/usr/bin/psql")
            assert refused.status == 503, "over nonsense nothing is saved"
            save(json.dumps([{"group": "ops", "commands": "/usr/bin/apt"}]))
            directory.until(
                lambda: not directory.served(port, "cn=web", "sudoers"), "the repaired file", 3 * FOLLOW_SECONDS
            )
            added = admin.post(server.port, "/api/sudo-rules/add", group="dba", commands="/usr/bin/psql", hosts="db1")
            assert added.status in (200, 303), added
            entry = directory.everything(port)[f"cn=dba,ou=sudoers,{BASE_DN}"]
            assert entry["sudoUser"] == (b"%dba",)
            assert entry["sudoHost"] == (b"db1",)
            negated = admin.post(server.port, "/api/sudo-rules/add", group="bad", commands="ALL, !/bin/su")
            assert negated.status == 400
            assert "commands" in negated.json["fields"]
            assert wire.Visitor("dave").post(server.port, "/api/sudo-rules/delete", group="dba").status == 403
            assert directory.served(port, "cn=dba", "sudoers")


# -- commands ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Secure:
    """:ivar ldaps: the port."""

    server: SecureServer
    ca: CA
    ldaps: int


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, oidc: dict[str, str]) -> Iterator[Secure]:
    """With LDAPS; its plain listener too."""
    place, port, ldaps = tmp_path_factory.mktemp("secure"), free_port(), free_port()
    ca = CA(tmp_path_factory.mktemp("ca"))
    with PocketIdServer(USERS, GROUPS, RULES) as pocketid:
        server = SecureServer(
            place,
            {
                **oidc,
                **directory.settings(place, pocketid, port),
                **ca.settings(),
                "IDENTREE_LDAP_TLS_LISTEN_ADDR": f"127.0.0.1:{ldaps}",
                "IDENTREE_LDAP_PROVISION_ENABLED": "true",
                "IDENTREE_MTLS_STRICT_PROVISION": "true",
            },
        )
        # what the commands connect to
        certificate, key = ca.issue("localhost")
        server.settings["IDENTREE_TLS_CERT_FILE"] = str(certificate)
        server.settings["IDENTREE_TLS_KEY_FILE"] = str(key)
        server.settings["IDENTREE_EXTERNAL_URL"] = f"https://127.0.0.1:{server.port}"
        with server:
            directory.until(lambda: directory.served(port, f"uid={username(1)}"), "the directory")
            yield Secure(server, ca, ldaps)


class TestCommands:
    def run(self, server: Server, *words: str) -> Told:
        done = subprocess.run(
            [PROGRAMS / "identree", *words],
            check=False,
            cwd=server.directory,
            env=server.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        return Told(done.returncode, done.stdout.decode(), done.stderr.decode())

    def test_check(self, secure: Secure) -> None:
        """On the server itself no word is needed: everything is asked, and all is well."""
        told = self.run(secure.server, "directory", "check")
        assert told.status == 0, told
        assert told.output.endswith("all well\n")
        assert "FAIL" not in told.output
        assert re.search(rf"enumerate people, paged +{USERS} entries", told.output), told.output
        assert re.search(rf"person {username(0)} by name +1 entries", told.output), told.output
        assert "sudo rules, full refresh" in told.output

    def test_check_of_one(self, secure: Secure) -> None:
        """A person, a group and a host of the asker's choice; somebody who is not there is a failure."""
        words = ("directory", "check", "--group", "group0000", "--host", "web1", "--user")
        told = self.run(secure.server, *words, username(5))
        assert told.status == 0, told
        assert f"person {username(5)} by name" in told.output
        assert "group group0000 by name" in told.output
        told = self.run(secure.server, *words, "nosuch")
        assert told.status == 1, told
        assert "FAIL" in told.output
        assert "sssd needs exactly 1" in told.output

    def test_check_wrong_password(self, secure: Secure) -> None:
        """Which is not in the answer."""
        file = secure.server.directory / "wrong"
        file.write_text("not-the-password\n")
        told = self.run(secure.server, "directory", "check", "--password-file", str(file))
        assert told.status == 1, told
        assert f"bind as {BIND_DN}: invalidCredentials (49)" in told.output
        assert "not-the-password" not in told.output + told.errors

    def test_check_closed_port(self, secure: Secure) -> None:
        told = self.run(secure.server, "directory", "check", "--url", f"ldap://127.0.0.1:{free_port()}")
        assert told.status == 1, told
        assert "does not answer" in told.output
        assert "Traceback" not in told.errors

    def test_check_ldaps(self, secure: Secure) -> None:
        """With a client certificate all is well; without one it says that there is no way in, and where to look."""
        url = f"ldaps://localhost:{secure.ldaps}"
        words = ("directory", "check", "--url", url, "--ca", str(secure.ca.certificate))
        certificate, key = secure.ca.issue(FULL_NAME, "clientAuth")
        told = self.run(secure.server, *words, "--cert", str(certificate), "--key", str(key))
        assert told.status == 0, told
        assert told.output.endswith("all well\n")
        refused = self.run(secure.server, *words)
        assert refused.status == 1, refused
        assert "FAIL" in refused.output
        untrusted = self.run(secure.server, "directory", "check", "--url", url)
        assert untrusted.status == 1, untrusted
        assert "no TLS" in untrusted.output
        assert "--ca" in untrusted.output
        for each in (refused, untrusted):
            assert "Traceback" not in each.errors, each

    def test_check_starttls(self, secure: Secure) -> None:
        port = secure.server.settings["IDENTREE_LDAP_LISTEN_ADDR"].rpartition(":")[2]
        certificate, key = secure.ca.issue(FULL_NAME, "clientAuth")
        told = self.run(
            secure.server,
            *("directory", "check", "--url", f"ldap://localhost:{port}", "--starttls"),
            *("--ca", str(secure.ca.certificate), "--cert", str(certificate), "--key", str(key)),
        )
        assert told.status == 0, told

    def test_check_unreadable(self, secure: Secure) -> None:
        """A password file that is not there is a mistake in the command's words."""
        told = self.run(secure.server, "directory", "check", "--password-file", "/nowhere/password")
        assert told.status == 2, told
        assert "/nowhere/password cannot be read" in told.errors

    def test_show(self, secure: Secure) -> None:
        """A person and a group, from the database beside the running server; nobody else."""
        person = self.run(secure.server, "directory", "show", username(3))
        assert person.status == 0, person
        uids = known(secure.server)["uids"]
        assert any(f"{number}" in person.output for number in uids.values())
        assert username(3) in person.output
        group = self.run(secure.server, "directory", "show", "group0000")
        assert group.status == 0, group
        assert "/usr/bin/systemctl restart app0" in group.output
        nobody = self.run(secure.server, "directory", "show", "nosuch")
        assert (nobody.status, nobody.errors) == (1, ""), nobody
        assert "nothing in the directory is called 'nosuch'" in nobody.output

    def test_certificates_reset(self, secure: Secure) -> None:
        """
        Strict provisioning gives a second certificate for the shared secret only after the reset; of a host without
        any there is nothing to reset.
        """
        headers = {"X-Shared-Secret": SHARED_SECRET, "X-Hostname": FULL_NAME}

        def provision() -> int:
            return secure.server.ask("GET", "/api/client/provision", headers).status

        assert provision() == 200
        assert provision() == 403
        told = self.run(secure.server, "certificates", "reset", FULL_NAME)
        assert told.status == 0, told
        assert FULL_NAME in told.output
        assert provision() == 200
        unknown = self.run(secure.server, "certificates", "reset", "nosuch.example.com")
        assert unknown.status == 1, unknown
        assert "no certificate is on record" in unknown.errors
        nonsense = self.run(secure.server, "certificates", "reset", "no such host")
        assert nonsense.status == 2, nonsense
