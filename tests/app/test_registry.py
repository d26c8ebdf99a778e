"""The host registry as it works: read, followed, changed, exported; and what a host does with its token."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app import registry as module
from identree.app.registry import (
    ATTEMPTS_SECONDS,
    LONGEST_LIFE,
    MOST_FROM_ALL,
    MOST_FROM_ONE,
    POLL_SECONDS,
    SHORTEST_LIFE,
    By,
    Enrolments,
    LiveRegistry,
    Registrar,
    RegistryFile,
)
from identree.app.statefiles import BadStateFile
from identree.core.errors import Invalid, StorageUnavailable, Throttled
from identree.core.hosts import (
    TOKEN_PREFIX,
    BadToken,
    FirstHost,
    HostExists,
    OtherHost,
    RegistryOff,
    UnknownHost,
    digest_of,
)
from identree.core.limits import FailureThrottle
from tests.app.provisioning import inline
from tests.app.world import World, now_result
from tests.fakes import MemoryLog, memory_store

ADA = By(name="ada", reason="a test")
OLD = "s" * 64
ADDRESS = "192.0.2.7"


def old_file(*names: str, secret: str = OLD) -> bytes:
    return json.dumps({name: {"secret": secret, "users": ["*"]} for name in names}).encode()


class RegistryCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "hosts.json"
        self.world = World()
        self.store = self.world.store
        self.changes = 0

    def put(self, content: bytes) -> None:
        self.path.touch(0o600)
        self.path.write_bytes(content)

    def registry(self, mode: str = "auto", *, load: bool = True, **options: Any) -> LiveRegistry:
        async def changed() -> None:
            self.changes += 1

        registry = LiveRegistry(
            **{
                "store": self.store,
                "mode": mode,
                "file": RegistryFile(str(self.path)),
                "clock": self.world.clock,
                "in_thread": inline,
                "changed": changed,
                **options,
            }
        )
        if load:
            now_result(registry.load())
        return registry

    def registrar(self, registry: LiveRegistry, **options: Any) -> Registrar:
        values: dict[str, Any] = {
            "store": self.store,
            "registry": registry,
            "now": self.world.now,
            "token": self.world.token,
        }
        return Registrar(**{**values, **options})

    def add(self, registry: LiveRegistry, *names: str) -> list[str]:
        registrar = self.registrar(registry)
        return [now_result(registrar.add(name, None, "", ADA, first=True))[1] for name in names]

    def exported(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.path.read_bytes())
        return document


class ModeTests(RegistryCase):
    def test_before_it_is_loaded(self) -> None:
        """It lets nobody in, unless it is switched off."""
        self.assertEqual([self.registry(mode, load=False)().enabled for mode in ("auto", "on", "off")], [1, 1, 0])

    def test_unused(self) -> None:
        """With no host ever registered, only ``on`` enables it."""
        self.assertEqual([self.registry(mode)().enabled for mode in ("auto", "on", "off")], [False, True, False])

    def test_used(self) -> None:
        """With a host, only ``off`` disables it; the host is kept then, too."""
        registry = self.registry()
        self.add(registry, "web01")
        self.assertTrue(registry().enabled)
        self.assertTrue(self.registry("on")().lists("web01", "alice"))
        off = self.registry("off")
        self.assertEqual((off().enabled, off.stored.names), (False, ("web01",)))

    def test_emptied(self) -> None:
        """When the last host is removed it stays closed, over a restart too: nobody is let in by a removal."""
        registry = self.registry()
        self.add(registry, "web01")
        now_result(self.registrar(registry).remove("web01", ADA))
        for one in (registry, self.registry()):
            self.assertEqual((one().enabled, one().names), (True, ()))


class ImportTests(RegistryCase):
    def test_taken_over(self) -> None:
        """The file of an earlier version is taken over: its hosts keep their secrets, users and groups."""
        document = {"Web01.": {"secret": OLD, "users": ["bob"], "group": "g", "registered_at": "2026-04-17T20:55:14Z"}}
        self.put(json.dumps(document).encode())
        registry = self.registry()
        self.assertEqual((registry().enabled, registry.taken_over), (True, 1))
        self.assertTrue(registry().matches("web01", OLD.encode()))
        self.assertTrue(registry().lists("web01", "bob"))
        self.assertFalse(registry().lists("web01", "alice"))
        self.assertEqual(registry().group("web01"), "g")
        self.assertEqual(registry.stored.entries[0].registered_at.isoformat(), "2026-04-17T20:55:14+00:00")  # type: ignore[union-attr]

    def test_once(self) -> None:
        """What the file says later does nothing; an operator is told."""
        self.put(old_file("web01"))
        self.registry()
        self.put(old_file("web01", "intruder"))
        self.assertEqual(self.registry()().names, ("web01",))

    def test_untouched(self) -> None:
        """Until the first change the file stays as it was, so that one can go back."""
        self.put(old_file("web01"))
        self.registry()
        self.registry()
        self.assertEqual(self.path.read_bytes(), old_file("web01"))

    def test_bad_file(self) -> None:
        """A file that cannot be used stops the start; it never counts as empty."""
        for content in (b"{nonsense", b'{"web": {}}'):
            self.put(content)
            problem = self.failureResultOf(Deferred.fromCoroutine(self.registry(load=False).load()), BadStateFile)
            self.assertIn("hosts.json", problem.getErrorMessage())
        self.put(old_file("web01"))
        self.path.chmod(0o666)
        self.failureResultOf(Deferred.fromCoroutine(self.registry(load=False).load()), BadStateFile)
        self.assertEqual(now_result(self.store.registry_look()).imported, False)

    def test_bad_file_beside_a_registry(self) -> None:
        """Where a registry is in force the file opens nothing: the server starts, and leaves the file alone."""
        self.add(self.registry(), "web01")
        self.put(b"{nonsense")
        registry = self.registry()
        self.assertEqual(registry().names, ("web01",))
        self.add(registry, "web02")
        self.assertEqual(self.path.read_bytes(), b"{nonsense")

    def test_bad_export(self) -> None:
        """Once the database has the registry, a damaged file stops nothing, and is replaced with the next change."""
        registry = self.registry()
        self.add(registry, "web01")
        self.put(b"{nonsense")
        self.put(old_file())  # no export, so there is something to take over
        now_result(registry.refresh())
        self.put(b"{nonsense")
        again = self.registry()
        self.assertEqual(again().names, ("web01",))
        self.add(again, "web02")
        self.assertEqual(list(self.exported()), ["web01", "web02"])

    def test_appears_later(self) -> None:
        """A file that comes while we run is taken over as well, and nothing is lost that was registered before."""
        registry = self.registry()
        self.add(registry, "web01")
        self.path.unlink()
        self.put(old_file("web01", "web02", secret="x" * 64))
        now_result(registry.refresh())
        self.assertEqual(registry().names, ("web01", "web02"))
        self.assertFalse(registry().matches("web01", b"x" * 64))

    def test_bad_file_appears_later(self) -> None:
        """It is told, and it is not overwritten by a change."""
        registry = self.registry()
        self.put(b"{nonsense")
        now_result(registry.refresh())
        self.add(registry, "web01")
        self.assertEqual(self.path.read_bytes(), b"{nonsense")
        self.assertIn("hosts.json", registry.file_trouble)

    def test_removed_hosts_stay_removed(self) -> None:
        """An export that is older than the registry brings nobody back."""
        registry = self.registry()
        self.add(registry, "web01", "web02")
        before = self.path.read_bytes()
        now_result(self.registrar(registry).remove("web01", ADA))
        self.put(before)
        self.assertEqual(self.registry()().names, ("web02",))
        self.assertEqual(list(self.exported()), ["web02"])

    def test_export_into_a_new_database(self) -> None:
        """It puts the registry back, with secrets that work."""
        [secret] = self.add(self.registry(), "web01")
        self.store = memory_store()
        registry = self.registry()
        self.assertTrue(registry().matches("web01", secret.encode()))

    def test_empty_file(self) -> None:
        """``{}`` is a registry that was never used."""
        self.put(b"{}")
        self.assertFalse(self.registry()().enabled)


class ExportTests(RegistryCase):
    def test_written(self) -> None:
        """After each change the file has what is registered, for its owner only, and no secret."""
        registry = self.registry()
        [secret] = self.add(registry, "web01")
        self.assertEqual(list(self.exported()), ["web01"])
        self.assertNotIn(secret, self.path.read_text())
        self.assertEqual(self.exported()["web01"]["secret_sha256"], digest_of(secret).hex())
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual((self.directory / "hosts.json.lock").stat().st_mode & 0o777, 0o600)
        now_result(self.registrar(registry).remove("web01", ADA))
        self.assertEqual(self.exported(), {})
        self.assertEqual(sorted(os.listdir(self.directory)), ["hosts.json", "hosts.json.lock"])

    def test_unwritable(self) -> None:
        """A change is made although the file cannot be written; that is known, and made up for."""
        registry = self.registry()
        self.path.mkdir()
        [secret] = self.add(registry, "web01")
        self.assertTrue(registry().matches("web01", secret.encode()))
        self.assertNotEqual(registry.file_trouble, "")
        self.path.rmdir()
        self.assertEqual(self.registry().file_trouble, "")
        self.assertEqual(list(self.exported()), ["web01"])

    def test_symlinks(self) -> None:
        """Neither file nor lock is written through a link."""
        target = self.directory / "target"
        target.write_text("precious")
        self.add(self.registry(), "web01")
        for name in ("hosts.json", "hosts.json.lock"):
            (self.directory / name).unlink()
            (self.directory / name).symlink_to(target)
            self.add(self.registry(), f"{name}-host")
        self.assertEqual(target.read_text(), "precious")

    def test_lock_made_by_root(self) -> None:
        """A command that root gives makes a lock that the server can open; one that is there is left alone."""
        if os.geteuid() != 0:
            self.skipTest("only root can give files away")
        lock = self.directory / "hosts.json.lock"
        os.chown(self.directory, 4321, 4322)
        self.add(self.registry(), "web01")
        self.assertEqual((lock.stat().st_uid, lock.stat().st_gid, lock.stat().st_mode & 0o777), (4321, 4322, 0o600))
        os.chown(lock, 0, 0)
        self.add(self.registry(), "web02")
        self.assertEqual((lock.stat().st_uid, sorted(self.exported())), (0, ["web01", "web02"]))

    def test_locked(self) -> None:
        """Who cannot get the lock leaves the file to who has it."""
        self.patch(module, "LOCK_SECONDS", 0.0)
        registry = self.registry()
        with (self.directory / "hosts.json.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.add(registry, "web01")
            self.assertFalse(self.path.exists())
        self.assertNotEqual(registry.file_trouble, "")
        self.add(registry, "web02")
        self.assertEqual((list(self.exported()), registry.file_trouble), (["web01", "web02"], ""))


class FollowTests(RegistryCase):
    """Two processes on one database."""

    def setUp(self) -> None:
        super().setUp()
        self.dsn = str(self.directory / "a.db")
        self.log = MemoryLog()
        self.store = memory_store(self.world.clock, dsn=self.dsn, log=self.log)
        self.addCleanup(lambda: now_result(self.store.stop()))
        self.other = memory_store(self.world.clock, dsn=self.dsn)
        self.addCleanup(lambda: now_result(self.other.stop()))

    def started(self, **options: Any) -> LiveRegistry:
        registry = self.registry(**options)
        registry.startService()
        self.addCleanup(registry.stopService)
        return registry

    def elsewhere(self) -> tuple[LiveRegistry, Registrar]:
        """Another program, without an audit log."""
        registry = self.registry(store=self.other, takes_events=False, changed=module.nobody_minds)
        return registry, self.registrar(registry, store=self.other, outside=True)

    def kinds(self) -> list[str]:
        return [json.loads(record.plain)["event"] for record in self.log.records]

    def test_polls(self) -> None:
        """A host that another process registers is let in within the time of one look; and its event is recorded."""
        registry = self.started()
        _, registrar = self.elsewhere()
        _, secret = now_result(registrar.add("web01", None, "", ADA, first=True))
        self.assertFalse(registry().enabled)
        self.world.clock.advance(POLL_SECONDS)
        self.assertTrue(registry().matches("web01", secret.encode()))
        self.assertEqual(self.kinds(), ["host_registered"])

    def test_removed_elsewhere(self) -> None:
        """A host that another process removes is refused, and so is an old secret."""
        registry = self.started()
        secrets = self.add(registry, "web01", "web02")
        _, registrar = self.elsewhere()
        now_result(registrar.remove("web01", ADA))
        now_result(registrar.rotate("web02", ADA))
        self.world.clock.advance(POLL_SECONDS)
        self.assertEqual(registry().names, ("web02",))
        self.assertEqual([registry().any_host(secret.encode()) for secret in secrets], [None, None])
        self.assertEqual(self.kinds()[2:], ["host_removed", "host_secret_rotated"])

    def test_woken(self) -> None:
        """Where the database says so, it is read at once."""
        registry = self.started()
        _, registrar = self.elsewhere()
        now_result(registrar.add("web01", None, "", ADA, first=True))
        # what the other replica's bus delivers
        self.store._bus.deliver([module.Live(event="registry_changed", username="")])
        self.assertEqual(registry().names, ("web01",))

    def test_own_changes(self) -> None:
        """They count when the call returns."""
        registry = self.registry()
        [secret] = self.add(registry, "web01")
        self.assertTrue(registry().matches("web01", secret.encode()))

    def test_nothing_new(self) -> None:
        """The value stays the same object while nothing changes, since others compare it; a change is told once."""
        registry = self.started()
        self.add(registry, "web01")
        value, changes = registry(), self.changes
        self.world.clock.pump([POLL_SECONDS] * 3)
        self.assertIs(registry(), value)
        self.assertEqual(self.changes, changes)

    def test_many(self) -> None:
        """More hosts than one page, in any order."""
        self.patch(module, "PAGE", 3)
        registry = self.registry()
        names = [f"web{n:02}" for n in range(10)]
        self.add(registry, *reversed(names))
        self.assertEqual(registry().names, tuple(names))
        self.assertEqual(self.registry()().names, tuple(names))

    def test_changes_while_it_is_read(self) -> None:
        """It is read again then: pages of two states are never mixed."""
        self.patch(module, "PAGE", 1)
        registry = self.registry()
        self.add(registry, "a", "b", "c")
        page, store = self.store.registry_page, self.store

        async def disturbed(after: str = "", limit: int = 500) -> Any:
            found = await page(after, limit)
            if after == "a" and remaining:
                remaining.clear()
                # the last page is another one than the first one has said
                await store.unregister_host("a", module.HostRemoved(at=self.world.now(), username="ada"))
            return found

        remaining = [1]
        self.patch(self.store, "registry_page", disturbed)
        fresh = self.registry()
        self.assertEqual(fresh().names, ("b", "c"))

    def test_read_at_once(self) -> None:
        """Of two who read at the same time, the one that began first does not put back what the other has seen."""
        registry = self.registry()
        self.add(registry, "a")
        page, held = self.store.registry_page, [Deferred[None]()]
        waiting = held[0]

        async def slow(after: str = "", limit: int = 500) -> Any:
            found = await page(after, limit)
            if held:
                await held.pop()
            return found

        self.patch(self.store, "registry_page", slow)
        remote = self.elsewhere()[1]
        now_result(remote.add("b", None, "", ADA))
        first = Deferred.fromCoroutine(registry.refresh())
        self.assertNoResult(first)
        now_result(remote.add("c", None, "", ADA))
        self.assertIs(now_result(registry.refresh()), True)
        waiting.callback(None)
        self.assertIs(self.successResultOf(first), False)
        self.assertEqual(registry().names, ("a", "b", "c"))

    def test_database_away(self) -> None:
        """What counted goes on counting, and the next look finds what has changed."""
        registry = self.started()
        self.add(registry, "web01")
        look = self.store.registry_look

        async def away() -> Any:
            raise StorageUnavailable("unreachable")

        self.store.registry_look = away  # type: ignore[method-assign]
        self.world.clock.pump([POLL_SECONDS] * 2)
        self.assertEqual(registry().names, ("web01",))
        self.store.registry_look = look  # type: ignore[method-assign]
        now_result(self.elsewhere()[1].remove("web01", ADA))
        self.world.clock.advance(POLL_SECONDS)
        self.assertEqual(registry().names, ())

    def test_events_wait_for_the_log(self) -> None:
        """While nothing can be recorded, the registry is followed all the same, and the events wait."""
        registry = self.started()
        now_result(self.elsewhere()[1].add("web01", None, "", ADA, first=True))
        take = self.store.take_outside_events

        async def full(limit: int = 100) -> int:
            raise StorageUnavailable("full")

        self.store.take_outside_events = full  # type: ignore[method-assign]
        self.world.clock.advance(POLL_SECONDS)
        self.assertEqual((registry().names, self.kinds()), (("web01",), []))
        self.store.take_outside_events = take  # type: ignore[method-assign]
        self.world.clock.advance(POLL_SECONDS)
        self.assertEqual(self.kinds(), ["host_registered"])

    def test_stops(self) -> None:
        """Nothing is left on the clock."""
        registry = self.registry()
        registry.startService()
        self.world.clock.advance(POLL_SECONDS)
        registry.stopService()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


class RegistrarTests(RegistryCase):
    def setUp(self) -> None:
        super().setUp()
        self.live = self.registry()
        self.desk = self.registrar(self.live)

    def last(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.store.log.records[-1].plain)
        return document

    def test_add(self) -> None:
        """64 hex digits, which are nowhere in the database; and an audit record."""
        entry, secret = now_result(self.desk.add("Web01.", ["alice", "bob"], "g", ADA, first=True))
        self.assertRegex(secret, r"\A[0-9a-f]{64}\Z")
        self.assertEqual((entry.name, entry.users, entry.group), ("web01", {"alice", "bob"}, "g"))
        dump = "\n".join(self.store.connection.iterdump())
        self.assertNotIn(secret, dump)
        self.assertIn(digest_of(secret).hex(), dump)
        said = [self.last()[key] for key in ("event", "username", "actor", "hostname", "reason")]
        self.assertEqual(said, ["host_registered", "ada", "ada", "web01", "a test"])

    def test_first(self) -> None:
        """In auto the first one must be wanted; where it decides nothing about others, it need not."""
        self.failureResultOf(Deferred.fromCoroutine(self.desk.add("web01", None, "", ADA)), FirstHost)
        for mode in ("on", "off"):
            self.store = memory_store()
            now_result(self.registrar(self.registry(mode)).add("web01", None, "", ADA))
            self.path.unlink()

    def test_refused(self) -> None:
        """Reserved names, bad users, bad groups, hosts that are there."""
        for name, users, group in (("mail", None, ""), ("web01", ["a b"], ""), ("web01", None, "a b"), ("1", None, "")):
            self.failureResultOf(Deferred.fromCoroutine(self.desk.add(name, users, group, ADA, first=True)), Invalid)
        self.add(self.live, "web01")
        self.failureResultOf(Deferred.fromCoroutine(self.desk.add("WEB01", None, "", ADA)), HostExists)
        self.assertEqual(self.live().names, ("web01",))

    def test_remove(self) -> None:
        """However it is spelled."""
        self.add(self.live, "web01")
        self.assertEqual(now_result(self.desk.remove("WEB01.", ADA)), "web01")
        self.assertEqual((self.last()["event"], self.live().names), ("host_removed", ()))
        self.failureResultOf(Deferred.fromCoroutine(self.desk.remove("web01", ADA)), UnknownHost)

    def test_rotate(self) -> None:
        """The new secret counts and the old one does not."""
        [old] = self.add(self.live, "web01")
        name, new = now_result(self.desk.rotate("WEB01", ADA))
        self.assertEqual(name, "web01")
        self.assertEqual([self.live().matches("web01", one.encode()) for one in (old, new)], [False, True])
        self.assertEqual(self.last()["event"], "host_secret_rotated")

    def test_change(self) -> None:
        """Who may ask, and the group."""
        self.add(self.live, "web01")
        now_result(self.desk.change("web01", ["bob"], "g", ADA))
        self.assertEqual(self.live().lists("web01", "alice"), False)
        self.assertEqual(self.live().group("web01"), "g")
        self.assertEqual(self.last()["reason"], "users bob; group g")
        now_result(self.desk.change("web01", None, "", ADA))
        self.assertEqual((self.live().lists("web01", "bob"), self.live().group("web01")), (True, ""))
        self.assertEqual(self.last()["reason"], "group none")

    def test_token(self) -> None:
        """Told from a secret by its look; kept as a digest; its record says how long it is good."""
        token, text = now_result(self.desk.enrolment_token("Web01", ADA, first=True))
        self.assertRegex(text, r"\Aidentree-enrol-[0-9a-f]{64}\Z")
        self.assertNotIn(text, "\n".join(self.store.connection.iterdump()))
        self.assertEqual(token.expires_at - token.created_at, timedelta(hours=1))
        self.assertEqual(
            (self.last()["event"], self.last()["reason"]), ("enrolment_token_created", "until 2026-01-02T04:04:05Z")
        )
        self.assertFalse(self.live().enabled)

    def test_refused_tokens(self) -> None:
        """Too short or too long a life, a reserved name, a host that is registered, a first host."""
        for life in (SHORTEST_LIFE - timedelta(seconds=1), LONGEST_LIFE + timedelta(seconds=1), timedelta(-1)):
            wanted = self.desk.enrolment_token("web01", ADA, life=life, first=True)
            self.failureResultOf(Deferred.fromCoroutine(wanted), Invalid)
        self.failureResultOf(Deferred.fromCoroutine(self.desk.enrolment_token("vpn", ADA, first=True)), Invalid)
        self.failureResultOf(Deferred.fromCoroutine(self.desk.enrolment_token("web01", ADA)), FirstHost)
        self.add(self.live, "web01")
        self.failureResultOf(Deferred.fromCoroutine(self.desk.enrolment_token("web01", ADA)), HostExists)
        now_result(self.desk.enrolment_token("web01", ADA, again=True))

    def test_token_while_off(self) -> None:
        """A secret that is not accepted is given to nobody."""
        desk = self.registrar(self.registry("off"))
        self.failureResultOf(Deferred.fromCoroutine(desk.enrolment_token("web01", ADA, first=True)), RegistryOff)

    def test_outside(self) -> None:
        """A program without an audit log leaves its event to a server."""
        now_result(self.registrar(self.live, outside=True).add("web01", None, "", ADA, first=True))
        self.assertEqual(self.store.events, ["host_registered"])  # this process is a server, and has looked already


class EnrolmentTests(RegistryCase):
    def setUp(self) -> None:
        super().setUp()
        self.live = self.registry()
        self.throttle = FailureThrottle()
        self.enrolments = self.made(self.live)

    def made(self, live: LiveRegistry) -> Enrolments:
        return Enrolments(
            store=self.store,
            registry=live,
            hosts=self.world.hosts,
            throttle=self.throttle,
            now=self.world.now,
            monotonic=self.world.clock.seconds,
            token=self.world.token,
            journal=self.world.journal,
            metrics=self.world.metrics,
        )

    def token(self, hostname: str = "web01", **options: Any) -> str:
        made = self.registrar(self.live).enrolment_token(hostname, ADA, first=True, **options)
        return now_result(made)[1]

    def redeem(self, token: str, hostname: str = "web01") -> str:
        return now_result(self.enrolments.redeem(token, hostname, ADDRESS)).secret

    def refused(self, kind: type[Exception], token: str, hostname: str = "web01", *, address: str = ADDRESS) -> None:
        redeemed = self.enrolments.redeem(token, hostname, address)
        self.failureResultOf(Deferred.fromCoroutine(redeemed), kind)

    def test_enrolled(self) -> None:
        """The host's own secret works at once, and the registry is in force."""
        secret = self.redeem(self.token(), "WEB01.")
        self.assertTrue(self.live().matches("web01", secret.encode()))
        self.assertTrue(self.live().lists("web01", "alice"))
        self.assertEqual(self.store.events, ["enrolment_token_created", "host_enrolled"])
        self.assertEqual(
            self.world.log[-1],
            ("HOST_ENROLLED", {"host": "web01", "again": False, "token_by": "ada", "remote_addr": ADDRESS}),
        )

    def test_once(self) -> None:
        """The second time is refused, recorded, and counted against the address."""
        token = self.token()
        self.redeem(token)
        self.refused(BadToken, token)
        now_result(self.world.trail.summarise(timedelta(0)))
        record = json.loads(self.store.log.records[-1].plain)
        self.assertEqual(record["event"], "authentication_failed")
        self.assertEqual(record["reason"], "enrolment token used: POST /api/enrol")
        self.assertEqual((record["hostname"], record["remote_addr"]), ("web01", ADDRESS))
        self.assertEqual(self.world.sample("identree_auth_failures_total"), 1)

    def test_no_token_in_records(self) -> None:
        """Neither token nor secret gets into the audit trail or the log."""
        token = self.token()
        secret = self.redeem(token)
        self.refused(BadToken, token)
        said = repr(self.world.log) + repr([record.plain for record in self.store.log.records])
        for text in (token, token.removeprefix(TOKEN_PREFIX), secret):
            self.assertNotIn(text, said)

    def test_strange_tokens(self) -> None:
        """What has not the form of a token is not even looked up."""
        self.store.redeem_enrolment_token = None  # type: ignore[assignment, method-assign]
        for token in ("x", "a" * 64, "identree-enrol-"):
            self.refused(BadToken, token)

    def test_other_host(self) -> None:
        """It is refused and the token is not used up; a mistake in a name does not block the address."""
        token = self.token()
        for _ in range(20):
            self.refused(OtherHost, token, "web02")
        self.enrolments.admit(ADDRESS)
        self.redeem(token)

    def test_names(self) -> None:
        """A name that cannot be registered is refused before anything else."""
        for name in ("a b", "localhost", "7"):
            self.refused(Invalid, self.token(), name)

    def test_guessing(self) -> None:
        """Ten wrong tokens block the address for all that asks for a credential."""
        for n in range(10):
            self.enrolments.admit(ADDRESS)
            self.refused(BadToken, TOKEN_PREFIX + f"{n:064x}")
        self.assertRaises(Throttled, self.enrolments.admit, ADDRESS)
        self.enrolments.admit("198.51.100.1")

    def test_many_from_one(self) -> None:
        """One address can enrol only so many in a minute."""
        for _ in range(MOST_FROM_ONE):
            self.enrolments.admit(ADDRESS)
        problem = self.assertRaises(Throttled, self.enrolments.admit, ADDRESS)
        self.world.clock.advance(problem.retry_after)
        self.enrolments.admit(ADDRESS)
        self.assertLessEqual(problem.retry_after, ATTEMPTS_SECONDS)

    def test_many_from_all(self) -> None:
        """So can all together, of what costs the database a write."""
        for n in range(MOST_FROM_ALL):
            address = f"192.0.{n // 250}.{n % 250}"
            self.enrolments.admit(address)
            self.refused(BadToken, TOKEN_PREFIX + f"{n:064x}", address=address)
        self.assertRaises(Throttled, self.enrolments.admit, "198.51.100.1")

    def test_nonsense_from_many(self) -> None:
        """What is no token, from however many addresses, keeps no host with a good one away."""
        for n in range(MOST_FROM_ALL):
            address = f"192.0.{n // 250}.{n % 250}"
            self.enrolments.admit(address)
            self.refused(BadToken, "x", address=address)
        self.enrolments.admit("198.51.100.1")
        self.redeem(self.token())

    def test_off(self) -> None:
        """While the registry is off the token is kept for later."""
        token = self.token()
        self.enrolments = self.made(self.registry("off"))
        self.refused(RegistryOff, token)
        self.enrolments = self.made(self.live)
        self.redeem(token)

    def test_registered_in_between(self) -> None:
        """A host that was registered since keeps its secret."""
        token = self.token()
        [secret] = self.add(self.live, "web01")
        self.refused(HostExists, token)
        self.assertTrue(self.live().matches("web01", secret.encode()))

    def test_expired(self) -> None:
        """After its time it is worth nothing."""
        token = self.token(life=timedelta(minutes=5))
        self.world.clock.advance(300)
        self.refused(BadToken, token)

    def test_database_away_afterwards(self) -> None:
        """A host that is registered gets its secret, also when the registry cannot be read again right now."""
        token = self.token()
        look = self.store.registry_look

        async def away() -> Any:
            raise StorageUnavailable("unreachable")

        self.store.registry_look = away  # type: ignore[method-assign]
        secret = self.redeem(token)
        self.store.registry_look = look  # type: ignore[method-assign]
        now_result(self.live.refresh())
        self.assertTrue(self.live().matches("web01", secret.encode()))
