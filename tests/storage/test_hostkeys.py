"""Confirmed host keys and recorded jobs, on everything that the store stands on (identree.storage.hostkeys)."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from identree.core.challenge import HistoryEntry, Live
from identree.core.deploy import HostKey
from identree.core.events import HostUnconfigured
from identree.storage import hostkeys
from identree.storage.hostkeys import DeployStore
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.fakes import MemoryLog, memory_store
from tests.postgres import cluster

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def key(letter: str, type: str = "ssh-ed25519") -> HostKey:
    raw = type.encode()
    return HostKey(type=type, blob=len(raw).to_bytes(4, "big") + raw + b"\0\0\0\x20" + letter.encode() * 32)


class HostKeyContract:
    store: SqlStore
    kept: DeployStore
    log: MemoryLog
    assertEqual: Any
    assertIsNone: Any
    assertIsNotNone: Any
    assertTrue: Any
    assertFalse: Any
    patch: Any

    async def test_remembered(self) -> None:
        """As it was confirmed, per name and port."""
        await self.kept.remember_host_key("web1", 22, key("a"), "carol", NOW)
        found = await self.kept.host_key("web1", 22)
        assert found is not None
        self.assertEqual(
            (found.hostname, found.port, found.key, found.confirmed_by, found.confirmed_at, found.used_at),
            ("web1", 22, key("a"), "carol", NOW, NOW),
        )
        self.assertIsNone(await self.kept.host_key("web1", 2222))
        self.assertIsNone(await self.kept.host_key("web2", 22))

    async def test_the_first_one_counts(self) -> None:
        """Another key does not take its place; who wanted it is told which one counts."""
        await self.kept.remember_host_key("web1", 22, key("a"), "carol", NOW)
        counts = await self.kept.remember_host_key("web1", 22, key("b"), "mallory", NOW + SECOND)
        self.assertEqual((counts.key, counts.confirmed_by), (key("a"), "carol"))

    async def test_used(self) -> None:
        """It is known when it was last seen, also by a clock that was set back."""
        for seconds in (0, 9, 5):
            counts = await self.kept.remember_host_key("web1", 22, key("a"), "dave", NOW + seconds * SECOND)
        self.assertEqual((counts.used_at, counts.confirmed_at, counts.confirmed_by), (NOW + 9 * SECOND, NOW, "dave"))

    async def test_forgotten(self) -> None:
        """Then another one can be remembered."""
        await self.kept.remember_host_key("web1", 22, key("a"), "carol", NOW)
        self.assertTrue(await self.kept.forget_host_key("web1", 22))
        self.assertFalse(await self.kept.forget_host_key("web1", 22))
        counts = await self.kept.remember_host_key("web1", 22, key("b"), "carol", NOW)
        self.assertEqual(counts.key, key("b"))

    async def test_bounded(self) -> None:
        """The one that was not used for longest makes room, and not the new one."""
        self.patch(hostkeys, "MOST_HOST_KEYS", 3)
        for number, seconds in enumerate((3, 1, 2, 0)):
            await self.kept.remember_host_key(f"web{number}", 22, key("a"), "carol", NOW + seconds * SECOND)
        known = [await self.kept.host_key(f"web{number}", 22) is not None for number in range(4)]
        self.assertEqual(known, [True, False, True, True])

    async def test_recorded(self) -> None:
        """History, event and wake-up come together."""
        heard: list[Live] = []
        self.store.subscribe(heard.append)
        entry = HistoryEntry(at=NOW, username="carol", action="deployed", hostname="web1", actor="carol")
        event = HostUnconfigured(at=NOW, username="carol", hostname="web1", actor="carol")
        await self.kept.record([entry], event, [Live(event="host_changed", username="carol")])
        self.assertEqual([found.action for found in await self.store.history("carol")], ["deployed"])
        self.assertEqual(len(self.log.records), 1)
        self.assertEqual([live.event for live in heard], ["host_changed"])


class MemoryHostKeyTests(HostKeyContract, TestCase):
    def setUp(self) -> None:
        store = memory_store(Clock())
        self.addCleanup(store.stop)
        self.store, self.log, self.kept = store, store.log, DeployStore(store.driver)

    async def test_a_row_that_somebody_edited(self) -> None:
        """No host has such a key."""
        await self.kept.remember_host_key("web1", 22, key("a"), "carol", NOW)
        self.store.connection.execute("UPDATE ssh_host_keys SET public_key = '!'")  # type: ignore[attr-defined]
        found = await self.kept.host_key("web1", 22)
        assert found is not None
        self.assertEqual(found.key.blob, b"")


class _Served(HostKeyContract):
    addCleanup: Any
    driver: str

    async def _open(self, dsn: str) -> None:
        self.log = MemoryLog()
        self.store = open_store(
            reactor, driver=self.driver, dsn=dsn, version="dev", instance="0123456789abcdef", log=self.log
        )
        await self.store.start()
        self.addCleanup(self.store.stop)
        self.kept = DeployStore(self.store._driver)


class SqliteHostKeyTests(_Served, TestCase):
    driver = "sqlite"

    def setUp(self) -> Any:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        return Deferred.fromCoroutine(self._open(f"{directory}/identree.db"))


class PostgresHostKeyTests(_Served, TestCase):
    driver = "postgres"

    def setUp(self) -> Any:
        dsn = cluster().create_database()
        self.addCleanup(cluster().drop_database, dsn)
        return Deferred.fromCoroutine(self._open(dsn))
