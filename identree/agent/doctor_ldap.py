"""
sssd and the directory it asks: its configuration, the connection with TLS and certificates, the bind, and whether a
person of the directory is known to this system. The directory is asked as sssd asks it, by a few messages of LDAP
(RFC 4511) that are written and read here.
"""

from __future__ import annotations

import os
import socket
import ssl

from identree.agent import certificates, doctor_tls
from identree.agent.config import ConfigError
from identree.agent.doctor_tls import Party, open_at, reason
from identree.agent.setup_files import Commands, SetupError, below, read, resolve, systemd_runs
from identree.agent.setup_sssd import NSSWITCH, SSSD_CONF, unprivileged, with_sss
from identree.agent.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.findings import Findings

SETUP = "identree setup --sssd --force"
PID_FILES = ("/run/sssd.pid", "/var/run/sssd.pid")
PLAIN_PORT = 389

MAX_MESSAGE_BYTES = 262144
# Of what a search may answer; one entry is asked for.
MAX_MESSAGES = 8
SEARCH_SECONDS = 8

# Tags of RFC 4511, and the results that mean something here.
_BIND, _SEARCH, _ENTRY, _DONE, _EXTENDED = 0x60, 0x63, 0x64, 0x65, 0x77
_SUCCESS, _SIZE_LIMIT, _WRONG_PASSWORD, _NO_RIGHTS = 0, 4, 49, 50
_STRONGER, _CONFIDENTIAL = 8, 13
_START_TLS = b"1.3.6.1.4.1.1466.20037"


class LdapError(OSError):
    """An answer, but no usable one."""


# sssd.conf


def domain(text: str) -> dict[str, str]:
    """The settings of identree's domain in ``sssd.conf``; empty when there is none."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1].strip().lower(), {})
        elif line and line[0] not in "#;" and "=" in line:
            key, _, value = line.partition("=")
            current[key.strip().lower()] = value.strip()
    return sections.get("domain/identree", {})


def split_uri(uri: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of the first address; None when it is none."""
    scheme, separator, rest = uri.split(",")[0].strip().partition("://")
    rest = rest.rstrip("/")
    if scheme not in ("ldap", "ldaps") or not separator or not rest or set(rest) & set("/ @?#"):
        return None
    host, port = rest, ""
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.lstrip(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        return None
    return scheme, host, int(port) if port else 636 if scheme == "ldaps" else PLAIN_PORT


# What is looked at


class Directory:
    """
    :param root: below which the system's files are; the programs are those of this system.
    :param now: unix seconds.
    """

    def __init__(self, findings: Findings, root: str, commands: Commands, now: float) -> None:
        self._findings, self._root, self._commands, self._now = findings, root, commands, now

    def examine(self) -> None:
        try:
            data = read(resolve(self._root, SSSD_CONF))
        except (OSError, SetupError) as e:
            self._findings.fail("sssd.conf", f"{SSSD_CONF} cannot be read: {reason(e)}", "run this as root")
            return
        if data is None:
            self._findings.ok("sssd.conf", "sssd is not set up here; accounts do not come from identree")
            return
        values = domain(data.decode("utf-8", "replace"))
        where = split_uri(values.get("ldap_uri", ""))
        if where is None:
            self._findings.warn(
                "sssd.conf",
                f"{SSSD_CONF} has no [domain/identree] with an ldap_uri; sssd asks somebody else",
                f"run: {SETUP}, if accounts are to come from identree",
            )
            return
        self._findings.ok("sssd.conf", f"sssd asks {values['ldap_uri']}")
        self._check_switch()
        self._check_service(values)
        user = self._ask(values, *where)
        if user:
            self._check_answer(user)

    def _check_switch(self) -> None:
        try:
            data = read(resolve(self._root, NSSWITCH))
        except (OSError, SetupError):
            data = None
        missing = [name.rstrip("+") for name in with_sss(data or b"")[1]]
        if missing:
            self._findings.fail(
                "sssd.nsswitch",
                f"{NSSWITCH} does not ask sssd for: {', '.join(missing)}",
                f"add sss to these lines, or run: {SETUP}",
            )
        else:
            self._findings.ok("sssd.nsswitch", f"{NSSWITCH} asks sssd for accounts, groups and sudo rules")

    def _check_service(self, values: dict[str, str]) -> None:
        if self._commands.find("sssctl"):
            code, said = self._commands.run("sssctl", "config-check", seconds=20.0)
            # it also fails for the lack of an empty directory for snippets
            if code and "validators: 0" not in said:
                self._findings.fail(
                    "sssd.config-check", f"sssctl config-check finds mistakes: {clean(said, 200)}", f"run: {SETUP}"
                )
        pid = self._pid()
        if systemd_runs(self._root, self._commands):
            running = self._commands.run("systemctl", "is-active", "--quiet", "sssd.service", seconds=20.0)[0] == 0
        else:
            running = pid > 0
        if not running:
            self._findings.fail("sssd.running", "sssd does not run", "run: systemctl enable --now sssd (or start sssd)")
            return
        self._findings.ok("sssd.running", "sssd runs")
        started = self._started(pid)
        newer = [
            path
            for key in ("ldap_tls_cacert", "ldap_tls_cert", "ldap_tls_key")
            if (path := values.get(key, "")) and self._changed(path) > started
        ]
        if started and newer:
            self._findings.warn(
                "sssd.restart",
                f"{', '.join(newer)} changed after sssd started, and sssd keeps the old TLS state",
                "run: systemctl restart sssd",
            )

    def _pid(self) -> int:
        for path in PID_FILES:
            try:
                with certificates.open_regular(below(self._root, path)) as file:
                    text = file.read(32).strip()
            except OSError:
                continue
            if text.isdigit() and os.path.isdir(f"/proc/{int(text)}"):
                return int(text)
        return 0

    @staticmethod
    def _started(pid: int) -> float:
        """When the process began, in unix seconds; 0 when that is not known."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                ticks = int(file.read(4096).rpartition(b")")[2].split()[19])
            with open("/proc/stat", "rb") as file:
                boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
        except (OSError, ValueError, IndexError, StopIteration):
            return 0.0
        return boot + ticks / os.sysconf("SC_CLK_TCK")

    def _changed(self, path: str) -> float:
        try:
            return os.stat(below(self._root, path)).st_mtime - 2  # the two clocks tick differently
        except OSError:
            return 0.0

    # The connection

    def _ask(self, values: dict[str, str], scheme: str, host: str, port: int) -> str:
        """A user that the directory has; empty, with a finding, when it does not get so far."""
        start_tls = values.get("ldap_id_use_start_tls", "").lower() == "true"
        encrypted = scheme == "ldaps" or start_tls
        party = Party(
            "ldaps" if encrypted else "ldap",
            host,
            port,
            ca=self._path(values, "ldap_tls_cacert"),
            ca_key=f"ldap_tls_cacert in {SSSD_CONF}",
            cert=self._path(values, "ldap_tls_cert") if encrypted else "",
            key=self._path(values, "ldap_tls_key") if encrypted else "",
            cert_keys=f"ldap_tls_cert and ldap_tls_key in {SSSD_CONF}",
            server_ca="IDENTREE_LDAP_TLS_CA_CERT",
            renew=SETUP,
        )
        usable = True
        if encrypted:
            usable = doctor_tls.examine_files(self._findings, party, self._now)
            self._check_readable(party)
        addresses = doctor_tls.resolve(self._findings, party)
        at = doctor_tls.connect(self._findings, party, addresses) if addresses else None
        if at is None or not usable:
            return ""
        if not encrypted:
            self._findings.warn(
                "ldap.plain",
                f"{values['ldap_uri']} sends the bind password and all accounts in the clear",
                f"let the server listen for LDAPS (IDENTREE_LDAP_TLS_LISTEN_ADDR), then run: {SETUP}",
            )
            return self._search(party, values, lambda: open_at(*at, port))

        def connected() -> socket.socket:
            raw = open_at(*at, port)
            try:
                if start_tls and scheme == "ldap":
                    begin_tls(raw)
            except BaseException:
                raw.close()
                raise
            return raw

        if values.get("ldap_tls_reqcert", "").lower() in ("never", "allow"):
            self._findings.warn(
                "ldaps.unverified",
                f"ldap_tls_reqcert in {SSSD_CONF} lets anybody play the directory",
                "set ldap_tls_reqcert = demand, with the CA in ldap_tls_cacert",
            )
        before = len(self._findings.all)
        user = ""
        if doctor_tls.examine_server(self._findings, party, connected, self._now):
            context = doctor_tls.context_for(party)

            def secured() -> socket.socket:
                raw = connected()
                try:
                    return context.wrap_socket(raw, server_hostname=host)
                except BaseException:
                    raw.close()
                    raise

            user = self._search(party, values, secured, connected)
        if scheme == "ldaps" and any(each.level == "fail" for each in self._findings.all[before:]):
            self._compare(party, at)
        return user

    def _path(self, values: dict[str, str], key: str) -> str:
        path = values.get(key, "")
        return below(self._root, path) if path.startswith("/") else path

    def _check_readable(self, party: Party) -> None:
        """An sssd that is not root must be able to read its key, and nobody else should."""
        if not party.key:
            return
        try:
            info = os.stat(party.key)
        except OSError:
            return
        passwd = read(resolve(self._root, "/etc/passwd")) or b""
        group = unprivileged(self._commands, passwd)
        if info.st_mode & 0o007:
            self._findings.fail(
                "ldaps.key-open", f"{party.key} can be read by everybody on this host", f"run: chmod o-rwx {party.key}"
            )
        if group >= 0 and not (info.st_gid == group and info.st_mode & 0o040):
            self._findings.fail(
                "ldaps.key-unreadable",
                f"sssd does not run as root here, and cannot read {party.key}",
                f"run: {SETUP}, which gives it a copy of its own",
            )

    def _search(
        self,
        party: Party,
        values: dict[str, str],
        connected: Callable[[], socket.socket],
        unsecured: Callable[[], socket.socket] | None = None,
    ) -> str:
        findings, dn = self._findings, values.get("ldap_default_bind_dn", "")
        heard = False
        try:
            with connected() as connection:
                code, said = bind(connection, dn, values.get("ldap_default_authtok", ""))
                heard = True
                if code == _WRONG_PASSWORD:
                    findings.fail(
                        f"{party.part}.bind",
                        f"the directory refuses the bind as {dn}: wrong name or password",
                        f"the server's secret was changed, or this host was registered anew; run: {SETUP}",
                    )
                    return ""
                if code in (_STRONGER, _CONFIDENTIAL):
                    findings.fail(
                        f"{party.part}.bind",
                        "the directory wants TLS for the bind",
                        f"use ldaps://; run: {SETUP}",
                    )
                    return ""
                if code != _SUCCESS:
                    findings.fail(
                        f"{party.part}.bind",
                        f"the directory refuses the bind as {dn}: {code} {clean(said, 100)}",
                        f"the server's log says why; run: {SETUP} for a new password",
                    )
                    return ""
                findings.ok(f"{party.part}.bind", f"the directory knows this host as {dn}")
                base = values.get("ldap_user_search_base", "") or values.get("ldap_search_base", "")
                code, user = first_user(connection, base.partition("?")[0])
        except (ConfigError, LdapError) as e:
            findings.fail(f"{party.part}.search", f"the directory gives no usable answer: {e}", "see the server's log")
            return ""
        except OSError as e:
            self._broken(party, e, unsecured, heard=heard)
            return ""
        if code not in (_SUCCESS, _SIZE_LIMIT):
            findings.fail(
                f"{party.part}.search",
                f"the directory refuses to search in {base}: {code}",
                f"check ldap_search_base in {SSSD_CONF} and IDENTREE_LDAP_BASE_DN at the server; or run: {SETUP}",
            )
        elif not user:
            findings.warn(
                f"{party.part}.search",
                f"the directory shows this host nobody below {base}",
                "check that people are synchronised, and which of them may use this host, in the admin pages",
            )
        else:
            findings.ok(f"{party.part}.search", f"the directory answers, with {user} for example")
        return user

    def _broken(
        self, party: Party, error: OSError, unsecured: Callable[[], socket.socket] | None, *, heard: bool
    ) -> None:
        """:param unsecured: makes a connection that is ready for TLS."""
        shown, text = bool(party.cert and party.key), reason(error)
        alert = text if isinstance(error, ssl.SSLError) and "alert" in text else ""
        if unsecured is not None and not heard:
            alert = alert or doctor_tls.parting_word(party, unsecured)
        if alert:
            doctor_tls.refused(self._findings, party, alert)
        elif party.part == "ldaps" and not heard and not shown:
            # some servers say nothing at all to a client without certificate
            doctor_tls.refused(self._findings, party, "certificate required")
        else:
            self._findings.fail(
                f"{party.part}.search", f"the connection with {party.where} broke: {text}", "see the server's log"
            )

    def _compare(self, party: Party, at: tuple[int, str]) -> None:
        """Does LDAP without TLS work? Then the fault is in TLS. Nothing secret is sent."""
        try:
            with open_at(*at, PLAIN_PORT) as connection:
                ask_root(connection)
        except OSError:
            return
        self._findings.warn(
            "ldaps.plain-works",
            f"LDAP without TLS answers at port {PLAIN_PORT}, so that the fault is in TLS or in the certificates",
            "look at the findings above; until they are settled sssd serves what it remembers",
        )

    def _check_answer(self, user: str) -> None:
        code, said = self._commands.run("getent", "-s", "sss", "passwd", user, seconds=20.0)
        if code == 127:
            return
        if code == 0 and said.startswith(f"{user}:"):
            self._findings.ok("sssd.answer", f"sssd knows {user}")
            return
        self._findings.fail(
            "sssd.answer",
            f"the directory has {user}, and sssd does not know them",
            "run: systemctl restart sssd; sss_cache -E; then see /var/log/sssd",
        )


# LDAP


def encode(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def number(value: int, tag: int = 0x02) -> bytes:
    return encode(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def text(value: str) -> bytes:
    return encode(0x04, value.encode())


def message(identity: int, operation: bytes) -> bytes:
    return encode(0x30, number(identity), operation)


def decode(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element. :raise LdapError: it is no BER."""
    found, at = [], 0
    try:
        while at < len(data):
            tag, size, at = data[at], data[at + 1], at + 2
            if size > 0x80:
                count = size & 0x7F
                size, at = int.from_bytes(data[at : at + count], "big"), at + count
            elif size == 0x80:
                raise LdapError("an indefinite length")
            if at + size > len(data):
                raise LdapError("cut off")
            found.append((tag, data[at : at + size]))
            at += size
    except IndexError:
        raise LdapError("cut off") from None
    return found


def receive(connection: socket.socket) -> tuple[int, bytes]:
    """Tag and content of one operation. :raise LdapError: what came is no LDAP. :raise OSError: nothing came."""
    head = _exactly(connection, 2)
    if head[0] != 0x30:
        raise LdapError("what answers is not an LDAP server")
    size = head[1]
    if size >= 0x80:
        count = size & 0x7F
        if not 0 < count <= 4:
            raise LdapError("a bad length")
        size = int.from_bytes(_exactly(connection, count), "big")
    if size > MAX_MESSAGE_BYTES:
        raise LdapError("too long an answer")
    parts = decode(_exactly(connection, size))
    if len(parts) < 2:
        raise LdapError("a message without operation")
    return parts[1]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(min(count - len(data), 65536))
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data


def result(content: bytes) -> tuple[int, str]:
    """Code and text. :raise LdapError: there is none."""
    parts = decode(content)
    if len(parts) < 3 or parts[0][0] != 0x0A:
        raise LdapError("a result without code")
    return int.from_bytes(parts[0][1], "big"), parts[2][1].decode("utf-8", "replace")


def bind(connection: socket.socket, dn: str, password: str) -> tuple[int, str]:
    request = encode(_BIND, number(3), text(dn), encode(0x80, password.encode()))
    connection.sendall(message(1, request))
    return result(receive(connection)[1])


def begin_tls(connection: socket.socket) -> None:
    """:raise OSError: the server does not want to."""
    connection.sendall(message(1, encode(_EXTENDED, encode(0x80, _START_TLS))))
    code, said = result(receive(connection)[1])
    if code != _SUCCESS:
        raise LdapError(f"the server refuses StartTLS: {code} {clean(said, 80)}")


def first_user(connection: socket.socket, base: str) -> tuple[int, str]:
    """The result of a search for one account, and its name."""
    condition = encode(0xA3, text("objectClass"), text("posixAccount"))
    return _search(connection, base, 2, condition, "uid")


def ask_root(connection: socket.socket) -> None:
    """:raise LdapError: :raise OSError: no LDAP server answers. That it answers is enough."""
    _search(connection, "", 0, encode(0x87, b"objectClass"), "1.1")


def _search(connection: socket.socket, base: str, scope: int, condition: bytes, attribute: str) -> tuple[int, str]:
    request = encode(
        _SEARCH,
        text(base),
        number(scope, 0x0A),
        number(0, 0x0A),
        number(1),
        number(SEARCH_SECONDS),
        encode(0x01, b"\x00"),
        condition,
        encode(0x30, text(attribute)),
    )
    connection.sendall(message(2, request))
    found = ""
    for _ in range(MAX_MESSAGES):
        tag, content = receive(connection)
        if tag == _DONE:
            return result(content)[0], found
        if tag == _ENTRY:
            found = found or _value(content)
    raise LdapError("an answer without end")


def _value(content: bytes) -> str:
    """The first value of the first attribute of an entry, if it can be an account's name."""
    parts = decode(content)
    for _, attribute in decode(parts[1][1]) if len(parts) > 1 else []:
        pair = decode(attribute)
        values = decode(pair[1][1]) if len(pair) > 1 else []
        if values:
            name = values[0][1].decode("utf-8", "replace")
            usable = 0 < len(name) <= 64 and name.isascii() and name.isprintable() and not set(name) & set(" :/")
            return name if usable and not name.startswith("-") else ""
    return ""
