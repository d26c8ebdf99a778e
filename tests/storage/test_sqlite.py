"""What is particular to SQLite: files, migrations, shared commits, and a database that cannot be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.core.challenge import HistoryEntry, Status, Step
from identree.core.errors import SchemaTooNew, StorageUnavailable
from identree.storage import history, migrate, sqlite
from identree.storage.interface import Caps
from identree.storage.jobs import MOST_OUTSTANDING, Job
from identree.storage.opening import open_store
from identree.storage.outbox import Chain, Publisher
from identree.storage.script import Do, Script
from identree.storage.sqlite import parse_dsn
from identree.storage.store import SqlStore
from tests.contracts.store import NOW, approving, at, challenge, code, opening, outcomes
from tests.fakes import MemoryLog, MemoryStore, memory_store

ENTRY = HistoryEntry(at=NOW, username="alice", action="revoked")


def version_1(path: str, *, bookkeeping: bool) -> None:
    """A database as deployed versions leave it, with a row of every kind that matters."""
    connection = sqlite3.connect(path)
    baseline = migrate.migrations(migrate.SQLITE)[0]
    for statement in baseline.statements:
        connection.execute(statement)
    if bookkeeping:
        connection.execute(migrate.BOOKKEEPING)
        connection.execute("INSERT INTO schema_migrations VALUES (1, 'baseline schema', 1700000000)")
    now = int(NOW.timestamp())
    connection.execute(
        "INSERT INTO challenges (id, user_code, username, status, hostname, reason, created_at, expires_at, "
        "approvals_json) VALUES (?, 'ABCDEF-123456', 'alice', 'pending', 'web01', 'old', ?, ?, ?)",
        (
            "1" * 32,
            now,
            now + 120,
            '[{"approver":"bob","approved_at":"2026-03-01T13:00:00.123456789+01:00"}]',
        ),
    )
    connection.execute("INSERT INTO grace_sessions VALUES ('alice', 'web01', ?, 'mac')", (now + 60,))
    connection.execute(
        "INSERT INTO session_nonces (nonce, issued_at, code_verifier, client_ip, expires_at) "
        "VALUES ('n', ?, 'v', 'i', 0)",
        (now,),
    )
    connection.commit()
    connection.close()


class _Directory:
    addCleanup: Any

    def directory(self) -> str:
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        return path


class SourceTests(SynchronousTestCase):
    """The forms of a DSN."""

    def test_path(self) -> None:
        """A path is a file, opened durably and beside readers."""
        source = parse_dsn("/config/identree.db")
        self.assertEqual((source.path, source.uri), ("/config/identree.db", False))
        pragmas = dict(source.pragmas)
        self.assertEqual((pragmas["journal_mode"], pragmas["synchronous"]), ("WAL", "FULL"))

    def test_pragmas(self) -> None:
        """A pragma of the DSN replaces ours of that name; the parameter is not SQLite's to see."""
        source = parse_dsn("/x.db?_pragma=busy_timeout(100)&_pragma=cache_size(-2000)")
        self.assertEqual(source.database, "/x.db")
        self.assertEqual(dict(source.pragmas)["busy_timeout"], "100")
        self.assertEqual(dict(source.pragmas)["cache_size"], "-2000")

    def test_uri(self) -> None:
        """A URI keeps SQLite's own parameters; those of other drivers are named as ignored."""
        source = parse_dsn("file:/x%20y.db?mode=rw&_txlock=immediate")
        self.assertEqual((source.path, source.uri, source.ignored), ("/x y.db", True, ("_txlock",)))
        self.assertEqual(source.database, "file:/x%20y.db?mode=rw")

    def test_memory(self) -> None:
        """All the names of a database in memory."""
        for dsn in (":memory:", "file::memory:", "file:x?mode=memory&cache=shared"):
            self.assertTrue(parse_dsn(dsn).in_memory, dsn)

    def test_malformed(self) -> None:
        """What names no file or is no pragma is refused."""
        for dsn in ("", "file:", "/x?_pragma=a;b", "/x?_pragma=user_version(1); DROP TABLE x"):
            self.assertRaises(ValueError, parse_dsn, dsn)


class MigrationTests(_Directory, SynchronousTestCase):
    """Opening databases of every age."""

    def open(self, path: str) -> MemoryStore:
        store = memory_store(Clock(), dsn=path)
        self.addCleanup(lambda: self.successResultOf(store.stop()))
        return store

    def check_old_rows(self, store: SqlStore) -> None:
        stored = self.successResultOf(store.challenge("1" * 32))
        assert stored is not None
        self.assertEqual((stored.reason, stored.required_approvals, stored.approvers), ("old", 1, ("bob",)))
        self.assertEqual(stored.approvals[0].at, NOW.replace(microsecond=123456))
        self.assertTrue(self.successResultOf(store.grace("alice", "web01")))
        step = self.successResultOf(store.decide("1" * 32, approving("carol")))
        self.assertEqual(step.challenge.status, Status.APPROVED)
        login = self.successResultOf(store.take_login("n", at(60)))
        assert login is not None
        self.assertEqual((login.verifier, login.return_to), ("v", ""))

    def test_version_1(self) -> None:
        """A database of a deployed version keeps its challenges, sessions and logins."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=True)
        self.check_old_rows(self.open(path))

    def test_before_the_framework(self) -> None:
        """So does one from before the table of migrations."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=False)
        store = self.open(path)
        self.check_old_rows(store)
        rows = store.connection.execute("SELECT version FROM schema_migrations ORDER BY version").fetchall()
        self.assertEqual(rows, [(known.version,) for known in migrate.migrations(migrate.SQLITE)])

    def test_every_version(self) -> None:
        """A database of each version since keeps what it has of hosts, and gets what it lacks, once."""
        known = migrate.migrations(migrate.SQLITE)
        for version in range(1, len(known) + 1):
            path = f"{self.directory()}/a.db"
            version_1(path, bookkeeping=True)
            connection = sqlite3.connect(path)
            for migration in known[1:version]:
                for sql, values in migrate.steps(migration, 1700000000):
                    connection.execute(sql, values)
            connection.execute("INSERT INTO escrowed_hosts VALUES ('WEB01', 1700000000, 'item', 'vault')")
            connection.execute("INSERT INTO escrow_ciphertexts VALUES ('WEB01', 'sealed')")
            connection.execute("INSERT INTO agents VALUES ('WEB01', '1', 'x', '192.0.2.1', 1700000000, 1700000000)")
            connection.execute("INSERT INTO rotate_breakglass_before VALUES ('WEB01', 1700000001)")
            if version >= 6:
                connection.execute("UPDATE registry_state SET revision = 7, imported = 1")
            connection.commit()
            connection.close()
            store = self.open(path)
            self.check_old_rows(store)
            record = self.successResultOf(store.escrow_record("web01"))
            assert record is not None
            self.assertEqual((record.hostname, record.item_id), ("WEB01", "item"))
            self.assertEqual(self.successResultOf(store.ciphertext("WEB01")), "sealed")
            self.assertEqual([one.hostname for one in self.successResultOf(store.agents())], ["WEB01"])
            self.assertEqual([one.hostname for one in self.successResultOf(store.rotations())], ["WEB01"])
            look = self.successResultOf(store.registry_look())
            self.assertEqual((look.revision, look.imported), (7, True) if version >= 6 else (0, False), version)
            done = [row[0] for row in store.connection.execute("SELECT version FROM schema_migrations ORDER BY 1")]
            self.assertEqual(done, [one.version for one in known])

    def test_copy(self) -> None:
        """Before an existing database is migrated it is copied, for its owner's eyes only."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=True)
        self.open(path)
        self.assertEqual(stat.S_IMODE(os.stat(path + ".before-002").st_mode), 0o600)
        copy = sqlite3.connect(path + ".before-002")
        self.addCleanup(copy.close)
        self.assertEqual(copy.execute("SELECT MAX(version) FROM schema_migrations").fetchall(), [(1,)])
        self.assertEqual(copy.execute("SELECT COUNT(*) FROM challenges").fetchall(), [(1,)])

    def test_copies_are_kept(self) -> None:
        """An older copy is never overwritten."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=True)
        with open(path + ".before-002", "w") as older:
            older.write("precious")
        self.open(path)
        with open(path + ".before-002") as older:
            self.assertEqual(older.read(), "precious")
        self.assertTrue(os.path.exists(path + ".before-002.1"))

    def test_new_file(self) -> None:
        """A new database is readable by its owner only, whatever the umask, and has no copy."""
        directory = self.directory()
        before = os.umask(0)
        try:
            self.open(directory + "/a.db")
        finally:
            os.umask(before)
        modes = {name: stat.S_IMODE(os.stat(f"{directory}/{name}").st_mode) for name in os.listdir(directory)}
        self.assertEqual(set(modes.values()), {0o600})
        self.assertEqual(set(modes), {"a.db", "a.db-wal", "a.db-shm"})

    def test_reopened(self) -> None:
        """Opening once more changes nothing and copies nothing."""
        directory = self.directory()
        self.successResultOf(self.open(directory + "/a.db").stop())
        self.open(directory + "/a.db")
        self.assertEqual([name for name in os.listdir(directory) if "before" in name], [])

    def test_too_new(self) -> None:
        """A database of a newer program is refused with advice and left alone."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=True)
        connection = sqlite3.connect(path)
        connection.execute("INSERT INTO schema_migrations VALUES (99, 'future', 1)")
        connection.commit()
        connection.close()
        e = self.assertRaises(SchemaTooNew, self.open, path)
        self.assertIn("99", str(e))
        self.assertIn("newer identree", str(e))
        self.assertEqual(os.listdir(os.path.dirname(path)), ["a.db"])

    def test_failure_changes_nothing(self) -> None:
        """A migration that fails is undone whole, its copy removed, and works the next time."""
        path = self.directory() + "/a.db"
        version_1(path, bookkeeping=True)
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE sink_cursors (in_the_way TEXT)")
        connection.commit()
        self.assertRaises(StorageUnavailable, self.open, path)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(challenges)")]
        self.assertNotIn("command", columns)
        self.assertFalse(os.path.exists(path + ".before-002"))
        connection.execute("DROP TABLE sink_cursors")
        connection.commit()
        connection.close()
        self.check_old_rows(self.open(path))

    def test_missing_directory(self) -> None:
        """A directory that is missing is not made; the store is unavailable."""
        path = self.directory() + "/none/a.db"
        e = self.assertRaises(StorageUnavailable, self.open, path)
        self.assertEqual(e.reason, "unreachable")

    def test_no_database(self) -> None:
        """A file that is no database is refused and left alone."""
        path = self.directory() + "/a.db"
        with open(path, "w") as file:
            file.write("x" * 5000)
        self.assertRaises(StorageUnavailable, self.open, path)
        with open(path) as file:
            self.assertEqual(file.read(), "x" * 5000)

    def test_identity(self) -> None:
        """An identity that is made once stays."""
        path = self.directory() + "/a.db"
        first = memory_store(dsn=path, instance="")
        self.assertEqual(first.instance, "fedcba9876543210")
        self.successResultOf(first.stop())
        store = memory_store(dsn=path, instance="")
        self.addCleanup(lambda: self.successResultOf(store.stop()))
        self.assertEqual(store.instance, "fedcba9876543210")


class CannotWriteTests(_Directory, TestCase):
    """A database that is locked, read-only or full: unavailable, and nothing half done."""

    async def store(self, path: str, **options: Any) -> SqlStore:
        store = open_store(reactor, driver="sqlite", dsn=path, version="dev", **options)
        await store.start()
        self.addCleanup(store.stop)
        return store

    async def refused(self, store: SqlStore, reason: str) -> None:
        wanted = challenge()
        [e] = await outcomes([store.create_challenge("alice", "h", [wanted.user_code], opening(wanted), Caps(), NOW)])
        self.assertIsInstance(e, StorageUnavailable)
        self.assertEqual(e.reason, reason)

    async def test_locked(self) -> None:
        """While somebody else holds the lock nothing is written; afterwards everything works."""
        path = self.directory() + "/a.db"
        store = await self.store(path + "?_pragma=busy_timeout(1)")
        other = sqlite3.connect(path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        await self.refused(store, "locked")
        [e] = await outcomes([store.ping()])
        self.assertIsInstance(e, StorageUnavailable)
        other.execute("ROLLBACK")
        await store.ping()
        self.assertEqual(await store.pending_challenges(None, NOW), [])

    async def test_read_only(self) -> None:
        """A database that may not be written says so, also to the health check; reading goes on."""
        path = self.directory() + "/a.db"
        store = await self.store(path)
        await store.append_history([ENTRY])
        await store.stop()
        store = await self.store(path + "?_pragma=query_only(1)", instance="0123456789abcdef")
        await self.refused(store, "read_only")
        [e] = await outcomes([store.ping()])
        self.assertEqual(e.reason, "read_only")
        self.assertEqual(len(await store.history(None)), 1)

    async def test_full(self) -> None:
        """A full database refuses what does not fit and keeps all that was answered."""
        path = self.directory() + "/a.db"
        await (await self.store(path)).stop()
        pages = os.stat(path).st_size // 4096 + 12
        log = MemoryLog()
        store = await self.store(f"{path}?_pragma=max_page_count({pages})", log=log)
        doing = []
        for number in range(1, 300):
            wanted = challenge(number, username=f"u{number}")
            doing.append(store.create_challenge(wanted.username, "h", [code(number)], opening(wanted), Caps(), NOW))
        results = await outcomes(doing)
        done = {result.challenge.id for result in results if isinstance(result, Step)}
        reasons = {result.reason for result in results if isinstance(result, StorageUnavailable)}
        self.assertEqual(reasons, {"full"})
        self.assertTrue(0 < len(done) < 299)
        self.assertEqual({stored.id for stored in await store.pending_challenges(None, NOW)}, done)
        self.assertEqual(len(log.records), len(done))

    async def test_too_many_waiting(self) -> None:
        """More operations than the bound are refused at once, the accepted ones are done."""
        store = await self.store(self.directory() + "/a.db")
        results = await outcomes([store.append_history([ENTRY]) for _ in range(MOST_OUTSTANDING + 5)])
        refused = [result for result in results if result is not None]
        self.assertEqual([result.reason for result in refused], ["overloaded"] * 5)
        await store.ping()

    async def test_waited_too_long(self) -> None:
        """An operation that has waited longer than its budget is not begun."""
        times = iter([0.0] * 50)
        store = await self.store(self.directory() + "/a.db", instance="0123456789abcdef", monotonic=lambda: next(times))
        times = iter([0.0, 100.0])
        [e] = await outcomes([store.append_history([ENTRY])])
        self.assertEqual(e.reason, "overloaded")
        times = iter([0.0] * 50)
        self.assertEqual(await store.history(None), [])


class BatchTests(SynchronousTestCase):
    """Scripts that share a commit."""

    def setUp(self) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        self.addCleanup(connection.close)
        sqlite.upgrade(connection, parse_dsn(":memory:"), 0)
        self.statements: list[str] = []
        connection.set_trace_callback(self.statements.append)
        publisher = Publisher(Clock())
        publisher.instance = "i"
        self.engine = sqlite.Engine(connection, Chain(), publisher, lambda: 0.0)
        self.connection = connection

    def job(self, make: Any) -> Job:
        job = Job(make, 1.0)
        job.answer.addErrback(lambda failure: None)
        return job

    def test_one_commit(self) -> None:
        """Many scripts, one commit; a refusal undoes only its own writes."""

        def refusing() -> Script[None]:
            yield from history.append([ENTRY])
            raise ZeroDivisionError

        def broken() -> Script[None]:
            yield Do("INSERT INTO grace_sessions (username) VALUES (:x)", {"x": "y"})

        makes = [lambda: history.append([ENTRY]), refusing, broken, lambda: history.append([ENTRY])]
        jobs = [self.job(make) for make in makes]
        self.engine.commit(jobs)
        self.assertEqual(self.statements.count("COMMIT"), 1)
        failures = [type(job.failure) for job in jobs]
        self.assertEqual(failures, [type(None), ZeroDivisionError, sqlite3.IntegrityError, type(None)])
        self.assertEqual(self.connection.execute("SELECT COUNT(*) FROM action_log").fetchall(), [(2,)])

    def test_cancelled(self) -> None:
        """What nobody waits for any more is not begun."""
        jobs = [self.job(lambda: history.append([ENTRY])) for _ in range(2)]
        jobs[0].answer.cancel()
        self.engine.commit(jobs)
        self.assertEqual(self.connection.execute("SELECT COUNT(*) FROM action_log").fetchall(), [(1,)])

    def test_endless_query(self) -> None:
        """A statement that runs past the budget is stopped, and only its own script fails."""
        clock = iter([0.0, 0.0, 0.0, *[9.0] * 5])
        self.engine._monotonic = lambda: next(clock, 0.0)

        def endless() -> Script[None]:
            yield "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n", {}

        jobs = [self.job(endless)]
        self.engine.commit(jobs)
        assert isinstance(jobs[0].failure, StorageUnavailable)
        self.assertEqual(jobs[0].failure.reason, "overloaded")
        self.assertFalse(self.connection.in_transaction)

    def test_reading_cannot_write(self) -> None:
        """Reader connections refuse to write."""
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        source = parse_dsn(path + "/a.db")
        sqlite.connect(source).close()
        reader = sqlite3.connect(source.database)
        self.addCleanup(reader.close)
        sqlite.prepare(reader, source, read_only=True)
        self.assertRaises(sqlite3.OperationalError, reader.execute, "CREATE TABLE x (y)")


class DurabilityTests(_Directory, TestCase):
    """What the promise of durability rests on."""

    async def test_pragmas(self) -> None:
        """Commits wait for the disk, and readers run beside the writer."""
        path = self.directory() + "/a.db"
        source = parse_dsn(path)
        connection = sqlite.connect(source)
        self.addCleanup(connection.close)
        self.assertEqual(connection.execute("PRAGMA synchronous").fetchall(), [(2,)])
        self.assertEqual(connection.execute("PRAGMA journal_mode").fetchall(), [("wal",)])

    async def test_stop_finishes(self) -> None:
        """What was accepted before the stop is done."""
        path = self.directory() + "/a.db"
        store = open_store(reactor, driver="sqlite", dsn=path, version="dev")
        await store.start()
        doing = [Deferred.fromCoroutine(store.append_history([ENTRY])) for _ in range(300)]
        await store.stop()
        await gatherResults(doing)
        again = memory_store(dsn=path)
        self.addCleanup(again.stop)
        self.assertEqual(len(await again.history(None, 1000)), 300)
