"""
Who and what gets an entry (spec/ldap section 2.6): one judgement that people, private groups, memberships and sudo
rules all follow.

A name belongs to the one who was created first. The others are withheld, and reported, until the name is free: two
entries with one name would make hosts fight over it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from identree.directory.draft import Kind
from identree.directory.slices import SLICE
from identree.directory.source import Source, SourceGroup, SourceUser

_USERNAME = re.compile(r"[a-zA-Z0-9._-]{1,64}", re.ASCII)
_GROUP_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)

# In any case: hosts compare user names without it. The last one is everybody to sudo.
RESERVED_USERNAMES = frozenset(
    "root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc gnats nobody sshd "
    "systemd-network systemd-resolve messagebus _apt ntp postfix dovecot all".split()
)
RESERVED_GROUP_NAMES = frozenset(
    "root wheel sudo admin adm shadow disk kmem tty tape daemon bin sys staff operator sshd docker lxd libvirt kvm "
    "all".split()
)
# sudo reads the rule of this name as global options of the host
RESERVED_RULE_NAME = "defaults"

# Why something has no entry. ``{name}`` is the name concerned, ``{other}`` the id of the one who has it.
WITHHELD_MESSAGES: Mapping[str, str] = {
    "invalid_username": "the user name may have only 1 to 64 ASCII letters, digits, dots, underscores and hyphens",
    "reserved_username": "the user name belongs to the operating system",
    "username_taken": "an older account has this user name, perhaps in other case ({other})",
    "name_taken_by_group": "an older group has this name ({other})",
    "invalid_group_name": "a group name has at most 32 of a-z, 0-9, dot, underscore and hyphen, and begins with a "
    "letter or underscore",
    "reserved_group_name": "the group name belongs to the operating system",
    "group_name_taken": "an older group has this name ({other})",
    "name_taken_by_person": "an older account has this name for its private group ({other})",
    "private_group_reserved": "the private group is left out, as its name belongs to the operating system",
    "no_number": "no POSIX number could be assigned",
    "rule_name_taken": "an earlier rule is for the same group",
    "rule_not_served": "the rule is not served: {other}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """
    Something of the source that has no entry, and why.

    :ivar kind: what it would have been.
    :ivar source_id: its id in the source; the group's name for a rule of a file.
    :ivar key: of :data:`WITHHELD_MESSAGES`.
    :ivar other: the id of the one who has the name, or another detail; may be empty.
    """

    kind: Kind
    source_id: str
    name: str
    key: str
    other: str = ""

    def text(self) -> str:
        """One English sentence part."""
        return WITHHELD_MESSAGES[self.key].format(name=self.name, other=self.other)


def username_problem(name: str) -> str:
    """Key of :data:`WITHHELD_MESSAGES`, or empty when the name may be served."""
    # a home directory named after either of the two would be another one's
    if not _USERNAME.fullmatch(name) or name in (".", ".."):
        return "invalid_username"
    return "reserved_username" if name.lower() in RESERVED_USERNAMES else ""


def valid_group_name(name: str) -> bool:
    """Whether it has the form of a group's name, reserved or not."""
    return _GROUP_NAME.fullmatch(name) is not None


def group_name_problem(name: str) -> str:
    """Key of :data:`WITHHELD_MESSAGES`, or empty when the name may be served."""
    if not _GROUP_NAME.fullmatch(name):
        return "invalid_group_name"
    return "reserved_group_name" if name in RESERVED_GROUP_NAMES else ""


def has_private_group(username: str) -> bool:
    """
    Whether a person of this valid name has a private group of the same name.

    One called ``docker`` has none, but keeps the account: only as a group's name does the word give rights on a host.
    """
    return username.lower() not in RESERVED_GROUP_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """
    :ivar people: by id, in source order, those with an entry; disabled ones too.
    :ivar groups: by id, in source order, those with an entry.
    """

    people: Mapping[str, SourceUser]
    groups: Mapping[str, SourceGroup]
    withheld: tuple[Withheld, ...]


def judge(source: Source, uids: Mapping[str, int], gids: Mapping[str, int]) -> Generator[None, None, Judgement]:
    """
    Decide about everybody. Of a repeated id one entry at most is made, for the first that may have one.

    :param uids: user numbers by person's id.
    :param gids: group numbers by group's id, and by person's id for private groups.
    """
    withheld: list[Withheld] = []
    people: dict[str, SourceUser] = {}
    names: dict[str, SourceUser] = {}
    reserved: list[SourceUser] = []
    work = 0
    for user in source.users:
        work += 1
        if work >= SLICE:
            work = 0
            yield
        name, id = user.username, user.id
        problem, other = username_problem(name), ""
        if not problem:
            folded = name.lower()
            holder = names.setdefault(folded, user)
            if holder is not user:
                if holder.id == id:
                    continue
                problem, other = "username_taken", holder.id
            elif id not in uids or id not in gids:
                # it keeps the name meanwhile: a number may be found for it later
                problem = "no_number"
            elif id in people:
                del names[folded]
                continue
            else:
                people[id] = user
                if folded in RESERVED_GROUP_NAMES:
                    reserved.append(user)
                continue
        withheld.append(Withheld(kind=Kind.PERSON, source_id=user.id, name=name, key=problem, other=other))
    groups: dict[str, SourceGroup] = {}
    holders: dict[str, SourceGroup] = {}
    seen: set[str] = set()
    for group in source.groups:
        work += 4
        if work >= SLICE:
            work = 0
            yield
        if group.id in seen:
            continue
        seen.add(group.id)
        problem, other = group_name_problem(group.name), ""
        if not problem:
            holder_group = holders.setdefault(group.name, group)
            person = names.get(group.name)
            if holder_group is not group:
                problem, other = "group_name_taken", holder_group.id
            elif person is not None and not _created(group.created_at) < _created(person.created_at):
                problem, other = "name_taken_by_person", person.id
            else:
                if person is not None and people.pop(person.id, None) is not None:
                    withheld.append(
                        Withheld(
                            kind=Kind.PERSON,
                            source_id=person.id,
                            name=person.username,
                            key="name_taken_by_group",
                            other=group.id,
                        )
                    )
                # a person's id would be the key of the private group's number
                if group.id in gids and group.id not in people:
                    groups[group.id] = group
                else:
                    problem = "no_number"
        if problem:
            withheld.append(Withheld(kind=Kind.GROUP, source_id=group.id, name=group.name, key=problem, other=other))
    withheld += (
        Withheld(kind=Kind.PRIVATE_GROUP, source_id=user.id, name=user.username, key="private_group_reserved")
        for user in reserved
        if user.id in people
    )
    return Judgement(people=people, groups=groups, withheld=tuple(withheld))


def _created(text: str) -> float:
    """Unix seconds of an RFC 3339 time; one that is missing or unreadable is later than every other."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return math.inf
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
