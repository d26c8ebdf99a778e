"""
The host registry: which hosts there are, their secrets and who may use ``sudo`` on them (spec/storage section 13).

Pure: the caller reads the file. Of the secrets only SHA-256 digests are kept.

The file is what older programs read, too. Where only the digest of a secret is known, it stands as ``secret_sha256``,
and ``secret`` has a text that is nobody's secret. It cannot be left out: a program that compares texts would then let
in who sends none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from identree.core import names
from identree.core.errors import Invalid, Refused, Unauthorized
from identree.core.names import normalised_hostname
from identree.core.tokens import same

EVERYBODY = "*"

# Names that mean something else than a host (spec/storage section 13).
RESERVED = frozenset("localhost admin root identree api www mail ftp ssh vpn gateway firewall router".split())
# Hosts in a registry, and users listed for one host: all of it is in memory, about 2 kB for a host.
MOST_HOSTS = 20_000
MOST_USERS = 1000
# Random bytes of a secret and of an enrolment token; both are written as hex.
SECRET_BYTES = 32
# Tells a token from a host's secret, to people and to programs that look for secrets in the wrong places.
TOKEN_PREFIX = "identree-enrol-"  # noqa: S105
TOKEN_CHARACTERS = len(TOKEN_PREFIX) + 2 * SECRET_BYTES

_NAME = re.compile(r"[a-z0-9._-]{1,253}")
_USER = re.compile(r"[a-zA-Z0-9._-]{1,64}|\*")
_GROUP = re.compile(r"[a-zA-Z0-9._-]{1,64}")
# As for the shared secret; identree makes 64 characters.
MIN_SECRET = 32

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(re.escape(TOKEN_PREFIX) + r"[0-9a-f]{64}")
# What the file has instead of a secret, followed by hex digits that depend on the digest only.
_NO_SECRET = "not-the-secret-"  # noqa: S105
# How the file says that there is no such time.
_NEVER = "0001-01-01T00:00:00Z"


class HostExists(Refused):
    """The host is registered already; ``detail`` is its name."""

    key = "host_exists"


class UnknownHost(Refused):
    """The host is not registered; ``detail`` is its name."""

    key = "unknown_host"


class FirstHost(Refused):
    """Nothing was ever registered, and with the first host all the others are refused: it must be wanted."""

    key = "first_host"


class TooManyHosts(Refused):
    """The registry, or the list of enrolment tokens, is full."""

    key = "too_many_hosts"


class BadToken(Unauthorized):
    """
    The enrolment token gives nothing.

    :ivar why: for the log; a stranger is not told. ``unknown``, ``expired``, ``used``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class OtherHost(Refused):
    """The enrolment token is good, but for another host."""

    key = "hostname_mismatch"


class RegistryOff(Refused):
    """A host's own secret would not be accepted: the registry is switched off."""

    key = "registry_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """
    :ivar name: normalised.
    :ivar digest: SHA-256 of the secret.
    :ivar users: user names, or ``*`` for all; empty: nobody.
    :ivar group: the label that policies match, or empty.
    :ivar registered_at: None: not known.
    :ivar certificate_ends: of the last one that it was given, as far as the registry was told; None: there is none.
    """

    name: str
    digest: bytes = field(repr=False)
    users: frozenset[str]
    group: str = ""
    registered_at: datetime | None = None
    certificate_ends: datetime | None = None

    def means(self, other: HostEntry) -> bool:
        """Whether both let in the same, whatever they say about times."""
        return (self.name, self.users, self.group) == (other.name, other.users, other.group) and same(
            self.digest, other.digest
        )


class HostRegistry:
    """
    An immutable registry. While it is empty it is disabled: callers ask :attr:`enabled` first, since a disabled
    registry knows nobody and so answers no to every question.

    :param closed: enabled although it is empty: no host may ask.
    :ivar dropped: names in the file that are no host names, or have no entry; the caller warns.
    :ivar exported: it was read from a file that :meth:`export` has made.
    """

    def __init__(
        self, entries: Mapping[str, HostEntry], dropped: tuple[str, ...] = (), *, closed: bool = False
    ) -> None:
        self._entries = dict(entries)
        # by digest: a table of random-looking keys that no caller can choose tells nothing by its timing, and every
        # request of a stranger would otherwise cost a comparison per host
        self._by_digest = {entry.digest: entry.name for entry in self._entries.values()}
        self._closed = closed
        self.dropped = dropped
        self.exported = False

    @classmethod
    def of(cls, entries: Iterable[HostEntry], *, closed: bool = False) -> HostRegistry:
        return cls({entry.name: entry for entry in entries}, closed=closed)

    @classmethod
    def empty(cls) -> HostRegistry:
        return cls({})

    @classmethod
    def parse(cls, raw: bytes) -> HostRegistry:
        """
        :raise ValueError: not the JSON of a registry. The server must not start then: taken for an empty one, it would
            open every host to the global secret. The text names the host, never a secret.
        """
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"the host registry is not JSON: {type(e).__name__}") from None
        if not isinstance(document, dict):
            raise ValueError("the host registry must be an object of host names")
        entries: dict[str, HostEntry] = {}
        dropped: list[str] = []
        for spelling, value in document.items():
            name = normalised_hostname(spelling)
            if value is None or not _NAME.fullmatch(name) or name.endswith("."):
                dropped.append(spelling)
                continue
            if name in entries:
                raise ValueError(f"host {name}: two entries differ only in their spelling; remove one")
            entries[name] = _entry(name, value)
        if document and not entries:
            raise ValueError("the host registry has entries, but none with a valid host name")
        registry = cls(entries, tuple(dropped))
        registry.exported = any(isinstance(value, dict) and _DIGEST_KEY in value for value in document.values())
        return registry

    def export(self) -> bytes:
        """The file of this registry. :meth:`parse` reads the same registry from it."""
        return (json.dumps({name: _members(self._entries[name]) for name in self.names}, indent=2) + "\n").encode()

    def means(self, other: HostRegistry) -> bool:
        """Whether both have the same hosts, secrets, users and groups."""
        return self.names == other.names and all(
            entry.means(other._entries[name]) for name, entry in self._entries.items()
        )

    @property
    def enabled(self) -> bool:
        return bool(self._entries) or self._closed

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[HostEntry, ...]:
        """By name."""
        return tuple(self._entries[name] for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def entry(self, hostname: str) -> HostEntry | None:
        """The entry of a host, however its name is spelled."""
        return self._entries.get(normalised_hostname(hostname))

    def matches(self, hostname: str, secret: bytes) -> bool:
        """Whether ``secret`` is the one of this host."""
        entry = self.entry(hostname)
        return entry is not None and same(entry.digest, sha256(secret).digest())

    def any_host(self, secret: bytes) -> str | None:
        """The host whose secret this is."""
        return self._by_digest.get(sha256(secret).digest())

    def lists(self, hostname: str, username: str) -> bool:
        """Whether the user may use ``sudo`` on the host."""
        entry = self.entry(hostname)
        return entry is not None and (username in entry.users or EVERYBODY in entry.users)

    def group(self, hostname: str) -> str:
        """The host's label, or empty."""
        entry = self.entry(hostname)
        return "" if entry is None else entry.group


# -- one entry --------------------------------------------------------------------------------------------------------
def digest_of(secret: str) -> bytes:
    """What is kept of a host's secret or of an enrolment token."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def registrable(hostname: str) -> str:
    """
    The name as it is stored. :raise Invalid: it is no host name, or one that means something else.
    """
    name = names.hostname(hostname)
    if name.endswith("."):
        # one dot means nothing; of two the second would be lost when the name is looked up, and nobody found
        raise Invalid("hostname: must not end in two dots")
    if name in RESERVED:
        raise Invalid(f"hostname: {name} is reserved; use the name that the host has in the network")
    if name.isdigit() or not name.strip("._-"):
        raise Invalid("hostname: must have a letter; use the name that the host has in the network")
    return name


def checked_users(users: Sequence[str]) -> frozenset[str]:
    """:raise Invalid: one is neither a user name nor ``*``, or there are none, or too many."""
    if not users or len(users) > MOST_USERS or not all(_USER.fullmatch(user) for user in users):
        raise Invalid(
            f"users: 1 to {MOST_USERS} names, separated by commas, each of 1 to 64 letters, digits, dots, underscores "
            "and hyphens; or * for everybody"
        )
    return frozenset(users)


def checked_group(group: str) -> str:
    """:raise Invalid: it is no group label."""
    if not _GROUP.fullmatch(group):
        raise Invalid("group: 1 to 64 letters, digits, dots, underscores and hyphens")
    return group


def token_digest(token: str) -> bytes:
    """:raise BadToken: it does not even look like an enrolment token."""
    if not _TOKEN.fullmatch(token):
        raise BadToken("unknown")
    return digest_of(token)


_DIGEST_KEY = "secret_sha256"


def _entry(name: str, value: object) -> HostEntry:
    if not isinstance(value, dict):
        raise ValueError(f"host {name}: must be an object with secret and users")
    users, group = value.get("users"), value.get("group")
    digest = _digest(name, value)
    users = [] if users is None else users
    if not isinstance(users, list) or not all(isinstance(u, str) and _USER.fullmatch(u) for u in users):
        raise ValueError(f'host {name}: users must be a list of user names, or ["*"]')
    group = "" if group is None else group
    if not isinstance(group, str) or (group and not _GROUP.fullmatch(group)):
        raise ValueError(f"host {name}: group must be 1 to 64 letters, digits, dots, underscores and hyphens")
    return HostEntry(
        name=name,
        digest=digest,
        users=frozenset(users),
        group=group,
        registered_at=_time(value.get("registered_at")),
        certificate_ends=_time(value.get("cert_expires_at")),
    )


def _digest(name: str, value: Mapping[str, object]) -> bytes:
    if _DIGEST_KEY in value:
        text = value[_DIGEST_KEY]
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise ValueError(f"host {name}: {_DIGEST_KEY} must be 64 lower-case hexadecimal digits")
        return bytes.fromhex(text)
    secret = value.get("secret")
    if not isinstance(secret, str) or len(secret.encode("utf-8", "surrogatepass")) < MIN_SECRET:
        raise ValueError(f"host {name}: secret must be a string of at least {MIN_SECRET} characters")
    if secret.startswith(_NO_SECRET):
        # of an export from which something has dropped the key that it did not know
        raise ValueError(f"host {name}: the secret is missing; put the file back as identree had written it")
    return digest_of(secret)


def _time(value: object) -> datetime | None:
    """What the file says of a time; it decides nothing, so what cannot be read is not known."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        at = datetime.fromisoformat(value)
        # the database keeps whole seconds
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        return None
    return at if at.year >= 1970 else None


def _members(entry: HostEntry) -> dict[str, object]:
    """An entry as the file has it."""
    members: dict[str, object] = {
        "secret": _NO_SECRET + sha256(_NO_SECRET.encode() + entry.digest).hexdigest(),
        _DIGEST_KEY: entry.digest.hex(),
        "users": sorted(entry.users),
    }
    if entry.group:
        members["group"] = entry.group
    for key, at in (("registered_at", entry.registered_at), ("cert_expires_at", entry.certificate_ends)):
        members[key] = at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else _NEVER
    return members
