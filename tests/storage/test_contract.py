"""The contract of the store, on everything that it stands on."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.contracts.certificates import CertificateContract
from tests.contracts.directory import DirectoryContract
from tests.contracts.escrow import EscrowContract
from tests.contracts.feed import FeedContract
from tests.contracts.fleet import FleetContract
from tests.contracts.notices import NoticeContract
from tests.contracts.policies import PolicyContract
from tests.contracts.registry import RegistryContract
from tests.contracts.store import StoreContract
from tests.fakes import MemoryLog, memory_store
from tests.postgres import cluster

INSTANCES = ["0123456789abcdef", "1123456789abcdef", "2123456789abcdef"]


class MemoryStoreTests(
    StoreContract,
    DirectoryContract,
    CertificateContract,
    EscrowContract,
    FeedContract,
    FleetContract,
    RegistryContract,
    PolicyContract,
    NoticeContract,
    TestCase,
):
    """Everybody's fake."""

    def setUp(self) -> None:
        # a shared cache lets a second store see the same database in memory
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.log = MemoryLog()
        self.store = self._open(log=self.log)

    def _open(self, **options: Any) -> SqlStore:
        store = memory_store(Clock(), **{"dsn": f"{self.directory}/a.db", **options})
        self.addCleanup(store.stop)
        return store

    async def open(self, **options: Any) -> SqlStore:
        return self._open(**{"instance": "0123456789abcdef", "log": self.log, **options})


class _ServedTests(
    StoreContract,
    DirectoryContract,
    CertificateContract,
    EscrowContract,
    FeedContract,
    FleetContract,
    RegistryContract,
    PolicyContract,
    NoticeContract,
):
    """A server's store, with threads or connections."""

    driver: str
    dsn: str
    addCleanup: Any

    async def open(self, **options: Any) -> SqlStore:
        store = open_store(
            reactor,
            **{
                "driver": self.driver,
                "dsn": self.dsn,
                "version": "dev",
                "instance": INSTANCES[0],
                "log": self.log,
                "max_open_conns": 5,
                **options,
            },
        )
        await store.start()
        self.addCleanup(store.stop)
        return store


class SqliteStoreTests(_ServedTests, TestCase):
    """A file, a writer thread and readers."""

    driver = "sqlite"

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.dsn = f"{directory}/identree.db"
        self.log = MemoryLog()
        self.store = await self.open()


class SharedMemorySqliteStoreTests(TestCase):
    """A database in memory behind the server's driver: there is only the writer's connection."""

    async def test_reads_what_it_wrote(self) -> None:
        """Readers of a database in memory see it."""
        store = open_store(reactor, driver="sqlite", dsn=":memory:", version="dev")
        await store.start()
        self.addCleanup(store.stop)
        self.assertEqual(len(store.instance), 16)
        self.assertIsNone(await store.challenge("x"))


class PostgresStoreTests(_ServedTests, TestCase):
    """A real server."""

    driver = "postgres"

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.dsn = cluster().create_database()
        self.addCleanup(cluster().drop_database, self.dsn)
        self.log = MemoryLog()
        self.store = await self.open()
