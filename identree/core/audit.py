"""
The audit record: its two serialisations and the hash chain (spec/audit-and-metrics sections 1 to 3).

One key is added after the known ones: ``instance``, the identity of the chain, absent when empty. Every replica has a
chain of its own, which goes on across restarts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from identree.core.events import Event

SOURCE = "identree"

# Keys of the record in their binding order; those marked False are left out when empty.
KEYS: tuple[tuple[str, bool], ...] = (
    ("seq", True),
    ("prev_hash", False),
    ("timestamp", True),
    ("event", True),
    ("username", True),
    ("hostname", False),
    ("code", False),
    ("actor", False),
    ("reason", False),
    ("remote_addr", False),
    ("source", True),
    ("version", True),
    ("instance", False),
)

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Head:
    """
    Where a chain stands: the number that the next record gets and the hash of the last one (empty before the first).
    """

    next_seq: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """
    A record with its place in a chain.

    :ivar plain: the P-form, without newline: what the JSON log and Splunk get.
    :ivar canonical: the C-form: what is hashed, and what syslog and Loki get.
    :ivar hash: lower-case hex SHA-256 of ``canonical``.
    """

    instance: str
    seq: int
    plain: bytes
    canonical: bytes
    hash: str


def timestamp(at: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fields(event: Event) -> dict[str, str]:
    """The part of the record that the event itself knows; what the outbox stores."""
    return {
        "timestamp": timestamp(event.at),
        "event": event.kind,
        "username": event.username,
        "hostname": event.hostname,
        "code": event.code,
        "actor": event.actor,
        "reason": event.reason,
        "remote_addr": event.remote_addr,
    }


def plain(record: Mapping[str, object]) -> str:
    """P-form of a record whose keys are in order."""
    text = _ENCODE(record)
    # json.dumps leaves U+007F raw, as the contract wants, and lone surrogates, which UTF-8 cannot carry
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not text.isascii() else text


def canonical(plain_text: str) -> str:
    """C-form from P-form: the three characters can stand only inside strings."""
    return plain_text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def ordered(values: Mapping[str, object]) -> dict[str, object]:
    """A record in the binding key order, empty optional keys left out, unknown keys kept at the end."""
    known = {key for key, _ in KEYS}
    record = {key: values[key] for key, always in KEYS if key in values and (always or values[key] != "")}
    record.update((key, value) for key, value in values.items() if key not in known)
    return record


def seal(head: Head, event_fields: Mapping[str, str], *, version: str, instance: str = "") -> tuple[Head, Sealed]:
    """Give an event its ``seq`` and ``prev_hash``; returns the new head and the record."""
    record = ordered(
        {
            "seq": head.next_seq,
            "prev_hash": head.hash,
            **event_fields,
            "source": SOURCE,
            "version": version,
            "instance": instance,
        }
    )
    p_form = plain(record)
    c_form = canonical(p_form).encode()
    digest = sha256(c_form).hexdigest()
    sealed = Sealed(instance=instance, seq=head.next_seq, plain=p_form.encode(), canonical=c_form, hash=digest)
    return Head(head.next_seq + 1, digest), sealed
