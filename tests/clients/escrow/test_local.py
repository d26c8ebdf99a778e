"""The local escrow back end: the published vectors, and nothing that is reported as stored and is not."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.escrow import Stored
from identree.clients.escrow.local import LocalBackend, SealingKey, Unreadable
from identree.core.errors import StorageUnavailable
from tests.clients.escrow.case import EscrowTestCase
from tests.fakes import memory_store

IKM = "0123456789abcdef0123456789abcdef"
SALT = "000102030405060708090a0b0c0d0e0f"
NONCE = bytes(range(12))
# of spec/notifications-and-policy section 8: salt, key, value
VECTORS = [
    (
        "",
        "6e0c21b9168f3dd87977b7e73b854cca5981c7e6c7c6db7813c54044125f22a5",
        "AAECAwQFBgcICQoLX491gCNnbK1GqX+5PW6mYP6f/bpmxGE4FUrH",
    ),
    (
        SALT,
        "391bfeee3cfad4185adaaac0987da4ae9494a05b252320134d9d68bff1f71772",
        "AAECAwQFBgcICQoLVUmhfKKf877hPIAUKxFOXNKTQNwqVqO+w/rs",
    ),
]


class KeyTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The published keys and values, both ways."""
        for salt, raw, value in VECTORS:
            key = SealingKey.derived(IKM, salt)
            self.assertEqual(key.raw.hex(), raw)
            self.assertEqual(key.seal("web-01", "s3cret-pass", NONCE), value)
            self.assertEqual(key.open("web-01", value), "s3cret-pass")

    def test_characters(self) -> None:
        """Another spelling of the same digits is another key."""
        self.assertNotEqual(SealingKey.derived(IKM.upper(), ""), SealingKey.derived(IKM, ""))

    def test_unusable(self) -> None:
        """Too short, not hexadecimal, too little salt."""
        for key, salt in ((IKM[:-1], ""), (IKM, "xyz"), (IKM, "abc"), (IKM, "ab" * 15)):
            with self.assertRaises(ValueError) as raised:
                SealingKey.derived(key, salt)
            self.assertNotIn(IKM[:-1], str(raised.exception))

    def test_unreadable(self) -> None:
        """Another host's, another key's, cut off, changed, no base64."""
        value = VECTORS[0][2]
        key = SealingKey.derived(IKM, "")
        changed = "B" + value[1:]
        for hostname, text in (("web-02", value), ("web-01", VECTORS[1][2]), ("web-01", changed), ("web-01", "")):
            self.assertRaises(Unreadable, key.open, hostname, text)
        for text in (value[:-4], value[:36], "?" + value[1:], value + "\n", value[:-1]):
            self.assertRaises(Unreadable, key.open, "web-01", text)

    def test_not_shown(self) -> None:
        """Its representation has nothing of it."""
        self.assertNotIn("6e0c", repr(SealingKey.derived(IKM, "")))


class LocalTests(EscrowTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.database = memory_store()
        self.nonces: list[bytes] = []
        self.backend = LocalBackend(SealingKey.derived(IKM, SALT), self.database, self.random_bytes)

    def random_bytes(self, count: int) -> bytes:
        self.nonces.append(len(self.nonces).to_bytes(count, "big"))
        return self.nonces[-1]

    def rows(self) -> list[Any]:
        return self.database.connection.execute("SELECT hostname, ciphertext FROM escrow_ciphertexts").fetchall()

    def test_round_trip(self) -> None:
        """One row per host, without ids, each time with a nonce of its own, and nothing to be read in it."""
        self.assertEqual(self.store("web1", "one"), Stored())
        first = self.rows()
        self.store("web1", "one")
        self.assertEqual(len(self.rows()), 1)
        self.assertNotEqual(self.rows(), first)
        self.assertEqual(self.retrieve("web1"), "one")
        self.assertEqual([len(nonce) for nonce in self.nonces], [12, 12])

    def test_old_value(self) -> None:
        """What an old server has stored is opened, in its spelling of the host."""
        key = SealingKey.derived(IKM, SALT)
        self.result(self.database.store_ciphertext("WEB-01", key.seal("WEB-01", "old", NONCE)))
        self.assertEqual(self.retrieve("WEB-01"), "old")

    def test_write_error(self) -> None:
        """A write that fails is a failure."""
        self.database.connection.execute("PRAGMA query_only = ON")
        self.failureResultOf(Deferred.fromCoroutine(self.backend.store("web1", "x")), StorageUnavailable)

    def test_unknown(self) -> None:
        """A host that has none."""
        self.assertIn("no password of this host", self.failed(self.backend.retrieve("web1", "", "")))

    def test_other_key(self) -> None:
        """With another key the message says which settings to look at."""
        self.store()
        self.backend = LocalBackend(SealingKey.derived("k" * 32, SALT), self.database, self.random_bytes)
        said = self.failed(self.backend.retrieve("web1", "", ""))
        self.assertIn("IDENTREE_ESCROW_HKDF_SALT", said)

    def test_unencodable(self) -> None:
        """A lone surrogate, which JSON can bring, is refused."""
        self.assertIn("no text that can be encoded", self.failed(self.backend.store("web1", "\ud800")))
        self.assertEqual(self.rows(), [])
