"""What is particular to PostgreSQL: replicas, lost connections, migrations under a lock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg2
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.core.challenge import HistoryEntry, Live, Status, Step, expire
from identree.core.errors import SchemaTooNew, StorageUnavailable
from identree.storage import migrate
from identree.storage.bus import RESYNC
from identree.storage.interface import Caps, DirectoryState
from identree.storage.opening import masked, open_store
from identree.storage.postgres import parse_dsn, translate
from identree.storage.store import SqlStore
from tests.contracts.store import NOW, approving, at, challenge, code, described, opening, outcomes
from tests.fakes import MemoryLog
from tests.postgres import cluster

ENTRY = HistoryEntry(at=NOW, username="alice", action="revoked")


class DsnTests(SynchronousTestCase):
    """Both forms of a DSN."""

    def test_url(self) -> None:
        """Parameters of other drivers are dropped and named; an encoded password survives."""
        parameters, ignored = parse_dsn(
            "postgres://u:p%40ss@db.example:5433/identree?sslmode=require&pool_max_conns=5&statement_cache_capacity=0"
        )
        self.assertEqual(
            parameters,
            {
                "user": "u",
                "password": "p@ss",
                "host": "db.example",
                "port": "5433",
                "dbname": "identree",
                "sslmode": "require",
            },
        )
        self.assertEqual(ignored, ("pool_max_conns", "statement_cache_capacity"))

    def test_pairs(self) -> None:
        """The key=value form, with quoted values."""
        parameters, ignored = parse_dsn(r"host=db user=u password='a \'b' dbname=x default_query_exec_mode=exec")
        self.assertEqual(parameters, {"host": "db", "user": "u", "password": "a 'b", "dbname": "x"})
        self.assertEqual(ignored, ("default_query_exec_mode",))

    def test_malformed(self) -> None:
        """What is malformed is refused without showing it: it may hold a password."""
        for dsn in ("", "postgresql://u:secret@[db/x", "just some secret words", "password='secret"):
            e = self.assertRaises(ValueError, parse_dsn, dsn)
            self.assertNotIn("secret", str(e))

    def test_masked(self) -> None:
        """No form of a DSN is logged with its password."""
        for dsn, shown in (
            ("postgresql://u:sec@ret@db/x?sslpassword=secret&a=b", "postgresql://u:***@db/x?sslpassword=***&a=b"),
            ("postgresql://u@db/x", "postgresql://u@db/x"),
            (r"host=db password='a \'secret' user=u", "host=db password=*** user=u"),
            ("password = secret host=db", "password = *** host=db"),
            ("/config/identree.db", "/config/identree.db"),
        ):
            self.assertEqual(masked(dsn), shown)

    def test_translation(self) -> None:
        """Named parameters, per cent signs and what only PostgreSQL sees."""
        self.assertEqual(
            translate("SELECT 5 % 2 WHERE a = :a_b /*postgres FOR UPDATE*/")[0],
            "SELECT 5 %% 2 WHERE a = %(a_b)s FOR UPDATE",
        )


class _Tests(TestCase):
    def setUp(self) -> None:
        self.dsn = cluster().create_database()
        self.addCleanup(cluster().drop_database, self.dsn)
        self.database = self.dsn.rpartition("/")[2]
        self.log = MemoryLog()

    async def store(self, **options: Any) -> SqlStore:
        store = open_store(
            reactor,
            **{
                "driver": "postgres",
                "dsn": self.dsn,
                "version": "dev",
                "instance": "0123456789abcdef",
                "log": self.log,
                "max_open_conns": 4,
                **options,
            },
        )
        await store.start()
        self.addCleanup(store.stop)
        return store

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        return cluster().execute(self.database, sql)

    async def create(self, store: SqlStore) -> str:
        wanted = challenge()
        step = await store.create_challenge("alice", "h", [wanted.user_code], opening(wanted), Caps(), NOW)
        return step.challenge.id

    async def until(self, heard: list[Live], wanted: Live) -> None:
        while wanted not in heard:
            await deferLater(reactor, 0.01)


class MigrationTests(_Tests):
    def version_1(self, *, bookkeeping: bool) -> None:
        for statement in migrate.migrations(migrate.POSTGRES)[0].statements:
            self.execute(statement)
        if bookkeeping:
            self.execute(migrate.BOOKKEEPING)
            self.execute("INSERT INTO schema_migrations VALUES (1, 'baseline schema', 1700000000)")
        now = int(NOW.timestamp())
        self.execute(
            "INSERT INTO challenges (id, user_code, username, status, created_at, expires_at) "
            f"VALUES ('{'1' * 32}', 'ABCDEF-123456', 'alice', 'pending', {now}, {now + 120})"
        )

    async def test_version_1(self) -> None:
        """A database of a deployed version, with or without bookkeeping, keeps its rows."""
        self.version_1(bookkeeping=True)
        store = await self.store()
        step = await store.decide("1" * 32, approving("bob"))
        self.assertEqual(step.challenge.status, Status.APPROVED)

    async def test_before_the_framework(self) -> None:
        """So does one from before the table of migrations."""
        self.version_1(bookkeeping=False)
        store = await self.store()
        self.assertTrue(await store.challenge("1" * 32))
        self.assertEqual(
            self.execute("SELECT version FROM schema_migrations ORDER BY 1"),
            [(known.version,) for known in migrate.migrations(migrate.POSTGRES)],
        )

    async def test_too_new(self) -> None:
        """A database of a newer program is refused and left alone."""
        self.version_1(bookkeeping=True)
        self.execute("INSERT INTO schema_migrations VALUES (99, 'future', 1)")
        [e] = await outcomes([self.store()])
        self.assertIsInstance(e, SchemaTooNew)
        self.assertEqual(self.execute("SELECT to_regclass('outbox')::text"), [(None,)])

    async def test_together(self) -> None:
        """Replicas that start together on an empty database wait for one another."""
        stores = await gatherResults(
            [Deferred.fromCoroutine(self.store(instance=f"{n:016x}", log=None)) for n in range(6)]
        )
        self.assertEqual(len(stores), 6)
        [(count,)] = self.execute("SELECT COUNT(*) FROM schema_migrations")
        self.assertEqual(count, len(migrate.migrations(migrate.POSTGRES)))

    async def test_no_server(self) -> None:
        """A server that is not there is unavailable; its password is in no message."""
        [e] = await outcomes([self.store(dsn="postgresql://u:secret@127.0.0.1:1/x")])
        self.assertIsInstance(e, StorageUnavailable)
        self.assertEqual(e.reason, "unreachable")
        self.assertNotIn("secret", str(e))


class ReplicaTests(_Tests):
    """Two servers on one database."""

    async def pair(self) -> tuple[SqlStore, SqlStore, list[Live]]:
        first = await self.store()
        second = await self.store(instance="1123456789abcdef", log=MemoryLog())
        heard: list[Live] = []
        second.subscribe(heard.append)
        return first, second, heard

    async def test_wake(self) -> None:
        """A commit on one wakes those who wait on the other, who find the truth."""
        first, second, heard = await self.pair()
        id = await self.create(first)
        await first.decide(id, approving("bob"))
        await self.until(heard, Live(event="challenge_resolved", username="alice", challenge_id=id))
        stored = await second.challenge(id)
        assert stored is not None
        self.assertEqual(stored.status, Status.APPROVED)

    async def test_once(self) -> None:
        """The server that commits hears of it once, although the database tells it too."""
        first, second, heard = await self.pair()
        own: list[Live] = []
        first.subscribe(own.append)
        id = await self.create(first)
        await self.create(second)  # whatever the database had to tell is told by then
        await self.until(heard, Live(event="challenge_created", username="alice", challenge_id=id))
        created = Live(event="challenge_created", username="alice", challenge_id=id)
        self.assertEqual(own.count(created), 1)

    async def test_payload(self) -> None:
        """What is told keeps the keys that deployed receivers read."""
        first, _, _ = await self.pair()
        listener = psycopg2.connect(self.dsn)
        self.addCleanup(listener.close)
        listener.autocommit = True
        listener.cursor().execute("LISTEN identree_sse; LISTEN identree_cluster")
        id = await self.create(first)
        await first.sign_out("alice", "f" * 32, NOW, lambda hostnames: described(()))
        listener.cursor().execute("SELECT 1")
        told = {notify.channel: json.loads(notify.payload) for notify in reversed(listener.notifies)}
        sse = told["identree_sse"]
        self.assertEqual((sse["user"], sse["event"], sse["challenge"]), ("alice", "challenge_created", id))
        self.assertEqual(
            (told["identree_cluster"]["type"], told["identree_cluster"]["nonce"]), ("revoke_nonce", "f" * 32)
        )

    async def test_deployed_sender(self) -> None:
        """What a deployed version tells is understood, and nonsense is ignored."""
        _, _, heard = await self.pair()
        for channel, payload in (
            ("identree_sse", "nonsense"),
            ("identree_sse", '["list"]'),
            ("identree_sse", '{"user":5,"event":"x"}'),
            ("identree_cluster", '{"type":"unknown"}'),
            ("identree_sse", '{"row":999999}'),
            ("identree_cluster", '{"type":"revoke_nonce","nonce":"n"}'),
            ("identree_sse", '{"user":"bob","event":"session_changed"}'),
        ):
            self.execute(f"SELECT pg_notify('{channel}', '{payload}')")
        await self.until(heard, Live(event="session_changed", username="bob"))
        self.assertEqual(heard, [Live(event="revoked", username=""), Live(event="session_changed", username="bob")])

    async def test_directory_published(self) -> None:
        """The other replicas hear of a published directory, its publisher does not."""
        first, second, heard = await self.pair()
        own: list[Live] = []
        first.subscribe(own.append)
        state = DirectoryState(version=1, usn=1, manifest="{}", fetched_at=NOW, published_at=NOW)
        await first.publish_directory(state, 0)
        await self.until(heard, Live(event="directory_published", username=""))
        self.assertEqual(await second.directory(), state)
        self.assertEqual(own, [])

    async def test_long_message(self) -> None:
        """A message too long for NOTIFY goes through a table, and is gone an hour later."""
        first, _, heard = await self.pair()
        name = "x" * 7000
        wanted = challenge(username=name)
        await first.create_challenge(name, "h", [wanted.user_code], opening(wanted), Caps(), NOW)
        await self.until(heard, Live(event="challenge_created", username=name, challenge_id=wanted.id))
        self.execute(f"UPDATE cluster_messages SET created_at = {int(NOW.timestamp())}")
        await first.delete_old(at(3599))
        self.assertEqual(self.execute("SELECT COUNT(*) FROM cluster_messages"), [(1,)])
        await first.delete_old(at(3601))
        self.assertEqual(self.execute("SELECT COUNT(*) FROM cluster_messages"), [(0,)])

    async def test_cap_across_replicas(self) -> None:
        """The cap per person is exact however many servers create at once."""
        first, second, _ = await self.pair()
        results = await outcomes(
            [
                store.create_challenge("alice", "h", [code(n)], opening(challenge(n)), Caps(), NOW)
                for n, store in zip(range(1, 41), (first, second) * 20, strict=True)
            ]
        )
        self.assertEqual(sum(isinstance(result, Step) for result in results), 10)

    async def test_chains(self) -> None:
        """Each server writes a chain of its own; an expiry is in one of them once."""
        other_log = MemoryLog()
        first = await self.store()
        second = await self.store(instance="1123456789abcdef", log=other_log)
        await self.create(first)
        await self.create(second)
        await outcomes([store.expire_challenges(at(120), lambda c: expire(c, at(120))) for store in (first, second)])
        kinds = [json.loads(record.plain)["event"] for record in self.log.records + other_log.records]
        self.assertEqual(sorted(kinds), ["challenge_created"] * 2 + ["challenge_expired"] * 2)
        for log in (self.log, other_log):
            self.assertEqual([record.seq for record in log.records], list(range(len(log.records))))


class LossTests(_Tests):
    """Connections that die."""

    def kill(self, query: str = "%") -> None:
        self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
            f"AND pid <> pg_backend_pid() AND query LIKE '{query}'"
        )

    async def test_pool_recovers(self) -> None:
        """Operations after a lost backend take another connection."""
        store = await self.store()
        await store.append_history([ENTRY])
        self.kill()
        await store.append_history([ENTRY])
        self.assertEqual(len(await store.history(None)), 2)

    async def test_listens_again(self) -> None:
        """After the listening connection is lost everybody is told to read again, and later messages arrive."""
        store = await self.store()
        heard: list[Live] = []
        store.subscribe(heard.append)
        self.kill("%LISTEN%")
        await self.until(heard, RESYNC)
        self.execute("""SELECT pg_notify('identree_sse', '{"user":"bob","event":"x"}')""")
        await self.until(heard, Live(event="x", username="bob"))

    async def test_stop_while_connecting(self) -> None:
        """A store can be stopped at any point of its attempts to listen again."""
        for turns in range(12):
            store = await self.store()
            self.kill("%LISTEN%")
            for _ in range(turns):
                await deferLater(reactor, 0.03)
            await store.stop()

    async def test_look_between_seals(self) -> None:
        """
        Nothing is sealed while it is looked what was sealed unheard of: it would be found, and then seem to come again.
        """
        store = await self.store()
        publisher = store._publisher
        look, began, goes_on = publisher.look_again, Deferred[None](), Deferred[None]()

        async def slowly(answer: Callable[[], None]) -> None:
            began.callback(None)
            await goes_on
            await look(answer)

        publisher.look_again = slowly  # type: ignore[method-assign]
        store._driver._retry_sealing()  # type: ignore[attr-defined]
        await began
        publisher.look_again = look  # type: ignore[method-assign]
        creating = Deferred.fromCoroutine(self.create(store))
        while self.execute("SELECT COUNT(*) FROM outbox") != [(1,)]:
            await deferLater(reactor, 0.01)
        # the database has had time for it, and the turn of whoever seals has not come
        await store.ping()
        await store.ping()
        self.assertEqual(self.execute("SELECT COUNT(*) FROM outbox WHERE seq IS NULL"), [(1,)])
        goes_on.callback(None)
        await creating
        self.assertEqual([record.seq for record in self.log.records], [0])

    async def test_many_lost(self) -> None:
        """Connections killed under load: every answer of success is in the database, and in the chain."""
        store = await self.store()
        doing = []
        for number in range(1, 201):
            wanted = challenge(number, username=f"u{number}")
            waiting = store.create_challenge(wanted.username, "h", [code(number)], opening(wanted), Caps(), NOW)
            doing.append(Deferred.fromCoroutine(outcomes([waiting])))
            if number % 50 == 0:
                self.kill("%challenges%")
                await deferLater(reactor, 0)
        results = [result for [result] in await gatherResults(doing)]
        done = {result.challenge.id for result in results if isinstance(result, Step)}
        for result in results:
            self.assertTrue(isinstance(result, (Step, StorageUnavailable)), result)
        stored = {found.id for found in await store.pending_challenges(None, NOW)}
        self.assertTrue(done <= stored)
        await store.stop()
        # whatever was left unsealed is sealed at the next start
        store = await self.store()
        codes = {json.loads(record.plain)["code"] for record in self.log.records}
        self.assertEqual(len(codes), len(stored))
        self.assertEqual([record.seq for record in self.log.records], list(range(len(stored))))

    async def test_unsealed(self) -> None:
        """What a crash left between the two transactions is sealed at the next start."""
        store = await self.store()
        await store.stop()
        fields = json.dumps({"timestamp": "2026-03-01T12:00:00Z", "event": "x", "username": "alice"})
        self.execute(f"INSERT INTO outbox (instance, fields, created_at) VALUES ('0123456789abcdef', '{fields}', 1)")
        await self.store()
        self.assertEqual([json.loads(record.plain)["event"] for record in self.log.records], ["x"])

    async def test_locked(self) -> None:
        """A row that somebody keeps locked makes the operation unavailable, not stuck."""
        store = await self.store(dsn=self.dsn)
        wanted = challenge()
        await store.create_challenge("alice", "h", [wanted.user_code], opening(wanted), Caps(), NOW)
        holder = psycopg2.connect(self.dsn)
        self.addCleanup(holder.close)
        holder.cursor().execute("UPDATE challenges SET reason = 'held'")
        [e] = await outcomes([store.decide(wanted.id, approving("bob"))])
        self.assertIsInstance(e, StorageUnavailable)
        self.assertEqual(e.reason, "locked")
        holder.rollback()
        await store.decide(wanted.id, approving("bob"))

    async def test_read_only(self) -> None:
        """A database that may only be read says so."""
        store = await self.store()
        self.execute(f"ALTER DATABASE {self.database} SET default_transaction_read_only = on")
        self.kill()
        [e] = await outcomes([store.append_history([ENTRY])])
        self.assertIsInstance(e, StorageUnavailable)
        self.assertEqual(e.reason, "read_only")
        [e] = await outcomes([store.ping()])
        self.assertEqual(e.reason, "read_only")
        cluster().execute("postgres", f"ALTER DATABASE {self.database} SET default_transaction_read_only = off")
        self.kill()
        await store.ping()
