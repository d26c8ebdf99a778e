"""Entries before they are stamped and encoded: what the builders make and the snapshot takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Canonical attribute name and its values in UTF-8, in the order in which they are sent.
Attributes = tuple[tuple[str, tuple[bytes, ...]], ...]


class Kind(Enum):
    """What an entry is; the value stands in its key and in metrics."""

    ROOT = "root"
    CONTAINER = "container"
    PERSON = "person"
    GROUP = "group"
    PRIVATE_GROUP = "private"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Draft:
    """
    :ivar key: identity across refreshes and renames, such as ``person:<source id>``.
    :ivar dn: RFC 4514, as it is sent.
    :ivar attributes: user attributes and ``entryUUID``, no other operational ones; never an attribute without a value.
    """

    kind: Kind
    key: str
    dn: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Stamp:
    """
    When an entry changed, as sssd needs it (spec/ldap section 11.1, traps).

    :ivar usn: change number: ``entryUSN``, and as unix seconds ``modifyTimestamp``; greater than any stamp shown before
        it was made, in any branch.
    :ivar created: change number of its first sight; as unix seconds ``createTimestamp``.
    :ivar digest: of the draft that it was made for (:func:`identree.directory.stamps.digest`).
    """

    usn: int
    created: int
    digest: bytes
