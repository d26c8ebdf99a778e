"""
The host registry: which hosts there are, their secrets and who may use ``sudo`` on them (spec/storage section 13).

Pure: the caller reads the file. Of the secrets only SHA-256 digests are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from identree.core.names import normalised_hostname
from identree.core.tokens import same

EVERYBODY = "*"

_NAME = re.compile(r"[a-z0-9._-]{1,253}")
_USER = re.compile(r"[a-zA-Z0-9._-]{1,64}|\*")
_GROUP = re.compile(r"[a-zA-Z0-9._-]{1,64}")
# As for the shared secret; identree makes 64 characters.
MIN_SECRET = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """
    :ivar name: normalised.
    :ivar digest: SHA-256 of the secret.
    :ivar users: user names, or ``*`` for all; empty: nobody.
    :ivar group: the label that policies match, or empty.
    """

    name: str
    digest: bytes = field(repr=False)
    users: frozenset[str]
    group: str = ""


class HostRegistry:
    """
    An immutable registry. While it is empty it is disabled: callers ask :attr:`enabled` first, since a disabled
    registry knows nobody and so answers no to every question.

    :param closed: enabled although it is empty: no host may ask.
    :ivar dropped: names in the file that are no host names, or have no entry; the caller warns.
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
            if value is None or not _NAME.fullmatch(name):
                dropped.append(spelling)
                continue
            if name in entries:
                raise ValueError(f"host {name}: two entries differ only in their spelling; remove one")
            entries[name] = _entry(name, value)
        if document and not entries:
            raise ValueError("the host registry has entries, but none with a valid host name")
        return cls(entries, tuple(dropped))

    def succeeded_by(self, after: HostRegistry) -> HostRegistry:
        """
        What counts when the file says ``after`` from now on. An enabled registry never becomes a disabled one while
        the server runs: removing the last host would open every host to the global secret. It is closed instead.
        """
        return HostRegistry({}, after.dropped, closed=True) if self.enabled and not after.enabled else after

    @property
    def enabled(self) -> bool:
        return bool(self._entries) or self._closed

    def __len__(self) -> int:
        return len(self._entries)

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


def _entry(name: str, value: object) -> HostEntry:
    if not isinstance(value, dict):
        raise ValueError(f"host {name}: must be an object with secret and users")
    secret, users, group = value.get("secret"), value.get("users"), value.get("group")
    if not isinstance(secret, str) or len(secret.encode("utf-8", "surrogatepass")) < MIN_SECRET:
        raise ValueError(f"host {name}: secret must be a string of at least {MIN_SECRET} characters")
    users = [] if users is None else users
    if not isinstance(users, list) or not all(isinstance(u, str) and _USER.fullmatch(u) for u in users):
        raise ValueError(f'host {name}: users must be a list of user names, or ["*"]')
    group = "" if group is None else group
    if not isinstance(group, str) or (group and not _GROUP.fullmatch(group)):
        raise ValueError(f"host {name}: group must be 1 to 64 letters, digits, dots, underscores and hyphens")
    digest = sha256(secret.encode("utf-8", "surrogatepass")).digest()
    return HostEntry(name=name, digest=digest, users=frozenset(users), group=group)
