"""
What the directory is built from: people and groups as PocketID has them (spec/ldap sections 2.6 and 9.1).

Values are as they were received; :mod:`identree.directory.accounts` decides what of them is served.
"""

from __future__ import annotations

from dataclasses import dataclass

Claims = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUser:
    """
    :ivar id: PocketID's, opaque and case-sensitive; it never changes.
    :ivar claims: custom claims in the order received, repeated keys included.
    :ivar created_at: RFC 3339; decides who keeps a contested name. Empty where the source does not tell, which PocketID
        does not: then a group with an age keeps it.
    """

    id: str
    username: str
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    disabled: bool = False
    claims: Claims = ()
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGroup:
    """
    :ivar member_ids: ids of people, in PocketID's order; ids of nobody may be among them.
    """

    id: str
    name: str
    friendly_name: str = ""
    claims: Claims = ()
    member_ids: tuple[str, ...] = ()
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Everything, people and groups each by creation, then id."""

    users: tuple[SourceUser, ...] = ()
    groups: tuple[SourceGroup, ...] = ()
