"""What every store must do with the certificates of hosts (identree.storage.interface)."""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core.events import CertificateIssued
from identree.storage.certificates import REMEMBERED
from identree.storage.interface import HostCertificate
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def certificate(
    hostname: str = "web1", serial: str = "a1", at: datetime = NOW, life: timedelta = DAY
) -> HostCertificate:
    return HostCertificate(hostname=hostname, serial=serial, issued_at=at, expires_at=at + life)


class CertificateContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIs: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def record(self, one: HostCertificate, *, force: bool = False) -> bool:
        event = CertificateIssued(at=one.issued_at, username=one.hostname, hostname=one.hostname, code=one.serial)
        return await self.store.record_certificate(one, event, force=force)

    async def test_certificate(self) -> None:
        """What was recorded is found again, with its event in the log."""
        before = len(self.log.records)
        self.assertIs(await self.record(certificate()), True)
        self.assertEqual(await self.store.host_certificate("web1"), certificate())
        self.assertIs(await self.store.host_certificate("web2"), None)
        self.assertEqual([b"certificate_issued" in one.plain for one in self.log.records[before:]], [True])

    async def test_certificate_of_a_certified_host(self) -> None:
        """A valid certificate is replaced only by force; otherwise nothing happens, not even an event."""
        await self.record(certificate())
        before = len(self.log.records)
        later = NOW + DAY - timedelta(seconds=1)
        self.assertIs(await self.record(certificate(serial="b2", at=later)), False)
        self.assertEqual((await self.store.host_certificate("web1"), len(self.log.records)), (certificate(), before))
        forced = certificate(serial="c3", at=later)
        self.assertIs(await self.record(forced, force=True), True)
        self.assertEqual(await self.store.host_certificate("web1"), forced)

    async def test_certificate_after_the_end(self) -> None:
        """One that has ended, at the very second, is replaced."""
        await self.record(certificate())
        after = certificate(serial="b2", at=NOW + DAY)
        self.assertIs(await self.record(after), True)
        self.assertEqual(await self.store.host_certificate("web1"), after)

    async def test_certificates_at_once(self) -> None:
        """Of several requests for one host at the same time, one gets a certificate."""
        asked = [Deferred.fromCoroutine(self.record(certificate(serial=f"{number:x}"))) for number in range(1, 6)]
        self.assertEqual(sorted(await gatherResults(asked)), [False] * 4 + [True])

    async def test_certificates_that_end_first(self) -> None:
        """The list is in the order of the ends, and bounded."""
        for number in (3, 1, 2):
            await self.record(certificate(f"web{number}", life=number * DAY))
        names = [one.hostname for one in await self.store.host_certificates()]
        self.assertEqual(names, ["web1", "web2", "web3"])
        self.assertEqual(len(await self.store.host_certificates(2)), 2)

    async def test_forgotten_certificate(self) -> None:
        """A host that was reset has none."""
        await self.record(certificate())
        self.assertEqual([await self.store.forget_certificate("web1") for _ in range(2)], [True, False])
        self.assertIs(await self.store.host_certificate("web1"), None)

    async def test_old_certificates(self) -> None:
        """What ended long ago goes when a new one comes."""
        await self.record(certificate("old"))
        await self.record(certificate("new", at=NOW + DAY + REMEMBERED))
        self.assertEqual(len(await self.store.host_certificates()), 2)
        await self.record(certificate("newer", at=NOW + DAY + REMEMBERED + timedelta(seconds=1)))
        self.assertEqual([one.hostname for one in await self.store.host_certificates()], ["new", "newer"])
