"""
``identree directory check``: ask a running directory what sssd asks (spec/ldap section 11), and say what came and how
long it took. A client like any other, over a blocking socket; only the command line uses it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TextIO
from urllib.parse import urlsplit

from ldaptor import ldapfilter
from ldaptor.protocols import pureldap
from ldaptor.protocols.pureber import (
    BERDecoderContext,
    BERInteger,
    BEROctetString,
    BERSequence,
    berDecodeMultiple,
    berDecodeObject,
)

PLAIN_PORT, TLS_PORT = 389, 636
# sssd's own limits for a bind, a search and an enumeration, in seconds.
SEARCH_SECONDS = 6.0
ENUMERATION_SECONDS = 60.0
# A longer reply is none.
MESSAGE_BYTES = 16 << 20
PAGE = 1000
PAGED = b"1.2.840.113556.1.4.319"
PASSWORD_POLICY = b"1.3.6.1.4.1.42.2.27.8.5.1"
START_TLS = b"1.3.6.1.4.1.1466.20037"
WHO_AM_I = b"1.3.6.1.4.1.4203.1.11.3"

ROOT_ATTRIBUTES = (
    "* altServer namingContexts supportedControl supportedExtension supportedFeatures supportedLDAPVersion "
    "supportedSASLMechanisms domainControllerFunctionality defaultNamingContext lastUSN highestCommittedUSN"
).split()
USER_ATTRIBUTES = (
    "objectClass uid userPassword uidNumber gidNumber gecos homeDirectory loginShell krbPrincipalName cn "
    "modifyTimestamp entryUSN shadowLastChange shadowMin shadowMax shadowWarning shadowInactive shadowExpire "
    "shadowFlag krbLastPwdChange krbPasswordExpiration pwdAttribute authorizedService accountExpires "
    "userAccountControl nsAccountLock host rhost loginDisabled loginExpirationTime loginAllowedTimeMap sshPublicKey "
    "userCertificate;binary mail"
).split()
GROUP_ATTRIBUTES = "objectClass cn userPassword gidNumber memberuid modifyTimestamp entryUSN".split()
SUDO_ATTRIBUTES = (
    "objectClass cn sudoCommand sudoHost sudoUser sudoOption sudoRunAs sudoRunAsUser sudoRunAsGroup sudoNotBefore "
    "sudoNotAfter sudoOrder entryUSN"
).split()

_RESULTS = {
    1: "operationsError",
    2: "protocolError",
    3: "timeLimitExceeded",
    4: "sizeLimitExceeded",
    7: "authMethodNotSupported",
    8: "strongerAuthRequired",
    12: "unavailableCriticalExtension",
    32: "noSuchObject",
    49: "invalidCredentials",
    50: "insufficientAccessRights",
    51: "busy",
    52: "unavailable",
    53: "unwillingToPerform",
}


class CheckFailed(Exception):
    """The directory cannot be asked; the message says why and what to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    :ivar url: ``ldap://host:port`` or ``ldaps://host:port``.
    :ivar ca_file: whose certificates the server may have; empty: those of the system.
    :ivar cert_file, key_file: our own certificate for mTLS; empty: none.
    """

    url: str
    base_dn: str
    bind_dn: str = ""
    password: str = field(default="", repr=False)
    start_tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """
    One reply.

    :ivar entries: DN and attributes by lower-case name.
    """

    code: int
    message: str
    entries: list[tuple[str, dict[str, list[bytes]]]]
    cookie: bytes = b""


# as ldaptor's own client decodes
_PLAIN = BERDecoderContext()
_MESSAGES = pureldap.LDAPBERDecoderContext_TopLevel(
    inherit=pureldap.LDAPBERDecoderContext_LDAPMessage(
        fallback=pureldap.LDAPBERDecoderContext(fallback=_PLAIN),
        inherit=pureldap.LDAPBERDecoderContext(fallback=_PLAIN),
    )
)


class Client:
    """One connection; every call waits for its answer."""

    def __init__(self, target: Target) -> None:
        """:raise CheckFailed: no connection, or no trust."""
        self._target = target
        self._number = 0
        self._buffer = b""
        url = urlsplit(target.url)
        if url.scheme not in ("ldap", "ldaps") or not url.hostname:
            raise CheckFailed(f"{target.url!r} is not ldap://host or ldaps://host")
        self._host = url.hostname
        try:
            port = url.port or (TLS_PORT if url.scheme == "ldaps" else PLAIN_PORT)
            self._socket: Any = socket.create_connection((self._host, port), timeout=SEARCH_SECONDS)
        except (OSError, ValueError) as problem:
            raise CheckFailed(f"{target.url} does not answer: {problem}. Is the directory on, at that port?") from None
        try:
            if url.scheme == "ldaps":
                self._encrypt()
            elif target.start_tls:
                reply = self._exchange(pureldap.LDAPExtendedRequest(requestName=START_TLS))
                self._expect_success("StartTLS", reply)
                self._encrypt()
        except CheckFailed:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def _encrypt(self) -> None:
        target = self._target
        try:
            trusting = ssl.create_default_context(cafile=target.ca_file or None)
            if target.cert_file:
                trusting.load_cert_chain(target.cert_file, target.key_file or None)
            self._socket = trusting.wrap_socket(self._socket, server_hostname=self._host)
        except (OSError, ssl.SSLError) as problem:
            raise CheckFailed(f"{target.url}: no TLS: {problem}. Check --ca, --cert and --key.") from None

    def bind(self) -> None:
        """:raise CheckFailed: refused."""
        target = self._target
        request = pureldap.LDAPBindRequest(version=3, dn=target.bind_dn, auth=target.password)
        # as sssd does: not critical
        reply = self._exchange(request, [(PASSWORD_POLICY, False, None)])
        self._expect_success(f"bind as {target.bind_dn or 'nobody'}", reply)

    def who_am_i(self) -> str:
        """:raise CheckFailed: refused."""
        reply = self._exchange(pureldap.LDAPExtendedRequest(requestName=WHO_AM_I))
        self._expect_success("Who am I", reply)
        return (reply.response or b"").decode("utf-8", "replace")

    def search(
        self,
        base: str,
        text: str,
        attributes: Sequence[str] = (),
        *,
        scope: int = pureldap.LDAP_SCOPE_wholeSubtree,
        page: bytes | None = None,
    ) -> Found:
        """
        :param text: the filter.
        :param page: None: not paged; else the cookie of the page before, empty at first.
        :raise CheckFailed: no answer.
        """
        request = pureldap.LDAPSearchRequest(
            baseObject=base, scope=scope, filter=ldapfilter.parseFilter(text), attributes=list(attributes)
        )
        controls = None
        if page is not None:
            value = BERSequence([BERInteger(PAGE), BEROctetString(page)]).toWire()
            controls = [(PAGED, False, value)]
            self._socket.settimeout(ENUMERATION_SECONDS)
        self._send(request, controls)
        entries: list[tuple[str, dict[str, list[bytes]]]] = []
        while True:
            message = self._receive()
            answer = message.value
            if isinstance(answer, pureldap.LDAPSearchResultEntry):
                pairs = {name.decode().lower(): list(values) for name, values in answer.attributes}
                entries.append((answer.objectName.decode("utf-8", "replace"), pairs))
            elif isinstance(answer, pureldap.LDAPSearchResultDone):
                self._socket.settimeout(SEARCH_SECONDS)
                message_text = answer.errorMessage or b""
                return Found(
                    code=answer.resultCode,
                    message=message_text.decode("utf-8", "replace"),
                    entries=entries,
                    cookie=_cookie(message.controls),
                )
            else:
                raise CheckFailed(f"the answer to a search was a {type(answer).__name__}")

    def _expect_success(self, what: str, reply: Any) -> None:
        if getattr(reply, "resultCode", None) != 0:
            message = (getattr(reply, "errorMessage", b"") or b"").decode("utf-8", "replace")
            raise CheckFailed(f"{what}: {result_name(getattr(reply, 'resultCode', -1))} {message}".rstrip())

    def _exchange(self, request: Any, controls: Any = None) -> Any:
        self._send(request, controls)
        return self._receive().value

    def _send(self, request: Any, controls: Any) -> None:
        self._number += 1
        try:
            self._socket.sendall(pureldap.LDAPMessage(request, controls=controls, id=self._number).toWire())
        except OSError as problem:
            raise CheckFailed(f"{self._target.url} has closed the connection: {problem}") from None

    def _receive(self) -> Any:
        while (size := _frame(self._buffer)) is None or len(self._buffer) < size:
            try:
                more = self._socket.recv(65536)
            except (TimeoutError, OSError) as problem:
                raise CheckFailed(f"no answer within sssd's patience: {problem}") from None
            if not more:
                raise CheckFailed(f"{self._target.url} has closed the connection; its log says why")
            self._buffer += more
            if len(self._buffer) > MESSAGE_BYTES:
                raise CheckFailed("an answer is larger than any that sssd would take")
        frame, self._buffer = self._buffer[:size], self._buffer[size:]
        message, _ = berDecodeObject(_MESSAGES, frame)
        return message


def _frame(data: bytes) -> int | None:
    """The length of the first message, header included; None while even that has not come."""
    if len(data) < 2:
        return None
    if data[1] < 0x80:
        return 2 + data[1]
    width = data[1] & 0x7F
    return None if len(data) < 2 + width else 2 + width + int.from_bytes(data[2 : 2 + width], "big")


def _cookie(controls: Any) -> bytes:
    for name, _, value in controls or ():
        if name == PAGED and value:
            [sequence] = berDecodeMultiple(value, _PLAIN)
            cookie = sequence[1].value
            return cookie if isinstance(cookie, bytes) else bytes(cookie)
    return b""


def result_name(code: int) -> str:
    return "success" if code == 0 else f"{_RESULTS.get(code, 'result')} ({code})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom to look up; empty: the first that the directory lists."""

    user: str = ""
    group: str = ""
    host: str = ""


class _Report:
    def __init__(self, out: TextIO, monotonic: Callable[[], float]) -> None:
        self._out, self._monotonic = out, monotonic
        self.failures = 0

    def ask(self, name: str, question: Callable[[], Found], right: Callable[[Found], str]) -> Found:
        """
        :param right: says what is wrong with the answer; empty: nothing.
        """
        began = self._monotonic()
        found = question()
        took = (self._monotonic() - began) * 1000
        problem = "" if found.code in (0, 32) else f"{result_name(found.code)} {found.message}".rstrip()
        problem = problem or right(found)
        self.failures += bool(problem)
        said = f"FAIL  {problem}" if problem else "ok"
        self._out.write(f"{name:<34} {len(found.entries):>7} entries {took:>9.2f} ms  {said}\n")
        return found


def check(target: Target, subject: Subject, out: TextIO, monotonic: Callable[[], float]) -> int:
    """
    Ask everything that sssd asks.

    :returns: the exit status: 0 when every answer was as sssd needs it, 1 otherwise.
    """
    try:
        with closing(Client(target)) as client:
            return _check(client, target, subject, out, monotonic)
    except CheckFailed as problem:
        out.write(f"FAIL  {problem}\n")
        return 1


def _check(client: Client, target: Target, subject: Subject, out: TextIO, monotonic: Callable[[], float]) -> int:
    report = _Report(out, monotonic)
    base = target.base_dn
    people, groups, sudoers = (f"ou={name},{base}" for name in ("people", "groups", "sudoers"))
    out.write(f"{target.url}, base {base}\n")
    root = report.ask(
        "root DSE, before the bind",
        lambda: client.search("", "(objectClass=*)", ROOT_ATTRIBUTES, scope=pureldap.LDAP_SCOPE_baseObject),
        lambda found: "" if len(found.entries) == 1 else "sssd learns nothing of the server",
    )
    offered = {value for _, attributes in root.entries for value in attributes.get("supportedcontrol", [])}
    client.bind()
    out.write(f"{'who am I':<34} {client.who_am_i() or 'anonymous'}\n")

    everybody = report.ask(
        "enumerate people, paged",
        lambda: _all(
            client, people, "(&(objectclass=posixAccount)(uid=*)(uidNumber=*)(gidNumber=*))", USER_ATTRIBUTES, offered
        ),
        lambda found: "",
    )
    every_group = report.ask(
        "enumerate groups, paged",
        lambda: _all(
            client,
            groups,
            "(&(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))",
            GROUP_ATTRIBUTES,
            offered,
        ),
        lambda found: "",
    )
    if everybody.entries or subject.user:
        _check_person(client, report, people, groups, subject.user or _first(everybody, "uid"))
    if every_group.entries or subject.group:
        _check_group(client, report, groups, subject.group or _first(every_group, "cn"))
    host = _host_filter(subject.host or socket.gethostname())
    rules = report.ask(
        "sudo rules, full refresh",
        lambda: _all(client, sudoers, f"(&(objectClass=sudoRole){host})", SUDO_ATTRIBUTES, offered),
        lambda found: "" if found.code == 0 else "there is no sudoers branch",
    )
    newest = max((int(_one(attributes, "entryusn") or 0) for _, attributes in rules.entries), default=0)
    report.ask(
        "sudo rules, smart refresh",
        lambda: client.search(sudoers, f"(&(&(objectClass=sudoRole)(entryUSN>={newest + 1})){host})", SUDO_ATTRIBUTES),
        lambda found: "" if not found.entries else "rules that did not change come again",
    )
    for name, text in (
        ("services", "(&(objectclass=ipService)(cn=*)(ipServicePort=*)(ipServiceProtocol=*))"),
        ("a netgroup", "(&(cn=nosuch)(objectclass=nisNetgroup))"),
    ):
        report.ask(
            f"{name}, of which there are none",
            lambda text=text: client.search(base, text),  # type: ignore[misc]
            lambda found: "" if not found.entries else "something that is none came",
        )
    out.write("all well\n" if not report.failures else f"{report.failures} answers are not what sssd needs\n")
    return 1 if report.failures else 0


def _check_person(client: Client, report: _Report, people: str, groups: str, name: str) -> None:
    positive = "(&(uidNumber=*)(!(uidNumber=0)))"
    exactly_one = _counted(1)
    value = _escaped(name)
    person = report.ask(
        f"person {name} by name",
        lambda: client.search(people, f"(&(uid={value})(objectclass=posixAccount)(uid=*){positive})", USER_ATTRIBUTES),
        exactly_one,
    )
    if not person.entries:
        return
    dn, attributes = person.entries[0]
    uid, gid = _one(attributes, "uidnumber"), _one(attributes, "gidnumber")
    report.ask(
        f"person by uid {uid}",
        lambda: client.search(
            people, f"(&(uidNumber={uid})(objectclass=posixAccount)(uid=*){positive})", USER_ATTRIBUTES
        ),
        exactly_one,
    )
    report.ask(
        f"primary group, gid {gid}",
        lambda: client.search(
            groups,
            f"(&(gidNumber={gid})(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))",
            GROUP_ATTRIBUTES,
        ),
        exactly_one,
    )
    report.ask(
        "groups of that person",
        lambda: client.search(
            groups,
            f"(&(|(memberUid={value})(member={_escaped(dn)}))(objectClass=posixGroup)(cn=*)"
            "(&(gidNumber=*)(!(gidNumber=0))))",
            [name for name in GROUP_ATTRIBUTES if name != "memberuid"],
        ),
        lambda found: "",
    )
    report.ask(
        "access filter, on the person's DN",
        lambda: client.search(dn, f"(&(uid={value})(objectclass=posixAccount))", scope=pureldap.LDAP_SCOPE_baseObject),
        exactly_one,
    )


def _check_group(client: Client, report: _Report, groups: str, name: str) -> None:
    report.ask(
        f"group {name} by name",
        lambda: client.search(
            groups,
            f"(&(cn={_escaped(name)})(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))",
            GROUP_ATTRIBUTES,
        ),
        _counted(1),
    )


def _counted(wanted: int) -> Callable[[Found], str]:
    return lambda found: "" if len(found.entries) == wanted else f"sssd needs exactly {wanted}"


def _all(client: Client, base: str, text: str, attributes: Sequence[str], offered: set[bytes]) -> Found:
    """All pages, where the server offers them."""
    if PAGED not in offered:
        return client.search(base, text, attributes)
    entries: list[tuple[str, dict[str, list[bytes]]]] = []
    for found in _pages(client, base, text, attributes):
        entries += found.entries
    return Found(code=found.code, message=found.message, entries=entries)


def _pages(client: Client, base: str, text: str, attributes: Sequence[str]) -> Iterator[Found]:
    cookie = b""
    while True:
        found = client.search(base, text, attributes, page=cookie)
        yield found
        cookie = found.cookie
        if found.code != 0 or not cookie:
            return


def _first(found: Found, attribute: str) -> str:
    return _one(found.entries[0][1], attribute)


def _one(attributes: dict[str, list[bytes]], name: str) -> str:
    return (attributes.get(name) or [b""])[0].decode("utf-8", "replace")


def _escaped(value: str) -> str:
    """RFC 4515 section 3."""
    return "".join(f"\\{ord(c):02x}" if c in "*()\\\0" else c for c in value)


def _host_filter(name: str) -> str:
    names = dict.fromkeys((name.partition(".")[0], name))
    hosts = "".join(f"(sudoHost={_escaped(one)})" for one in names)
    return f"(|(&(!(sudoHost=*))(cn=defaults))(sudoHost=ALL){hosts}(sudoHost=+*))"
