"""
Entries of people, their private groups, and groups (spec/ldap sections 2.3 to 2.5 and 4).

Which of them exist is decided in :mod:`identree.directory.eligibility`.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Sequence

from identree.directory.draft import Attributes, Draft, Kind
from identree.directory.eligibility import valid_group_name
from identree.directory.layout import Layout
from identree.directory.source import Claims, SourceGroup, SourceUser

# Keys of one person, and bytes of one key; the deployed limits.
MAX_KEYS = 100
MAX_KEY_BYTES = 16_384
# Characters of a shell or home that a claim sets.
MAX_PATH_LENGTH = 256
# Items of one accessHosts or memberGroups claim.
MAX_CLAIM_ITEMS = 500

KEY_TYPES = (
    "ssh-rsa",
    "ssh-ed25519",
    "ssh-dss",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_KEY_STARTS = tuple(f"{type} " for type in KEY_TYPES)
_KEY_CLAIM = re.compile(r"sshPublicKey\d*", re.ASCII)

# What makes a text unfit for an attribute: the deployed servers' four, and halves of characters, which have no UTF-8.
_UNFIT = re.compile("[\x00\t\n\r\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SHELL = re.compile(r"/[a-zA-Z0-9/_.-]+", re.ASCII)
_ACCESS_HOST = re.compile(r"[a-zA-Z0-9._-]{1,255}", re.ASCII)
# Letters of European names that no decomposition takes to ASCII.
_LETTERS = str.maketrans(
    {
        "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
        "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ħ": "h", "Ħ": "H", "ı": "i", "’": "'", "–": "-",
    }
)  # fmt: skip

# Names the ids of private groups whose persons' ids are no UUIDs.
PRIVATE_GROUPS = uuid.UUID("6f1d0c0a-8d5e-5d0f-9a43-3f0f8d1f6c57")

# A day number long past, never 0: nslcd and pam_unix take 0 for "must be changed now". To leave the attribute out would
# please them too, but sssd's shadow password policy wants to see it. With shadowMax, day 1 runs out in 2243.
SHADOW_LAST_CHANGE = b"1"
# 1970-01-02: sssd's expire policy and nslcd both deny.
SHADOW_EXPIRED = b"1"

# Pairs that most entries share, made once.
_PERSON_CLASSES = ("objectClass", (b"top", b"posixAccount", b"shadowAccount", b"inetOrgPerson"))
_PERSON_CLASSES_KEYS = ("objectClass", (b"top", b"posixAccount", b"shadowAccount", b"inetOrgPerson", b"ldapPublicKey"))
_GROUP_CLASSES = ("objectClass", (b"top", b"posixGroup"))
# groupOfNames demands a member, so a group without people is none
_GROUP_OF_NAMES_CLASSES = ("objectClass", (b"top", b"posixGroup", b"groupOfNames"))
_SHADOW: Attributes = (
    ("shadowLastChange", (SHADOW_LAST_CHANGE,)),
    ("shadowMin", (b"0",)),
    ("shadowMax", (b"99999",)),
    ("shadowWarning", (b"7",)),
)
_ACTIVE = ("accountStatus", (b"active",))
_INACTIVE: Attributes = (("shadowExpire", (SHADOW_EXPIRED,)), ("accountStatus", (b"inactive",)))


def fit(text: str) -> str:
    """The text, or nothing when it has a character that no attribute may have."""
    return "" if _UNFIT.search(text) else text


def full_name(user: SourceUser) -> str:
    """First and last name, or the user name."""
    return f"{fit(user.first_name)} {fit(user.last_name)}".strip() or user.username


def gecos(name: str, username: str) -> str:
    """
    The full name for a line of passwd: ASCII, and without what would end the field or the line. A name that nothing is
    left of becomes the user name.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFKD", name.translate(_LETTERS)).encode("ascii", "ignore").decode()
    return " ".join(_CONTROL.sub(" ", name.replace(":", " ")).split()) or username


def shell(user: SourceUser, layout: Layout) -> str:
    """The last acceptable claim ``loginShell``, or the default."""
    found = layout.default_shell
    for key, value in user.claims:
        if key == "loginShell" and len(value) <= MAX_PATH_LENGTH and _SHELL.fullmatch(value):
            found = value
    return found


def home(user: SourceUser, layout: Layout) -> str:
    """The last acceptable claim ``homeDirectory``, or the default pattern with the user name."""
    found = layout.default_home.replace("%s", user.username, 1)
    if not found.startswith("/") or _UNFIT.search(found):
        found = "/tmp"  # noqa: S108 (what hosts are told, no file of ours)
    for key, value in user.claims:
        if key == "homeDirectory" and _home_allowed(value):
            found = value
    return found


def _home_allowed(path: str) -> bool:
    return (
        len(path) <= MAX_PATH_LENGTH
        and path.startswith("/")
        # a colon would end the field of a passwd line
        and not (":" in path or _UNFIT.search(path) or _CONTROL.search(path))
        and ".." not in path.split("/")
    )


def ssh_keys(claims: Claims) -> tuple[bytes, ...]:
    """Keys in claim order, unmodified, each once, at most :data:`MAX_KEYS`."""
    keys: dict[bytes, None] = {}
    for name, value in claims:
        if not name.startswith("sshPublicKey") or not _KEY_CLAIM.fullmatch(name):
            continue
        if not value.startswith(_KEY_STARTS) or _UNFIT.search(value):
            continue
        key = value.encode()
        if len(key) <= MAX_KEY_BYTES:
            keys[key] = None
        if len(keys) == MAX_KEYS:
            break
    return tuple(keys)


def access_hosts(claims: Claims) -> tuple[str, ...]:
    """A group's claim ``accessHosts``; the last one counts, without what cannot be a host's name."""
    text = _last(claims, "accessHosts")
    if not text:
        return ()
    return tuple(
        dict.fromkeys(
            item
            for item in _items(text)
            if item.upper() != "ALL" and not item.startswith(".") and _ACCESS_HOST.fullmatch(item)
        )
    )


def member_groups(claims: Claims) -> tuple[str, ...]:
    """A group's claim ``memberGroups``: names of groups whose people are members too."""
    text = _last(claims, "memberGroups")
    return tuple(dict.fromkeys(item for item in _items(text) if valid_group_name(item))) if text else ()


def _last(claims: Claims, wanted: str) -> str:
    value = ""
    for key, text in claims:
        if key.replace("\0", "") == wanted:
            value = text
    return value.replace("\0", "")


def _items(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())][:MAX_CLAIM_ITEMS]


def private_group_uuid(user_id: str) -> str:
    """``entryUUID`` of a person's private group: derived from the person's, so that it is as lasting, and another."""
    try:
        return str(uuid.uuid5(uuid.UUID(user_id), "private-group"))
    except ValueError:
        return str(uuid.uuid5(PRIVATE_GROUPS, user_id.encode("utf-8", "backslashreplace").decode()))


def person_dn(username: str, layout: Layout) -> str:
    return f"uid={username},{layout.people_dn}"


def group_dn(name: str, layout: Layout) -> str:
    """Of a group as well as of a private group, whose name is the person's."""
    return f"cn={name},{layout.groups_dn}"


def person_draft(
    user: SourceUser, uid: int, gid: int, hosts: tuple[bytes, ...], groups: tuple[bytes, ...], layout: Layout
) -> Draft:
    """
    A person's entry. A disabled one stays, marked so that hosts deny it, and without keys.

    :param hosts: values of ``host``.
    :param groups: values of ``memberOf``.
    """
    username = user.username
    name = username.encode()
    names = (name,)
    cn = full_name(user)
    keys = () if user.disabled else ssh_keys(user.claims)
    last, first, email = fit(user.last_name), fit(user.first_name), fit(user.email)
    attributes: list[tuple[str, tuple[bytes, ...]]] = [
        _PERSON_CLASSES_KEYS if keys else _PERSON_CLASSES,
        ("uid", names),
        ("cn", (cn.encode(),)),
        ("sn", (last.encode(),) if last else names),
    ]
    if first:
        attributes.append(("givenName", (first.encode(),)))
    if email:
        attributes.append(("mail", (email.encode(),)))
    attributes += (
        ("uidNumber", (b"%d" % uid,)),
        ("gidNumber", (b"%d" % gid,)),
        ("gecos", (gecos(cn, username).encode(),)),
        ("homeDirectory", (home(user, layout).encode(),)),
        ("loginShell", (shell(user, layout).encode(),)),
        *_SHADOW,
    )
    if user.disabled:
        attributes += _INACTIVE
    else:
        attributes.append(_ACTIVE)
    if hosts:
        attributes.append(("host", hosts))
    if keys:
        attributes.append(("sshPublicKey", keys))
    if groups:
        attributes.append(("memberOf", groups))
    attributes.append(("entryUUID", (_id(user.id),)))
    return Draft(Kind.PERSON, f"person:{user.id}", person_dn(username, layout), tuple(attributes))


def private_group_draft(user: SourceUser, gid: int, person: bytes, layout: Layout) -> Draft:
    """
    The group of one person that is the person's primary one. A disabled person's stays, so that hosts can name the
    group of the files left behind, but has no member.

    :param person: the person's DN.
    """
    names = (user.username.encode(),)
    bis = layout.schema == "rfc2307bis"
    attributes: list[tuple[str, tuple[bytes, ...]]] = [
        _GROUP_OF_NAMES_CLASSES if bis and not user.disabled else _GROUP_CLASSES,
        ("cn", names),
        ("gidNumber", (b"%d" % gid,)),
    ]
    if not user.disabled:
        attributes.append(("memberUid", names))
        if bis:
            attributes.append(("member", (person,)))
    attributes.append(("entryUUID", (private_group_uuid(user.id).encode(),)))
    return Draft(Kind.PRIVATE_GROUP, f"private:{user.id}", group_dn(user.username, layout), tuple(attributes))


def group_draft(group: SourceGroup, gid: int, names: Sequence[bytes], people: Sequence[bytes], layout: Layout) -> Draft:
    """
    A group's entry. It names its members twice in both schemas, as deployed: clients of either read one of them and
    pass over the other.

    :param names: user names of those of its members that count.
    :param people: their DNs.
    """
    label = fit(group.friendly_name) or group.name
    attributes: list[tuple[str, tuple[bytes, ...]]] = [
        _GROUP_OF_NAMES_CLASSES if names and layout.schema == "rfc2307bis" else _GROUP_CLASSES,
        ("cn", (group.name.encode(),)),
        ("description", (label.encode(),)),
        ("gidNumber", (b"%d" % gid,)),
    ]
    if names:
        attributes += (("memberUid", tuple(names)), ("member", tuple(people)))
    attributes.append(("entryUUID", (_id(group.id),)))
    return Draft(Kind.GROUP, f"group:{group.id}", group_dn(group.name, layout), tuple(attributes))


def _id(id: str) -> bytes:
    return id.encode("utf-8", "backslashreplace")
