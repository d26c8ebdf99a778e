"""
The key that signs checkpoints of the audit chain, and the signing (identree.core.checkpoints).

What a checkpoint proves rests on the public key and on copies of checkpoints that identree cannot reach: whoever has
this server has the private key too, but cannot change what was shipped before.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from twisted.logger import Logger

from identree.app.atomicfile import sync_directory
from identree.app.ports import Now
from identree.core import checkpoints
from identree.core.audit import Sealed
from identree.core.checkpoints import KIND, Standing
from identree.core.events import AuditCheckpoint
from identree.storage.interface import Feed, Store

SETTING = "IDENTREE_AUDIT_SIGNING_KEY"
PUBLIC_SETTING = "IDENTREE_AUDIT_VERIFY_KEY"
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
# Rights on a private key that are one too many. A group may read it: container platforms mount secrets that way.
FORBIDDEN_MODE = 0o037
# A key in PEM is some hundred bytes; nothing larger is one.
PEM_BYTES = 64 << 10
# A chain in which nothing happens gets a checkpoint once in this time, so that the age of the last one tells a quiet
# server from one that is gone, and no more, so that checkpoints do not vouch for nothing but each other.
IDLE = timedelta(days=1)


class SigningKey:
    """
    :ivar id: names the key in every checkpoint (:func:`identree.core.checkpoints.key_id`).
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.id = checkpoints.key_id(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, content: bytes) -> bytes:
        """An Ed25519 signature: 64 bytes, in some 50 microseconds."""
        return self._private.sign(content)

    @classmethod
    def load_or_create(
        cls,
        private_path: str,
        public_path: str,
        *,
        generate: Callable[[], Ed25519PrivateKey] = Ed25519PrivateKey.generate,
    ) -> SigningKey:
        """
        The key of the file, made when there is none; a missing public key is written. Of two servers that start at once
        on one volume, one makes it and both have it. What is there is never overwritten. Blocks.

        :param private_path: PEM (PKCS #8, RFC 8410), mode 0600.
        :param public_path: PEM (SubjectPublicKeyInfo), mode 0644.
        :raise ValueError: a file cannot be used or made, others can read the private key, or the public key is
            another's; says what to do.
        """
        if not os.path.lexists(private_path):
            if os.path.lexists(public_path):
                raise ValueError(
                    f"{SETTING}: {private_path} is missing, while {PUBLIC_SETTING} {public_path} is there. Put it back "
                    f"from the backup; or, to go on with a new key, move {public_path} to where the auditors keep it "
                    "(they need both keys from then on) and restart"
                )
            _generate(private_path, generate)
        private = _private(private_path)
        if not os.path.lexists(public_path):
            pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            with suppress(FileExistsError):  # another replica's, a moment ago; it is looked at below
                _made(PUBLIC_SETTING, public_path, pem, PUBLIC_MODE)
        raw, _ = _read(PUBLIC_SETTING, public_path)
        try:
            public = load_pem_public_key(raw)
        except ValueError:
            public = None
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError(
                f"{PUBLIC_SETTING}: {public_path} holds no Ed25519 public key in PEM form; move it away and restart"
            )
        if public.public_bytes_raw() != private.public_key().public_bytes_raw():
            raise ValueError(
                f"{PUBLIC_SETTING}: {public_path} is not the public key of {private_path}. If the private key is the "
                "right one, move the public key to where the auditors keep it (they need both) and restart"
            )
        return cls(private)


def _generate(path: str, generate: Callable[[], Ed25519PrivateKey]) -> None:
    pem = generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with suppress(FileExistsError):  # another replica was faster, and its key is everybody's
        _made(SETTING, path, pem, PRIVATE_MODE)


def _private(path: str) -> Ed25519PrivateKey:
    raw, mode = _read(SETTING, path)
    if mode & FORBIDDEN_MODE:
        raise ValueError(f"{SETTING}: {path} can be read or changed by others; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(
            f"{SETTING}: {path} holds no unencrypted Ed25519 private key in PEM form. Put it back from the backup, or "
            "move it away, and the public key with it, and restart to begin with a new one"
        )
    return key


def _read(setting: str, path: str) -> tuple[bytes, int]:
    """The content and the mode of a file, from one opening. :raise ValueError:"""
    # symbolic links are followed: container platforms mount secrets as links. O_NONBLOCK: a FIFO must not hold us.
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(PEM_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as problem:
        raise ValueError(
            f"{setting}: {path} cannot be read ({problem.strerror}); it must be readable for the user that identree "
            "runs as"
        ) from None
    if not stat.S_ISREG(status.st_mode) or len(raw) > PEM_BYTES:
        raise ValueError(f"{setting}: {path} is no file with a key in it")
    return raw, stat.S_IMODE(status.st_mode)


def _made(setting: str, path: str, content: bytes, mode: int) -> None:
    """
    A new file, whole or not at all, never in place of another.

    :raise FileExistsError: the name is taken.
    :raise ValueError: it cannot be made.
    """
    directory = os.path.dirname(path) or "."
    temporary = os.path.join(directory, f".{os.path.basename(path)}.new")
    try:
        # the lock orders writers on one volume; the file below it is whoever died at this one's, and goes
        with open(os.open(f"{temporary}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(temporary, flags, PRIVATE_MODE), "wb") as file:
                    os.fchmod(file.fileno(), mode)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                # unlike a rename, a link fails when the name is taken
                os.link(temporary, path)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)
            sync_directory(directory)
    except FileExistsError:
        raise
    except OSError as problem:
        raise ValueError(
            f"{setting}: {path} cannot be made ({problem.strerror}); its directory must exist and be writable for the "
            "user that identree runs as"
        ) from None


# -- signing ----------------------------------------------------------------------------------------------------------
class ChainFeed(Feed, Protocol):
    """The chain of this process."""

    @property
    def instance(self) -> str:
        """Its identity."""


class Checkpoints:
    """
    Adds checkpoints to the chain of this process; each replica signs its own.

    :param now: the wall clock; the checkpoint says when it was signed.
    """

    _log = Logger()

    def __init__(self, store: Store, feed: ChainFeed, key: SigningKey, now: Now) -> None:
        self._store = store
        self._feed = feed
        self._key = key
        self._now = now

    async def sign(self) -> datetime | None:
        """
        Vouch for everything that the chain holds now. Nothing is done for a chain without records, nor when its last
        record is a checkpoint with this key that is younger than a day (:data:`IDLE`): nothing has happened since.

        Events that are recorded meanwhile may stand between what is vouched for and the checkpoint.

        :returns: when the last checkpoint of the chain was signed, aware UTC; None for a chain without records.
        :raise StorageUnavailable: not signed; the next attempt covers as much.
        """
        head = await self._feed.head()
        if not head.next_seq:
            return None
        seq, now = head.next_seq - 1, self._now().astimezone(UTC).replace(microsecond=0)
        for record in await self._feed.after(seq - 1, 1):
            if record.seq == seq and (signed := self._signed(record, now)) is not None:
                return signed
        standing = Standing(instance=self._feed.instance, seq=seq, hash=head.hash, time=now)
        reason = checkpoints.statement(standing, self._key.sign(checkpoints.signed_bytes(standing)))
        await self._store.record([AuditCheckpoint(at=now, username="", code=self._key.id, reason=reason)])
        self._log.debug("audit: checkpoint at seq {seq}", seq=seq)
        return now

    def _signed(self, record: Sealed, now: datetime) -> datetime | None:
        """When it was signed, if it is a checkpoint that makes another one needless."""
        if b'"audit_checkpoint"' not in record.plain:
            return None
        values = json.loads(record.plain)
        if values.get("event") != KIND or values.get("code") != self._key.id:
            return None
        try:
            signed = checkpoints.parse(str(values.get("reason", ""))).standing.time
        except checkpoints.BadStatement:
            return None
        # one from the future, after a clock step, does not keep later ones away
        return signed if timedelta() <= now - signed < IDLE else None
