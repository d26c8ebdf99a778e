"""The key that signs checkpoints, and when they are signed."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from twisted.trial.unittest import SynchronousTestCase

from identree.app.checkpoints import Checkpoints, SigningKey
from identree.core import audit, checkpoints
from identree.core.audit import Sealed
from identree.core.events import UserSignedOut
from tests.fakes import memory_store

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


class KeyTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.private, self.public = self.directory / "audit.key", self.directory / "audit.pub"

    def load(self) -> SigningKey:
        return SigningKey.load_or_create(str(self.private), str(self.public))

    def refused(self, *parts: str) -> None:
        before = {path: path.read_bytes() for path in self.directory.iterdir() if path.is_file()}
        error = self.assertRaises(ValueError, self.load)
        for part in parts:
            self.assertIn(part, str(error))
        after = {path: path.read_bytes() for path in before}
        self.assertEqual(before, after)

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def test_made(self) -> None:
        """A missing key is made: the private half for its owner only, the public one for everybody."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        key = self.load()
        self.assertEqual((self.mode(self.private), self.mode(self.public)), (0o600, 0o644))
        public = load_pem_public_key(self.public.read_bytes())
        assert isinstance(public, Ed25519PublicKey)
        public.verify(key.sign(b"x"), b"x")
        self.assertEqual(key.id, checkpoints.key_id(public.public_bytes_raw()))
        self.assertEqual([path for path in self.directory.iterdir() if path.suffix == ".new"], [])

    def test_kept(self) -> None:
        """It is the same the next time, and the files are as they were."""
        first = self.load()
        files = self.private.read_bytes(), self.public.read_bytes()
        self.assertEqual(self.load().id, first.id)
        self.assertEqual((self.private.read_bytes(), self.public.read_bytes()), files)

    def test_public_again(self) -> None:
        """A public key that somebody moved away is written again."""
        first = self.load()
        pem = self.public.read_bytes()
        self.public.unlink()
        self.assertEqual(self.load().id, first.id)
        self.assertEqual(self.public.read_bytes(), pem)

    def test_private_gone(self) -> None:
        """Without the private half, which may be in a backup, no other key takes its place."""
        self.load()
        self.private.unlink()
        self.refused("IDENTREE_AUDIT_SIGNING_KEY", str(self.private), "Put it back from the backup")
        self.assertFalse(self.private.exists())

    def test_exposed(self) -> None:
        """A private key that others can read, or a group write, proves nothing."""
        self.load()
        for mode in (0o644, 0o604, 0o602, 0o620):
            self.private.chmod(mode)
            self.refused(f"run: chmod 600 {self.private}")
        for mode in (0o600, 0o400, 0o440):
            self.private.chmod(mode)
            self.load()

    def test_linked(self) -> None:
        """A link to the key is followed, as container platforms mount it, and its target's rights count."""
        key = self.load()
        real = self.directory / "real.key"
        self.private.rename(real)
        self.private.symlink_to(real)
        self.assertEqual(self.load().id, key.id)
        real.chmod(0o644)
        self.refused("chmod 600")

    def test_dangling(self) -> None:
        """A dangling link is a mistake to be told, no place for a new key."""
        self.private.symlink_to(self.directory / "nowhere")
        self.refused("cannot be read")
        self.assertFalse((self.directory / "nowhere").exists())

    def test_no_key(self) -> None:
        """What holds no such key is refused, and stays as it is; its content is nowhere."""
        encrypted = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        )
        other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for content in (b"", b"top secret", encrypted, other, b"x" * (1 << 20)):
            self.private.write_bytes(content)
            self.private.chmod(0o600)
            error = self.assertRaises(ValueError, self.load)
            self.assertIn(str(self.private), str(error))
            self.assertNotIn("secret", str(error))
            self.assertEqual(self.private.read_bytes(), content)
            self.assertFalse(self.public.exists())

    def test_not_a_file(self) -> None:
        """A FIFO does not hold the start, and a directory is none."""
        os.mkfifo(self.private, 0o600)
        self.refused("no file with a key")
        self.private.unlink()
        self.private.mkdir(0o700)
        self.refused("cannot be read (Is a directory)")

    def test_wrong_halves(self) -> None:
        """Halves of two keys are not believed."""
        self.load()
        other = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.private.write_bytes(other)
        self.refused("is not the public key of")
        self.public.write_bytes(b"nonsense")
        self.refused("no Ed25519 public key")

    def test_no_directory(self) -> None:
        """A directory that is not there is said."""
        self.private = self.directory / "none" / "audit.key"
        self.refused("cannot be made", "its directory must exist and be writable")

    def test_leftover(self) -> None:
        """What somebody who died at this left behind is no hindrance."""
        (self.directory / ".audit.key.new").write_bytes(b"half a k")
        self.load()
        self.assertEqual([path for path in self.directory.iterdir() if path.suffix == ".new"], [])

    def test_together(self) -> None:
        """Of servers that start at once on one volume, one makes the key and all have it."""
        ids: list[str] = []
        threads = [threading.Thread(target=lambda: ids.append(self.load().id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((len(ids), len(set(ids))), (8, 1))


class SigningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = NOW
        self.private = Ed25519PrivateKey.generate()
        self.key = SigningKey(self.private)
        self.store = memory_store()
        self.addCleanup(lambda: self.successResultOf(self.store.stop()))

    def sign(self, key: SigningKey | None = None) -> datetime | None:
        signing = Checkpoints(self.store, self.store.outbox, key or self.key, lambda: self.now)
        signed: datetime | None = self.successResultOf(signing.sign())
        return signed

    def event(self) -> Sealed:
        self.successResultOf(self.store.record([UserSignedOut(at=self.now, username="alice")]))
        return self.store.log.records[-1]

    def test_empty(self) -> None:
        """A chain without records needs none."""
        self.sign()
        self.assertEqual(self.store.events, [])

    def test_signed(self) -> None:
        """A checkpoint says where the chain stands, names the key and is signed with it."""
        last = self.event()
        self.sign()
        record = self.store.log.records[-1]
        values = json.loads(record.plain)
        self.assertEqual((values["event"], values["username"], values["code"]), ("audit_checkpoint", "", self.key.id))
        statement = checkpoints.parse(values["reason"])
        standing = statement.standing
        self.assertEqual((standing.instance, standing.seq, standing.hash), (self.store.instance, last.seq, last.hash))
        self.assertEqual(audit.timestamp(standing.time), values["timestamp"])
        self.private.public_key().verify(statement.signature, checkpoints.signed_bytes(standing))

    def test_idle(self) -> None:
        """Where nothing has happened since, none is added, also after a restart; but one a day."""
        self.event()
        self.sign()
        for hours in (1, 1, 21):
            self.now += timedelta(hours=hours)
            self.sign()
        self.assertEqual(len(self.store.events), 2)
        self.now += timedelta(hours=1)
        self.sign()
        self.assertEqual(self.store.events[1:], ["audit_checkpoint", "audit_checkpoint"])

    def test_something_happened(self) -> None:
        """Each event since the last one is a reason for another."""
        for _ in range(3):
            self.event()
            self.sign()
        self.assertEqual(self.store.events, ["user_signed_out", "audit_checkpoint"] * 3)

    def test_says_when(self) -> None:
        """It tells when the chain was really signed last, so that what watches its age is not told too much."""
        self.assertIsNone(self.sign())
        self.event()
        self.assertEqual(self.sign(), NOW.replace(microsecond=0))
        self.now += timedelta(hours=5)
        self.assertEqual(self.sign(), NOW.replace(microsecond=0))
        self.event()
        self.assertEqual(self.sign(), NOW.replace(microsecond=0) + timedelta(hours=5))

    def test_new_key(self) -> None:
        """A new key vouches for itself at once."""
        self.event()
        self.sign()
        self.sign(SigningKey(Ed25519PrivateKey.generate()))
        self.assertEqual(len(self.store.events), 3)

    def test_clock_set_back(self) -> None:
        """A checkpoint from the future does not keep others away."""
        self.event()
        self.sign()
        self.now -= timedelta(hours=1)
        self.sign()
        self.assertEqual(len(self.store.events), 3)

    def test_head_was_cut_off(self) -> None:
        """A chain whose records retention has taken away is signed by its head alone."""
        last = self.event()
        self.store.connection.execute("DELETE FROM outbox")
        self.sign()
        values = json.loads(self.store.log.records[-1].plain)
        self.assertEqual(checkpoints.parse(values["reason"]).standing.hash, last.hash)
