"""
Load for LDAP servers: sssd's searches, encoded once, asked by the compiled generator beside this file.

The generator is compiled because the machine has few processors and the servers under test need few microseconds for
an answer: one in Python would be what limits, and would take from slapd's threads the processor that they need.
"""

from __future__ import annotations

import struct
import subprocess
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.client import percentile
from tests.e2e.ldaptools import SUB, Client, integer, message, paged_control, parse_filter, search_request, text, tlv

SOURCE = Path(__file__).with_suffix(".c")
# Four octets each, as the generator's: a message's head then depends on its length alone.
_ID = b"\x01\x00\x00\x00"
PAGE_SIZE = 1000
# As sssd 2.8 writes them, the doubled one included (spec/sssd-queries).
USER_ATTRIBUTES = (
    "objectClass uid userPassword uidNumber gidNumber gecos homeDirectory loginShell krbPrincipalName cn "
    "modifyTimestamp modifyTimestamp shadowLastChange shadowMin shadowMax shadowWarning shadowInactive shadowExpire "
    "shadowFlag krbLastPwdChange krbPasswordExpiration pwdAttribute authorizedService accountExpires "
    "userAccountControl nsAccountLock host rhost loginDisabled loginExpirationTime loginAllowedTimeMap sshPublicKey "
    "userCertificate;binary mail"
).split()
MEMBERSHIP_ATTRIBUTES = "objectClass cn userPassword gidNumber modifyTimestamp modifyTimestamp".split()
GROUP_ATTRIBUTES = "objectClass cn userPassword gidNumber memberuid modifyTimestamp modifyTimestamp".split()
SUDO_ATTRIBUTES = (
    "objectClass objectClass cn sudoCommand sudoHost sudoUser sudoOption sudoRunAs sudoRunAsUser sudoRunAsGroup "
    "sudoNotBefore sudoNotAfter sudoOrder modifyTimestamp"
).split()
_POSITIVE_UID = "(&(uidNumber=*)(!(uidNumber=0)))"
_GROUP = "(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0)))"
SUDO_FILTER = (
    "(&(objectClass=sudoRole)(|(&(!(sudoHost=*))(cn=defaults))(sudoHost=ALL)(sudoHost=web1)"
    "(sudoHost=web1.example.com)(sudoHost=192.0.2.2)(sudoHost=192.0.2.0/24)(sudoHost=fd00::2)(sudoHost=fd00::/64)"
    "(sudoHost=fe80::fc:ff:fe00:1)(sudoHost=fe80::/64)(sudoHost=+*)))"
)
ALL_USERS_FILTER = "(&(objectclass=posixAccount)(uid=*)(uidNumber=*)(gidNumber=*))"


@dataclass(frozen=True, slots=True)
class Query:
    """
    One search and what must come back.

    :ivar head: of the message, up to its id's value. :ivar tail: all that follows the id.
    :ivar contains: bytes that each entry has, such as a DN. :ivar entries: how many there must be.
    """

    head: bytes
    tail: bytes
    contains: bytes
    entries: int


def query(
    base: str, filter: str, attributes: Sequence[str], contains: str, entries: int = 1, paged: bool = False
) -> Query:
    """:param paged: with the control for the first page, where sssd adds it."""
    controls = [paged_control(PAGE_SIZE)] if paged else []
    operation = search_request(base, SUB, parse_filter(filter), attributes)
    whole = message(int.from_bytes(_ID, "big"), operation, *controls)
    place = whole.index(b"\x02\x04" + _ID) + 2
    return Query(whole[:place], whole[place + 4 :], contains.encode(), entries)


class Asks:
    """What sssd asks of a directory of ours below ``base``, spelled and paged as it does."""

    def __init__(self, base: str) -> None:
        self._people, self._groups, self._sudoers = f"ou=people,{base}", f"ou=groups,{base}", f"ou=sudoers,{base}"

    def passwd_by_name(self, name: str, entries: int = 1) -> Query:
        filter = f"(&(uid={name})(objectclass=posixAccount)(uid=*){_POSITIVE_UID})"
        return query(self._people, filter, USER_ATTRIBUTES, f"uid={name},ou=people,", entries)

    def passwd_by_id(self, number: int, name: str) -> Query:
        filter = f"(&(uidNumber={number})(objectclass=posixAccount)(uid=*){_POSITIVE_UID})"
        return query(self._people, filter, USER_ATTRIBUTES, f"uid={name},ou=people,")

    def person_of_memberships(self, name: str) -> Query:
        """The first of the searches of ``id``."""
        filter = f"(&(uid={name})(objectclass=posixAccount){_POSITIVE_UID})"
        return query(self._people, filter, USER_ATTRIBUTES, f"uid={name},ou=people,")

    def memberships(self, name: str, groups: int) -> Query:
        """The second one; so many groups have the person as a member."""
        filter = f"(&(memberuid={name}){_GROUP})"
        return query(self._groups, filter, MEMBERSHIP_ATTRIBUTES, ",ou=groups,", groups, paged=True)

    def group_by_name(self, name: str) -> Query:
        return query(self._groups, f"(&(cn={name}){_GROUP})", GROUP_ATTRIBUTES, f"cn={name},ou=groups,")

    def group_by_id(self, number: int, name: str) -> Query:
        return query(self._groups, f"(&(gidNumber={number}){_GROUP})", GROUP_ATTRIBUTES, f"cn={name},ou=groups,")

    def rules(self, count: int) -> Query:
        """The sudo provider's full refresh."""
        return query(self._sudoers, SUDO_FILTER, SUDO_ATTRIBUTES, ",ou=sudoers,", count, paged=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    :ivar latencies: nanoseconds from sending a search to having its whole answer, in order.
    :ivar wrong: answers that were not what was expected. :ivar described: the first of them.
    :ivar busy: share of the time that the generator did not wait; near 1, it is what limits.
    """

    count: int
    wrong: int
    seconds: float
    busy: float
    latencies: array[int]
    described: Sequence[str] = field(default=())

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def percentile_seconds(self, share: float) -> float:
        return percentile(self.latencies, share) / 1e9

    def __str__(self) -> str:
        p50, p99 = (self.percentile_seconds(share) * 1e6 for share in (0.5, 0.99))
        return f"{self.rate:,.0f}/s, p50 {p50:,.0f} µs, p99 {p99:,.0f} µs"


class Generator:
    """
    :param directory: for the compiled program and its files.
    :param dn: whom the connections are bound as.
    """

    def __init__(self, directory: Path, dn: str, password: str) -> None:
        self._directory, self._dn, self._password = directory, dn, password
        self._program = directory / "ldapload"
        subprocess.run(["cc", "-O2", "-o", self._program, SOURCE], check=True)

    def plan(self, name: str, queries: Iterable[Query]) -> Path:
        """The queries as the generator reads them."""
        bind = message(1, tlv(0x60, integer(3), text(self._dn), text(self._password, 0x80)))
        asked = list(queries)
        path = self._directory / f"{name}.plan"
        with path.open("wb") as file:
            file.write(_counted(bind) + struct.pack("=I", len(asked)))
            for one in asked:
                file.write(_counted(one.head) + _counted(one.tail))
                file.write(struct.pack("=I", one.entries) + _counted(one.contains))
        return path

    def start(
        self, port: int, plan: Path, connections: int, window: int = 1, seconds: float = 0
    ) -> subprocess.Popen[str]:
        """
        Begin to ask; :meth:`finish` waits for the end.

        :param window: searches under way on each connection; sssd has one connection and waits for none of them.
        :param seconds: ask the plan's queries round and round for so long; 0 asks each of them once.
        """
        arguments = [str(port), str(connections), str(window), str(seconds), str(plan), str(plan) + ".latencies"]
        return subprocess.Popen([self._program, *arguments], stdout=subprocess.PIPE, text=True)

    @staticmethod
    def finish(running: subprocess.Popen[str]) -> Outcome:
        """:raise RuntimeError: the generator gave up, and has said why."""
        output, _ = running.communicate()
        if running.returncode:
            raise RuntimeError("the load ended early")
        *described, numbers = output.splitlines()
        count, wrong, seconds, waited = map(float, numbers.split())
        latencies: array[int] = array("q")
        assert isinstance(running.args, list)
        latencies.frombytes(Path(str(running.args[-1])).read_bytes())
        return Outcome(int(count), int(wrong), seconds, 1 - waited / seconds, latencies, described)

    def run(self, port: int, plan: Path, connections: int, window: int = 1, seconds: float = 0) -> Outcome:
        return self.finish(self.start(port, plan, connections, window, seconds))


def _counted(value: bytes) -> bytes:
    return struct.pack("=I", len(value)) + value


def enumerate_all(
    port: int, dn: str, password: str, base: str, filter: str, attributes: Sequence[str]
) -> tuple[int, float]:
    """All entries in sssd's pages, on one connection; how many there were, and how many seconds it took."""
    operation = search_request(base, SUB, parse_filter(filter), attributes)
    with Client(port) as client:
        assert client.bind(dn, password) == 0
        count, cookie, begun = 0, b"", time.perf_counter()
        while True:
            entries, code, then = client.count(operation, paged_control(PAGE_SIZE, cookie))
            assert code == 0, f"a page is answered with {code}"
            count += entries
            if not then:
                return count, time.perf_counter() - begun
            cookie = then
