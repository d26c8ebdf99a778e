"""What every store must do with escrowed break-glass passwords (identree.storage.interface)."""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core import escrow as limits
from identree.core.challenge import GraceSession, HistoryEntry
from identree.core.events import BreakglassEscrowed
from identree.storage import escrow
from identree.storage.interface import Ciphertext, EscrowRecord, GraceChange, Resealed, TokenUse
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def escrowed(hostname: str = "web1", at: datetime = NOW, item_id: str = "i", vault_id: str = "v") -> EscrowRecord:
    return EscrowRecord(hostname=hostname, escrowed_at=at, item_id=item_id, vault_id=vault_id)


def entry(username: str, hostname: str = "web1", action: str = "approved", actor: str = "") -> HistoryEntry:
    return HistoryEntry(
        username=username, action=action, hostname=hostname, code="", actor=actor or username, reason="", at=NOW
    )


class EscrowContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIs: Any
    patch: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def escrow(self, record: EscrowRecord) -> None:
        happened = BreakglassEscrowed(at=record.escrowed_at, username=record.hostname, hostname=record.hostname)
        await self.store.record_escrow(record, entry("", record.hostname, "rotated_breakglass", "root"), happened)

    async def test_escrow_record(self) -> None:
        """What was recorded is found again, with its event in the log; a newer one replaces it."""
        before = len(self.log.records)
        await self.escrow(escrowed())
        self.assertEqual(await self.store.escrow_record("web1"), escrowed())
        self.assertIs(await self.store.escrow_record("web2"), None)
        self.assertEqual([b"breakglass_escrowed" in one.plain for one in self.log.records[before:]], [True])
        await self.escrow(escrowed(at=NOW + SECOND, item_id="", vault_id=""))
        self.assertEqual(await self.store.escrow_record("web1"), escrowed(at=NOW + SECOND, item_id="", vault_id=""))

    async def test_escrow_history(self) -> None:
        """Everybody who has a history or a grace session on the host finds it in the own one, nobody else does."""
        await self.store.append_history([entry("alice"), entry("alice"), entry("root"), entry("eve", "web2")])
        session = GraceSession(username="bob", hostname="web1", expires_at=NOW + timedelta(hours=1), mac="")
        await self.store.change_grace("bob", "web1", lambda _: GraceChange(session=session))
        await self.escrow(escrowed())
        for username, actor in (("alice", "root"), ("bob", "root"), ("root", "")):
            found = [one for one in await self.store.history(username) if one.action == "rotated_breakglass"]
            self.assertEqual([(one.hostname, one.actor, one.at) for one in found], [("web1", actor, NOW)])
        self.assertEqual([one.action for one in await self.store.history("eve")], ["approved"])

    async def test_escrow_spellings(self) -> None:
        """A record in an old spelling is found, with that spelling; of several the newest."""
        await self.escrow(escrowed("WEB1."))
        self.assertEqual(await self.store.escrow_record("web1"), escrowed("WEB1."))
        await self.escrow(escrowed("web1"))
        self.assertEqual(await self.store.escrow_record("web1"), escrowed("web1"))
        await self.escrow(escrowed("Web1", NOW + SECOND))
        self.assertEqual(await self.store.escrow_record("web1"), escrowed("Web1", NOW + SECOND))

    async def test_escrow_records(self) -> None:
        """A page at a time, by name."""
        for name in ("c", "a", "b"):
            await self.escrow(escrowed(name))
        self.assertEqual([one.hostname for one in await self.store.escrow_records(limit=2)], ["a", "b"])
        self.assertEqual(await self.store.escrow_records("b"), [escrowed("c")])

    async def test_ciphertext(self) -> None:
        """Kept by the exact name, the last one only."""
        await self.store.store_ciphertext("web1", "one")
        await self.store.store_ciphertext("web1", "two")
        self.assertEqual(await self.store.ciphertext("web1"), "two")
        self.assertIs(await self.store.ciphertext("WEB1"), None)

    async def test_ciphertexts(self) -> None:
        """A page at a time, by name."""
        for name in ("c", "a", "b"):
            await self.store.store_ciphertext(name, f"text of {name}")
        self.assertEqual([one.hostname for one in await self.store.ciphertexts(limit=2)], ["a", "b"])
        self.assertEqual(await self.store.ciphertexts("b"), [Ciphertext(hostname="c", text="text of c")])

    async def test_replaced_ciphertexts(self) -> None:
        """Only what is as it was read is replaced: a newer password stays."""
        await self.store.store_ciphertext("a", "old a")
        await self.store.store_ciphertext("b", "newer b")
        changes = [
            Resealed(hostname="a", before="old a", after="new a"),
            Resealed(hostname="b", before="old b", after="new b"),
            Resealed(hostname="c", before="old c", after="new c"),
        ]
        self.assertEqual(await self.store.replace_ciphertexts(changes), ["a"])
        self.assertEqual([await self.store.ciphertext(name) for name in ("a", "b", "c")], ["new a", "newer b", None])

    async def test_used_token(self) -> None:
        """A token is good once, and again after it was given back."""
        self.assertEqual(await self.store.use_escrow_token("web1:1", NOW), TokenUse.NEW)
        self.assertEqual(await self.store.use_escrow_token("web1:1", NOW), TokenUse.USED)
        self.assertEqual(await self.store.use_escrow_token("web1:2", NOW), TokenUse.NEW)
        await self.store.give_back_escrow_token("web1:1")
        self.assertEqual(await self.store.use_escrow_token("web1:1", NOW), TokenUse.NEW)

    async def test_token_at_once(self) -> None:
        """Of several requests with one token at the same time, one is served."""
        uses = [Deferred.fromCoroutine(self.store.use_escrow_token("web1:1", NOW)) for _ in range(5)]
        self.assertEqual([use is TokenUse.NEW for use in await gatherResults(uses)].count(True), 1)

    async def test_too_many_tokens(self) -> None:
        """Beyond the limit no new one is accepted; a known one is still known; retention makes room."""
        self.assertEqual(escrow.MOST_USED_TOKENS, limits.MOST_USED_TOKENS)
        self.patch(escrow, "MOST_USED_TOKENS", 2)
        for key in ("a:1", "b:1"):
            self.assertEqual(await self.store.use_escrow_token(key, NOW), TokenUse.NEW)
        self.assertEqual(await self.store.use_escrow_token("c:1", NOW), TokenUse.FULL)
        self.assertEqual(await self.store.use_escrow_token("a:1", NOW), TokenUse.USED)
        await self.store.delete_old(NOW + 601 * SECOND)
        self.assertEqual(await self.store.use_escrow_token("c:1", NOW), TokenUse.NEW)
