"""
The audit record: its two serialisations and the hash chain (spec/audit-and-metrics sections 1 to 3).

Two keys are added after the known ones, each absent when empty: ``instance``, the identity of the chain, and
``request_id``, which log lines of the same request carry. Every replica has a chain of its own, which goes on across
restarts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import NoReturn

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
    ("request_id", False),
)

_SURROGATE = re.compile("[\ud800-\udfff]")

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


def fields(event: Event, request_id: str = "") -> dict[str, str]:
    """The part of the record that is known before it has a place in a chain; what the outbox stores."""
    return {
        "timestamp": timestamp(event.at),
        "event": event.kind,
        "username": event.username,
        "hostname": event.hostname,
        "code": event.code,
        "actor": event.actor,
        "reason": event.reason,
        "remote_addr": event.remote_addr,
        "request_id": request_id,
    }


def plain(record: Mapping[str, object]) -> str:
    """P-form of a record whose keys are in order."""
    text = _ENCODE(record)
    # json.dumps leaves U+007F raw, as the contract wants, and lone surrogates, which UTF-8 cannot carry: they stand
    # for invalid bytes, one each
    if text.isascii():
        return text
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return _SURROGATE.sub(r"\\ufffd", text)


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


# -- reading records back -------------------------------------------------------------------------------------------
_HASH = re.compile("[0-9a-f]{64}")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# An escaped U+FFFD, which stands for an invalid byte: behind an even number of backslashes.
_ESCAPED_REPLACEMENT = re.compile(r"(?<!\\)((?:\\\\)*)\\ufffd")


class Malformed(ValueError):
    """A line that is not a record as identree writes it; the message says in plain words why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """
    What a verifier needs of a record.

    :ivar prev_hash: empty when the record has none.
    :ivar hash: of its C-form, lower-case hex.
    """

    instance: str
    seq: int
    prev_hash: str
    timestamp: str
    hash: str


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise Malformed("a key stands there twice")
    return record


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is no JSON")


_DECODE = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant).decode


def read(raw: bytes) -> Link:
    """
    One line of a log, in P-form or C-form, without its newline.

    The hash is taken over the line's own text: ``<``, ``>`` and ``&`` can stand only inside strings, so escaping them
    there is all that the C-form needs.

    :raise Malformed: it is no record, or not in the one form in which records are written.
    """
    try:
        text = raw.decode()
        record = _DECODE(text)
    except Malformed:
        raise
    except UnicodeDecodeError:
        raise Malformed("it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise Malformed("it is no JSON object") from None
    if not isinstance(record, dict):
        raise Malformed("it is no JSON object")
    _check_keys(record)
    c_form = canonical(text)
    if canonical(plain(record)) != canonical(_ESCAPED_REPLACEMENT.sub("\\1\ufffd", text)):
        raise Malformed("it is not written as identree writes it (spaces or escapes differ)")
    return Link(
        instance=str(record.get("instance", "")),
        seq=record["seq"],
        prev_hash=str(record.get("prev_hash", "")),
        timestamp=str(record["timestamp"]),
        hash=sha256(c_form.encode()).hexdigest(),
    )


def _check_keys(record: Mapping[str, object]) -> None:
    """:raise Malformed: a key is unknown, missing, misplaced, of the wrong type or has an impossible value."""
    known = [key for key, _ in KEYS]
    for key in record:
        if key not in known:
            raise Malformed(f"it has an unknown key {key[:40]!r}")
    for key, always in KEYS:
        if key not in record:
            if always:
                raise Malformed(f"it has no {key!r}")
        elif key == "seq":
            seq = record[key]
            if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 1 << 64:
                raise Malformed("its 'seq' is no whole number from 0 to 2^64-1")
        elif not isinstance(record[key], str):
            raise Malformed(f"its {key!r} is no text")
        elif not always and not record[key]:
            raise Malformed(f"its {key!r} is empty, where identree leaves the key out")
    if list(record) != [key for key in known if key in record]:
        raise Malformed("its keys are not in the order in which identree writes them")
    if "prev_hash" in record and not _HASH.fullmatch(str(record["prev_hash"])):
        raise Malformed("its 'prev_hash' is not 64 lower-case hexadecimal digits")
    if ("prev_hash" in record) != (record["seq"] != 0):
        raise Malformed("the record with seq 0, and only that, has no 'prev_hash'")
    if not _TIMESTAMP.fullmatch(str(record["timestamp"])):
        raise Malformed("its 'timestamp' is not of the form 2026-01-02T03:04:05Z")
    if record["source"] != SOURCE:
        raise Malformed(f"its 'source' is not {SOURCE!r}")
