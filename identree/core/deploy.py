"""
Deploying over SSH, as far as it is decided without a network: what is asked, which host key is expected, what is sent,
and what of the answer may be shown (spec/notifications-and-policy section 10, spec/host-agent section 17.4).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from urllib.parse import quote

from identree.core import names
from identree.core.errors import Invalid, Refused

DEFAULT_PORT = 22
DEFAULT_USER = "root"
# Seconds until TCP is connected; as many again until the host has shown its key.
CONNECT_SECONDS = 15
# Seconds for the whole of a job.
SESSION_SECONDS = 180
# Jobs, and looks at host keys, at a time.
MOST_JOBS = 3
# Seconds between two starts from one address.
START_SECONDS = 15
# Seconds for which an ended job can be read.
KEPT_SECONDS = 3600
# Bytes of output that are kept, and as many lines: an empty line costs memory too.
OUTPUT_BYTES = 1 << 20
OUTPUT_LINES = 50_000
# Bytes of an output line that has not ended yet.
LINE_BYTES = 8192
# Bytes of a posted private key; RSA with 8192 bits has about 6500.
PRIVATE_KEY_BYTES = 32_768
# Bytes of a host key; RSA with 16384 bits has about 2100.
HOST_KEY_BYTES = 4096
# Lines of a private key that a host prints.
_KEY_LINES = 400

TOO_LONG = "The output is longer than 1 MiB; the rest of it is not shown."
STRUCK = "***"
KEY_STRUCK = "(a private key was struck out here)"
HOSTNAME_LINE = "IDENTREE_HOSTNAME="

_USER = re.compile(r"[a-zA-Z0-9._-]{1,64}")
_FINGERPRINT = re.compile(r"SHA256:([A-Za-z0-9+/]{43})=?")
_MD5 = re.compile(r"(?:MD5:)?[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){15}")
_JOB = re.compile(r"[0-9a-fA-F]{1,64}")

# The families of host keys that are accepted, the best first, by the types of their keys.
ED25519 = "ssh-ed25519"
RSA = "ssh-rsa"
ECDSA = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
FAMILIES: tuple[tuple[str, ...], ...] = ((ED25519,), ECDSA, (RSA,))
_TYPES = frozenset(type for family in FAMILIES for type in family)


# -- what can go wrong ------------------------------------------------------------------------------------------------
class SshTrouble(Exception):
    """The host cannot be reached, or does not do it. The text is for people and says what to do; without secrets."""


class BadPrivateKey(Exception):
    """The text is for people; nothing of the key stands in it."""


class HostKeyUnknown(Refused):
    """
    Nobody has confirmed yet that this is the host's key. Nothing was sent.

    :ivar key: what the host has shown, and proved to have.
    """

    key = "host_key_unknown"

    def __init__(self, host: str, port: int, host_key: HostKey) -> None:
        super().__init__(
            f"the host key of {host}:{port} is not known yet: {host_key.type} {host_key.fingerprint}. Compare it with "
            "the one that ssh-keygen -lf shows on the host, then send it as host_key to confirm it"
        )
        self.host_key = host_key


class HostKeyChanged(Refused):
    """The host is not the one that was confirmed, or somebody stands in between. Nothing was sent."""

    key = "host_key_changed"


class HostKeyMismatch(SshTrouble):
    """:ivar shown: the key of the host, which is not the expected one."""

    def __init__(self, shown: HostKey) -> None:
        super().__init__(f"the host has another key: {shown.type} {shown.fingerprint}")
        self.shown = shown


# -- host keys --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """
    A public key (RFC 4253 section 6.6).

    :ivar type: ``ssh-ed25519``, ``ecdsa-sha2-nistp256`` and so on. :ivar blob: as it goes over the wire.
    """

    type: str
    blob: bytes

    @classmethod
    def from_blob(cls, blob: bytes) -> HostKey:
        """:raise ValueError: it is none of an accepted type."""
        length = int.from_bytes(blob[:4], "big")
        type = blob[4 : 4 + length].decode("ascii", "replace")
        if len(blob) > HOST_KEY_BYTES or type not in _TYPES:
            raise ValueError("no host key of an accepted type")
        return cls(type=type, blob=blob)

    @property
    def fingerprint(self) -> str:
        """As OpenSSH writes it: ``SHA256:`` and base64 without padding."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode("ascii").rstrip("=")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedKey:
    """
    The host key that counts.

    :ivar type: empty where only the fingerprint is known.
    """

    fingerprint: str
    type: str = ""

    @classmethod
    def of(cls, key: HostKey) -> ExpectedKey:
        return cls(fingerprint=key.fingerprint, type=key.type)


def expected_key(text: str) -> ExpectedKey:
    """
    What an administrator knows of a host's key: a SHA-256 fingerprint, or the line of a ``.pub`` or ``known_hosts``
    file.

    :raise Invalid: it is neither.
    """
    text = text.strip()
    match = _FINGERPRINT.fullmatch(text)
    if match:
        return ExpectedKey(fingerprint=f"SHA256:{match[1]}")
    if _MD5.fullmatch(text):
        raise Invalid("invalid host_key: an MD5 fingerprint proves nothing; ssh-keygen -lf shows the SHA256 one")
    words = text.split()
    for type, encoded in pairwise(words):
        if type in _TYPES and len(encoded) <= 2 * HOST_KEY_BYTES:
            try:
                key = HostKey.from_blob(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                break
            if key.type == type:
                return ExpectedKey.of(key)
            break
    raise Invalid(
        "invalid host_key: expected SHA256: and 43 characters, or a public key as in /etc/ssh/ssh_host_ed25519_key.pub"
    )


# -- what is asked ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """:ivar host: a name or an IPv4 address, normalised."""

    host: str
    port: int
    user: str

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"


def target(hostname: str, port: int, user: str) -> Target:
    """
    :param port: 0 means 22. :param user: empty means root.
    :raise Invalid: with the texts of the contract.
    """
    if not hostname:
        raise Invalid("hostname required")
    try:
        host = names.hostname(hostname)
    except Invalid:
        raise Invalid("invalid hostname") from None
    user = user or DEFAULT_USER
    if not _USER.fullmatch(user):
        raise Invalid("invalid ssh_user")
    if not 0 <= port <= 65535:
        raise Invalid("invalid port")
    return Target(host=host, port=port or DEFAULT_PORT, user=user)


def known_as(text: str, host: str) -> str:
    """
    The name under which identree has the host, where that is not the one that SSH connects to.

    :raise Invalid: it is none.
    """
    if not text:
        return host
    try:
        return names.hostname(text)
    except Invalid:
        raise Invalid("invalid known_as") from None


def job_id(text: str) -> str:
    """Lower case. :raise Invalid: not hexadecimal."""
    if not _JOB.fullmatch(text):
        raise Invalid("invalid job id")
    return text.lower()


# -- what is sent -----------------------------------------------------------------------------------------------------
def shell_quoted(text: str) -> str:
    """As one word of a POSIX shell, whatever it is."""
    return "'" + text.replace("'", "'\\''") + "'"


def _as_root(user: str) -> str:
    return "" if user == "root" else "sudo "


def install_command(user: str, server_url: str) -> str:
    return f"{_as_root(user)}bash -s {shell_quoted(server_url)}"


def remove_command(user: str) -> str:
    return f"{_as_root(user)}bash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """
    What a host gets to know, so that it can talk to us: one of the two.

    :ivar token: good once, for one host. :ivar secret: the one that all hosts share.
    """

    token: str = ""
    secret: str = ""


def install_input(access: Access, script: bytes) -> bytes:
    """
    What the shell reads: it keeps the secret out of the process list.

    :raise ValueError: a secret that no shell can read.
    """
    if access.token:
        exported = {"IDENTREE_ENROL_TOKEN": access.token}
    elif access.secret:
        exported = {"SHARED_SECRET": access.secret, "IDENTREE_SHARED_SECRET": access.secret}
    else:
        exported = {}
    if any("\0" in value for value in exported.values()):
        raise ValueError("a secret with a NUL character")
    lines = "".join(f"export {name}={shell_quoted(value)}\n" for name, value in exported.items())
    return lines.encode() + script


# -- what is shown ----------------------------------------------------------------------------------------------------
# CSI and OSC sequences of terminals, and single escapes (ECMA-48).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_UNSHOWABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# Secrets that we do not know: what a host has in its own files and prints by mistake. The word is one of names, the
# value goes on to the end of its quotes or to a space.
_ASSIGNED = re.compile(
    r"(?i)((?:\b|_)(?:secret|password|passwd|passphrase|token|api_?key|private_?key|credentials?)[\"']?\s*=\s*)"
    r"(\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|[^\s'\"]\S*)"
)
_HEADER = re.compile(r"(?i)\b((?:x-shared-secret|x-escrow-token|authorization|proxy-authorization|cookie)\s*:\s*)(.+)")
_IN_URL = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]+:)([^\s/@]+)(@)")
_ENROLMENT = re.compile(r"\bidentree-enrol-[0-9a-fA-F]+")
_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY-----")


def _spellings(secret: str) -> set[str]:
    """How a secret may stand in an output: as it is, quoted for a shell, for JSON, for a URL, in base64."""
    found = {secret, secret.replace("'", "'\\''"), secret.replace("'", "'\"'\"'"), json.dumps(secret)[1:-1]}
    found |= {quote(secret, safe=""), quote(secret), base64.b64encode(secret.encode()).decode("ascii").rstrip("=")}
    return {spelling for spelling in found if spelling}


class Scrubber:
    """
    Turns the bytes of one stream into lines that may be shown: without the secrets that we know, wherever the chunks
    are cut; without what looks like one that we do not know; and without what steers terminals.

    A line comes when it has ended; one of more than :data:`LINE_BYTES` in several pieces.

    :param secrets: empty ones count for nothing.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
        # the longest first: a shorter one may be a part of it
        self._known = sorted(spellings, key=lambda text: (-len(text), text))
        self._raw = [text.encode() for text in self._known]
        self._rest = b""
        self._key_lines = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that have ended."""
        *ended, rest = (self._rest + data).replace(b"\r", b"").split(b"\n")
        lines = [shown for line in ended if (shown := self._shown(line)) is not None]
        while len(rest) > LINE_BYTES:
            piece, rest = self._cut(rest)
            if (shown := self._shown(piece)) is not None:
                lines.append(shown)
        self._rest = rest
        return lines

    def close(self) -> list[str]:
        """The stream has ended: what is left of it."""
        rest, self._rest = self._rest, b""
        shown = self._shown(rest) if rest else None
        return [] if shown is None else [shown]

    def _cut(self, line: bytes) -> tuple[bytes, bytes]:
        """A piece of it whose end is not in the middle of a secret that we know, and the rest."""
        for raw in self._raw:
            line = line.replace(raw, STRUCK.encode())
        end = min(len(line), LINE_BYTES)
        while (before := self._before_begun(line, end)) < end:
            end = before
        while end > 1 and line[end : end + 1] and line[end] & 0xC0 == 0x80:
            end -= 1  # not in the middle of a character
        end = max(1, end)
        return line[:end], line[end:]

    def _before_begun(self, line: bytes, end: int) -> int:
        """Where a secret begins that goes on behind ``end``, or may go on in what has not come yet; else ``end``."""
        for raw in self._raw:
            for begins in range(max(0, end - len(raw) + 1), end):
                if raw.startswith(line[begins : begins + len(raw)]):
                    return begins
        return end

    def _shown(self, raw: bytes) -> str | None:
        """None: nothing at all is shown of it."""
        line = raw.decode("utf-8", "replace")
        if not line:
            return line
        if "\x1b" in line:
            line = _ESCAPES.sub("", line)
        line = _UNSHOWABLE.sub("", line)
        if self._key_lines:
            ends = bool(_KEY_ENDS.search(line))
            self._key_lines = 0 if ends or self._key_lines >= _KEY_LINES else self._key_lines + 1
            return None
        if _KEY_BEGINS.search(line):
            self._key_lines = 0 if _KEY_ENDS.search(line) else 1
            return KEY_STRUCK
        for secret in self._known:
            line = line.replace(secret, STRUCK)
        line = _ASSIGNED.sub(rf"\1{STRUCK}", line)
        line = _HEADER.sub(rf"\1{STRUCK}", line)
        line = _IN_URL.sub(rf"\1{STRUCK}\3", line)
        return _ENROLMENT.sub(STRUCK, line)


class State(Enum):
    """Of a job; the values are the contract's. What has ended stays as it is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Transcript:
    """What is shown of a job: the output up to its bounds, and what we say about it, which is never cut off."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._left = OUTPUT_BYTES
        self._full = False

    @property
    def full(self) -> bool:
        return self._full

    def output(self, lines: Iterable[str]) -> None:
        """From the host. What is too much is dropped, which is said once."""
        for line in lines:
            if self._full:
                return
            size = len(line.encode("utf-8", "replace")) + 1
            if size > self._left or len(self.lines) >= OUTPUT_LINES:
                self._full = True
                self.lines.append(TOO_LONG)
                return
            self._left -= size
            self.lines.append(line)

    def say(self, line: str) -> None:
        """From us: a few lines per job."""
        self.lines.append(line)


def reported_hostname(lines: Iterable[str]) -> str:
    """What the install script says that the host is called; empty when it says nothing, or no host's name."""
    for line in lines:
        if line.startswith(HOSTNAME_LINE):
            try:
                return names.hostname(line.removeprefix(HOSTNAME_LINE).strip())
            except Invalid:
                return ""
    return ""
