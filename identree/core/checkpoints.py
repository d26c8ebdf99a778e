"""
Signed checkpoints of the audit chain (issue 4 section 2; spec/audit-and-metrics section 15.1).

A checkpoint is an ordinary record, ``audit_checkpoint``: its ``code`` names the key, its ``reason`` is a statement that
says where the chain stood, with an Ed25519 signature (RFC 8032). The chain itself is unkeyed, and whoever can rewrite a
log can recompute it; a copy of one checkpoint, kept elsewhere, is enough to find that.

Signing needs a library, so it happens in other rooms; here stands what is signed and how it is written.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

KIND = "audit_checkpoint"
# Characters of a record's reason (spec/audit-and-metrics section 1).
MOST_CHARACTERS = 500
SIGNATURE_BYTES = 64
KEY_BYTES = 32
KEY_ID_DIGITS = 16

# No signature over these bytes can be taken for one over anything else.
_DOMAIN = b"identree audit checkpoint v1\n"
_TIME_FORM = "%Y-%m-%dT%H:%M:%SZ"
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATEMENT = re.compile(
    r"seq=(?P<seq>0|[1-9][0-9]{0,19}) hash=(?P<hash>[0-9a-f]{64})"
    r" time=(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)"
    rf" instance=(?P<instance>{_INSTANCE.pattern}) sig=(?P<sig>[A-Za-z0-9_-]{{86}})",
    re.ASCII,
)


class BadStatement(ValueError):
    """What should be a checkpoint's statement is none; the message says in plain words why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """
    Where a chain stood: what a checkpoint vouches for.

    :ivar seq: of the last record that it covers.
    :ivar hash: that record's, 64 lower-case hexadecimal digits; it covers all before it.
    :ivar time: when it was signed, aware UTC, whole seconds.
    """

    instance: str
    seq: int
    hash: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A checkpoint's ``reason``: what it vouches for, and an Ed25519 signature over :func:`signed_bytes` of it."""

    standing: Standing
    signature: bytes


def key_id(public_key: bytes) -> str:
    """
    The name of a key.

    :param public_key: its 32 raw bytes.
    :returns: the first 16 hexadecimal digits of their SHA-256.
    """
    return sha256(public_key).hexdigest()[:KEY_ID_DIGITS]


def signed_bytes(standing: Standing) -> bytes:
    """What a checkpoint's signature is over: a line per field, so that no two standings give the same bytes."""
    text = f"instance={standing.instance}\nseq={standing.seq}\nhash={standing.hash}\ntime={_text(standing.time)}\n"
    return _DOMAIN + text.encode("ascii")


def statement(standing: Standing, signature: bytes) -> str:
    """
    The ``reason`` of a checkpoint.

    :raise BadStatement: a part could not be read back.
    """
    signed = urlsafe_b64encode(signature).rstrip(b"=").decode("ascii")
    text = (
        f"seq={standing.seq} hash={standing.hash} time={_text(standing.time)} instance={standing.instance} sig={signed}"
    )
    if parse(text) != Statement(standing=standing, signature=signature):
        raise BadStatement("a checkpoint's time must be in UTC and whole seconds")
    return text


def parse(reason: str) -> Statement:
    """
    Read a statement back, in exactly the form in which it is written.

    :raise BadStatement: anything else.
    """
    if len(reason) > MOST_CHARACTERS:
        raise BadStatement(f"a checkpoint's statement has at most {MOST_CHARACTERS} characters")
    match = _STATEMENT.fullmatch(reason)
    if match is None:
        raise BadStatement(
            "a checkpoint's statement is not of the form "
            "'seq=N hash=HEX time=2026-01-02T03:04:05Z instance=ID sig=BASE64URL'"
        )
    seq = int(match["seq"])
    if seq >= 1 << 64:
        raise BadStatement("a checkpoint's seq is no whole number from 0 to 2^64-1")
    try:
        time = datetime.strptime(match["time"], _TIME_FORM).replace(tzinfo=UTC)
    except ValueError:
        raise BadStatement("a checkpoint's time does not exist") from None
    signature = urlsafe_b64decode(match["sig"] + "==")
    if urlsafe_b64encode(signature).rstrip(b"=").decode("ascii") != match["sig"]:
        # the last digit has four bits to spare, and two texts for one signature would be one too many
        raise BadStatement("a checkpoint's signature is not written as base64url writes it")
    standing = Standing(instance=match["instance"], seq=seq, hash=match["hash"], time=time)
    return Statement(standing=standing, signature=signature)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime(_TIME_FORM)
