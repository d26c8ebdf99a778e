"""
What is to be read in certificates (RFC 5280): when they end, whom they name, who issued them. Python's ``ssl`` shows
that only of certificates it has verified, and here the others are of interest.

Nothing is *trusted* here: whether a signature is right OpenSSL says, see :func:`refusal`.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat

from identree.agent import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

# Of a file, and of the certificates in it.
MAX_FILE_BYTES = 262144
MAX_CERTIFICATES = 256

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"

# Tags (X.690).
_BOOLEAN, _INTEGER, _OCTETS, _OID, _SEQUENCE, _SET = 0x01, 0x02, 0x04, 0x06, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87

# Object identifiers, encoded: commonName, subjectAltName, basicConstraints.
_COMMON_NAME, _ALTERNATIVE, _CONSTRAINTS = b"\x55\x04\x03", b"\x55\x1d\x11", b"\x55\x1d\x13"

# X509_V_FLAG_PARTIAL_CHAIN, named by Python from 3.10 on.
_PARTIAL_CHAIN = 0x80000


class NotACertificate(ValueError):
    """What was read is none; the text says what is wrong."""


class Certificate:
    """
    :ivar der: all of it. :ivar serial: lower-case hex without leading zeros.
    :ivar not_before, not_after: unix seconds.
    :ivar subject, issuer: names in DER, to be compared. :ivar common_name: of the subject, or empty.
    :ivar names: its DNS names and addresses. :ivar authority: it may issue others.
    :raise NotACertificate: it is none.
    """

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.names: list[str] = []
        self.authority = False
        try:
            self._read(der)
        except (IndexError, ValueError, UnicodeDecodeError):
            raise NotACertificate("it is no X.509 certificate") from None

    def _read(self, der: bytes) -> None:
        body = _Reader(_Reader(_Reader(der).take(_SEQUENCE)).take(_SEQUENCE))
        if body.tag() == _VERSION:
            body.take(_VERSION)
        self.serial = f"{int.from_bytes(body.take(_INTEGER), 'big'):x}"
        body.take(_SEQUENCE)
        self.issuer = body.take(_SEQUENCE)
        validity = _Reader(body.take(_SEQUENCE))
        self.not_before, self.not_after = _time(validity), _time(validity)
        self.subject = body.take(_SEQUENCE)
        self.common_name = _common_name(self.subject)
        body.take(_SEQUENCE)  # the public key
        while body.more():
            tag = body.tag()
            content = body.take(tag)
            if tag == _EXTENSIONS:
                self._extensions(_Reader(_Reader(content).take(_SEQUENCE)))

    def _extensions(self, extensions: _Reader) -> None:
        while extensions.more():
            extension = _Reader(extensions.take(_SEQUENCE))
            kind = extension.take(_OID)
            if extension.tag() == _BOOLEAN:
                extension.take(_BOOLEAN)
            value = extension.take(_OCTETS)
            if kind == _CONSTRAINTS:
                constraints = _Reader(_Reader(value).take(_SEQUENCE))
                self.authority = (
                    constraints.more() and constraints.tag() == _BOOLEAN and constraints.take(_BOOLEAN) == b"\xff"
                )
            elif kind == _ALTERNATIVE:
                names = _Reader(_Reader(value).take(_SEQUENCE))
                while names.more():
                    tag = names.tag()
                    content = names.take(tag)
                    if tag == _DNS_NAME:
                        self.names.append(content.decode("ascii").lower())
                    elif tag == _IP_ADDRESS:
                        self.names.append(_address(content))

    @property
    def self_issued(self) -> bool:
        return self.subject == self.issuer

    def names_host(self, host: str) -> bool:
        """Whether it is for that name or address; a wildcard stands for one leftmost label (RFC 6125)."""
        host = host.lower().rstrip(".")
        for name in self.names:
            if name == host or (name.startswith("*.") and "." in host and host.partition(".")[2] == name[2:]):
                return True
        return False

    def whose(self) -> str:
        """Whom it names, for people."""
        return ", ".join(self.names[:5]) or self.common_name or "nobody"


class _Reader:
    """Reads tag, length, value (X.690, definite lengths). :raise ValueError, IndexError: it is not that."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def more(self) -> bool:
        return self._at < len(self._data)

    def tag(self) -> int:
        return self._data[self._at]

    def take(self, tag: int) -> bytes:
        if self._data[self._at] != tag or tag & 0x1F == 0x1F:
            raise ValueError("tag")
        length, start = self._data[self._at + 1], self._at + 2
        if length > 0x7F:
            count = length & 0x7F
            if not 0 < count <= 4:
                raise ValueError("length")
            length, start = int.from_bytes(self._data[start : start + count], "big"), start + count
        end = start + length
        if end > len(self._data):
            raise ValueError("length")
        self._at = end
        return self._data[start:end]


def _time(reader: _Reader) -> float:
    tag = reader.tag()
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("time")
    text = reader.take(tag).decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    if len(text) != 15:
        raise ValueError("time")
    found = places.instant(f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[8:10]}:{text[10:12]}:{text[12:14]}{text[14]}")
    if found is None:
        raise ValueError("time")
    return found


def _common_name(name: bytes) -> str:
    parts = _Reader(name)
    found = ""
    while parts.more():
        pair = _Reader(_Reader(parts.take(_SET)).take(_SEQUENCE))
        if pair.take(_OID) == _COMMON_NAME:
            found = pair.take(pair.tag()).decode("utf-8", "replace")
    return found


def _address(raw: bytes) -> str:
    import socket

    if len(raw) not in (4, 16):
        return ""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def read_pem(text: str) -> list[Certificate]:
    """
    The certificates in a text, in order.

    :raise NotACertificate: there is none, or one of them is broken.
    """
    found: list[Certificate] = []
    at = 0
    while (begin := text.find(_BEGIN, at)) >= 0:
        end = text.find(_END, begin)
        if end < 0:
            raise NotACertificate("it is cut off")
        if len(found) == MAX_CERTIFICATES:
            raise NotACertificate(f"it holds more than {MAX_CERTIFICATES} certificates")
        try:
            der = binascii.a2b_base64("".join(text[begin + len(_BEGIN) : end].split()))
        except ValueError:
            raise NotACertificate("it is no PEM") from None
        found.append(Certificate(der))
        at = end + len(_END)
    if not found:
        raise NotACertificate("it holds no certificate in PEM form")
    return found


def pem(certificate: Certificate) -> str:
    text = binascii.b2a_base64(certificate.der, newline=False).decode()
    return "\n".join([_BEGIN, *(text[at : at + 64] for at in range(0, len(text), 64)), _END, ""])


def open_regular(path: str, *, follow: bool = True) -> BinaryIO:
    """
    A file for reading. A pipe or a device in its place is not waited for.

    :param follow: a symbolic link in its place is followed.
    :raise OSError: it cannot be read, or is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return os.fdopen(fd, "rb")


def check_usable(path: str) -> None:
    """:raise OSError: OpenSSL could not open it, or would wait or read for ever."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_BYTES} bytes", path)


def read_file(path: str) -> list[Certificate]:
    """
    The certificates in a file; a symbolic link is followed.

    :raise OSError: it cannot be read.
    :raise NotACertificate: see :func:`read_pem`.
    """
    with open_regular(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise NotACertificate(f"it is larger than {MAX_FILE_BYTES} bytes")
    return read_pem(data.decode("ascii", "replace"))


def day(seconds: float) -> str:
    """An instant as people read it, in UTC."""
    import time

    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def refusal(certificate: str, key: str, ca: str) -> str:
    """
    Why a server that trusts ``ca`` would refuse a client with this certificate; empty when it would not. A handshake
    with ourselves, in memory, so that OpenSSL judges as it does at the server.

    :param certificate, key, ca: paths of PEM files.
    :raise OSError: :raise ValueError: they cannot be read, or do not belong together.
    """
    import ssl

    for path in (certificate, key, ca):
        check_usable(path)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(certificate, key, password=lambda: "")
        # In 1.3 the refusal would come after the handshake.
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cafile=ca)
    server.verify_flags |= ssl.VerifyFlags(_PARTIAL_CHAIN)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    for _ in range(16):
        waiting = 0
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
            except ssl.SSLCertVerificationError as e:
                return e.verify_message or "not accepted"
            except ssl.SSLError as e:
                return (e.reason or "no handshake").replace("_", " ").lower()
        if not waiting:
            return ""
    return "no handshake"
