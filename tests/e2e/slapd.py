"""
OpenLDAP's slapd with the entries that we serve: the peer that our answers and our speed are compared with.

On a free port of loopback, ``back_mdb``, its log off, ``eq`` indexes on what sssd asks for, everything in one temporary
directory.
"""

from __future__ import annotations

import base64
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from identree.directory.draft import Attributes, Draft
from tests.e2e.ldaptools import Client
from tests.e2e.server import DYING_WITH_US, free_port

PROGRAM = "/usr/sbin/slapd"
SCHEMAS = Path("/etc/ldap/schema")
BASE_DN = "dc=example,dc=com"
# Its own administrator, whom no limit concerns; our service account binds with the same name and password.
BIND_DN = f"cn=readonly,{BASE_DN}"
BIND_PASSWORD = "readonly-password-0123456789"
# Room for the data base; mdb reserves addresses, not memory.
MAP_BYTES = 4 << 30
START_SECONDS = 30.0
# What the served base entry has and slapd keeps to itself: it is the root DSE's.
NOT_IN_ENTRIES = frozenset({"namingContexts"})

# Beside the files of /etc/ldap/schema: RFC 2307, openssh-lpk and sudo as they are published, with what ours has more:
# substrings of everything, order among the numbers of shadow accounts, and hosts without regard to case. The content
# rules let the classes of spec/ldap section 2 have the attributes that it adds to them.
SCHEMA = """\
attributetype ( 1.3.6.1.1.1.1.2 NAME 'gecos'
  EQUALITY caseIgnoreIA5Match SUBSTR caseIgnoreIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.3 NAME 'homeDirectory'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.4 NAME 'loginShell'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.5 NAME 'shadowLastChange'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.6 NAME 'shadowMin'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.7 NAME 'shadowMax'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.8 NAME 'shadowWarning'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.9 NAME 'shadowInactive'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.10 NAME 'shadowExpire'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.11 NAME 'shadowFlag'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.1.1.1.12 NAME 'memberUid'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
objectclass ( 1.3.6.1.1.1.2.0 NAME 'posixAccount' SUP top AUXILIARY
  MUST ( cn $ uid $ uidNumber $ gidNumber $ homeDirectory ) MAY ( userPassword $ loginShell $ gecos $ description ) )
objectclass ( 1.3.6.1.1.1.2.1 NAME 'shadowAccount' SUP top AUXILIARY MUST uid
  MAY ( userPassword $ shadowLastChange $ shadowMin $ shadowMax $ shadowWarning $ shadowInactive $ shadowExpire $
        shadowFlag $ description ) )
objectclass ( 1.3.6.1.1.1.2.2 NAME 'posixGroup' SUP top STRUCTURAL MUST ( cn $ gidNumber )
  MAY ( userPassword $ memberUid $ description ) )

attributetype ( 1.3.6.1.4.1.24552.500.1.1.1.13 NAME 'sshPublicKey'
  EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 )
objectclass ( 1.3.6.1.4.1.24552.500.1.1.2.0 NAME 'ldapPublicKey' SUP top AUXILIARY MAY ( sshPublicKey $ uid ) )

attributetype ( 1.3.6.1.4.1.15953.9.1.1 NAME 'sudoUser'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.2 NAME 'sudoHost'
  EQUALITY caseIgnoreIA5Match SUBSTR caseIgnoreIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.3 NAME 'sudoCommand'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.4 NAME 'sudoRunAs'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.5 NAME 'sudoOption'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.6 NAME 'sudoRunAsUser'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.7 NAME 'sudoRunAsGroup'
  EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.15953.9.1.8 NAME 'sudoNotBefore'
  EQUALITY generalizedTimeMatch ORDERING generalizedTimeOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.24 )
attributetype ( 1.3.6.1.4.1.15953.9.1.9 NAME 'sudoNotAfter'
  EQUALITY generalizedTimeMatch ORDERING generalizedTimeOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.24 )
attributetype ( 1.3.6.1.4.1.15953.9.1.10 NAME 'sudoOrder'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 )
objectclass ( 1.3.6.1.4.1.15953.9.2.1 NAME 'sudoRole' SUP top STRUCTURAL MUST cn
  MAY ( sudoUser $ sudoHost $ sudoCommand $ sudoRunAs $ sudoRunAsUser $ sudoRunAsGroup $ sudoOption $ sudoOrder $
        sudoNotBefore $ sudoNotAfter $ description ) )

attributetype ( 1.3.6.1.4.1.4203.666.1.900.1 NAME 'accountStatus'
  EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
ditcontentrule ( 2.16.840.1.113730.3.2.2 NAME 'person' AUX ( posixAccount $ shadowAccount $ ldapPublicKey )
  MAY ( host $ accountStatus ) )
ditcontentrule ( 1.3.6.1.1.1.2.2 NAME 'group' MAY member )
"""
INDEXES = (
    "index objectClass,uid,uidNumber,cn,gidNumber,memberUid,member,mail,sudoUser eq",
    "index sudoHost eq,pres",
    "index entryUUID eq",
)
_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# RFC 2849: what may stand behind one colon as it is.
_SAFE = re.compile(rb"(?![ :<])[\x01-\x09\x0b\x0c\x0e-\x7f]*(?<! )")


def ldif_line(name: str, value: bytes) -> bytes:
    if _SAFE.fullmatch(value):
        return b"%b: %b\n" % (name.encode(), value)
    return b"%b:: %b\n" % (name.encode(), base64.b64encode(value))


def ldif(drafts: Iterable[Draft]) -> Iterator[bytes]:
    """The entries in RFC 2849; an ``entryUUID`` that slapd's syntax does not take is left out."""
    for draft in drafts:
        lines = [ldif_line("dn", draft.dn.encode())]
        lines += [ldif_line(name, value) for name, value in _pairs(draft.attributes)]
        yield b"".join(lines) + b"\n"


def _pairs(attributes: Attributes) -> Iterator[tuple[str, bytes]]:
    for name, values in attributes:
        if name in NOT_IN_ENTRIES:
            continue
        for value in values:
            if name != "entryUUID" or _UUID.fullmatch(value):
                yield name, value


class Slapd:
    """
    :param directory: an empty one, for everything that it writes.
    :param entries: parents before children.
    """

    def __init__(self, directory: Path, entries: Iterable[Draft]) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._entries = entries
        self._configuration = directory / "slapd.conf"
        self._log = directory / "slapd.log"

    def start(self) -> None:
        """Load the entries, start it, and wait until it answers."""
        database = self.directory / "database"
        database.mkdir(mode=0o700)
        schema = self.directory / "ours.schema"
        schema.write_text(SCHEMA)
        files = [*(SCHEMAS / f"{name}.schema" for name in ("core", "cosine", "inetorgperson")), schema]
        self._configuration.write_text(
            "\n".join(
                (
                    *(f"include {file}" for file in files),
                    "modulepath /usr/lib/ldap",
                    "moduleload back_mdb",
                    f"pidfile {self.directory}/slapd.pid",
                    "loglevel 0",
                    "sizelimit unlimited",
                    "database mdb",
                    f"maxsize {MAP_BYTES}",
                    f"suffix {BASE_DN}",
                    f"rootdn {BIND_DN}",
                    f"rootpw {BIND_PASSWORD}",
                    f"directory {database}",
                    *INDEXES,
                    "",
                )
            )
        )
        self._configuration.chmod(0o600)
        file = self.directory / "entries.ldif"
        with file.open("wb") as out:
            for entry in ldif(self._entries):
                out.write(entry)
        done = subprocess.run(
            [PROGRAM, "-T", "add", "-q", "-f", self._configuration, "-l", file], check=False, capture_output=True
        )
        if done.returncode:
            raise AssertionError(f"slapadd does not take the entries:\n{done.stderr.decode('utf-8', 'replace')}")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                # not -d 0 by itself: with any -d it stays in the foreground, and 0 prints nothing
                [*DYING_WITH_US, PROGRAM, "-d", "0", "-f", self._configuration, "-h", f"ldap://127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"slapd does not run:\n{self._log.read_text('utf-8', 'replace')}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with Client(self.port) as client:
                return client.bind(BIND_DN, BIND_PASSWORD) == 0
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Slapd:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
