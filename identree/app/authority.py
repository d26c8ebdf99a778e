"""
The certificate authority for hosts (spec/ldap section 8): kept in files, or its key held by another program.

Building and signing run in a thread; nothing here blocks the reactor but the reading of two small files at the start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.logger import Logger

from identree.app.ports import Now, SigningFailed, SigningKey
from identree.core.names import normalised_hostname

T = TypeVar("T")
Hash = SHA256 | SHA384 | SHA512
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

# Certificates with their chain, in bytes; nothing larger is one.
PEM_BYTES = 1 << 20
# Certificates that are given to hosts, in bytes: agents read an answer of 64 KiB with everything in it.
GIVEN_PEM_BYTES = 24 << 10
SERIAL_BITS = 128
# Clocks of hosts may be slow by this.
BACKDATED = timedelta(minutes=5)
CA_LIFE = timedelta(days=3650)
# The lives of certificates differ by up to this part, so that hosts provisioned in one night do not renew in one.
JITTER_PART = 6
# X.520 allows no longer common name; a host name may be longer.
COMMON_NAME_CHARACTERS = 64
# The throw-away key whose signature is replaced; its strength is of no account.
PLACEHOLDER_RSA_BITS = 2048

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HOSTNAME = re.compile(r"[a-z0-9._-]{1,253}")


class InThread(Protocol):
    """Runs a blocking function away from the reactor."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


class CertificateMalformed(ValueError):
    """What stands between the marks of a certificate is none."""


class CannotIssue(Exception):
    """No certificate can be made now; the message is for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """
    A new certificate and its key, for the host only.

    :ivar ca: the certificates of the authority, the issuing one first.
    :ivar serial: lower-case hex without leading zeros.
    """

    certificate: str
    key: str = field(repr=False)
    ca: str
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CA:
    """
    :ivar certificates: the first one issues; the others are trusted too, so that a CA can be replaced gently.
    :ivar key: None where another program holds it.
    """

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKey | None = field(default=None, repr=False)

    @property
    def issuer(self) -> x509.Certificate:
        return self.certificates[0]

    @property
    def pem(self) -> str:
        return pem_text(self.certificates)


# -- names and texts --------------------------------------------------------------------------------------------------
def certificate_name(certificate: x509.Certificate) -> str:
    """
    Which host a verified certificate speaks for: the first DNS name among its alternative names, else its common name
    (spec/http-api section 5). Normalised; empty when that is no host name.
    """
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = alternative.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass
    except ValueError:
        return ""
    if not names:
        names = [str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    name = normalised_hostname(names[0]) if names else ""
    return name if _HOSTNAME.fullmatch(name) else ""


def certificates_in(raw: bytes) -> tuple[x509.Certificate, ...]:
    """All that stand in PEM. :raise CertificateMalformed:"""
    try:
        return tuple(x509.load_pem_x509_certificate(found) for found in _CERTIFICATE.findall(raw))
    except ValueError:
        raise CertificateMalformed("a certificate in it is malformed") from None


def pem_text(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode("ascii") for one in certificates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """
    Certificates of authorities, as ``IDENTREE_LDAP_TLS_CA_CERT`` names them.

    :ivar path: empty when the setting holds the text itself.
    """

    certificates: tuple[x509.Certificate, ...]
    path: str = ""

    @property
    def pem(self) -> str:
        return pem_text(self.certificates)


def trusted(value: str, setting: str = "IDENTREE_LDAP_TLS_CA_CERT") -> Trusted:
    """
    The CA that a setting names: a path, or the PEM text itself (spec/ldap section 14.31).

    :raise ValueError: it is neither, or no CA; says what to do.
    """
    if "-----BEGIN" in value:
        # environment files often carry the line breaks as \n
        raw, path, where = value.replace("\\n", "\n").encode(), "", "the text"
    else:
        raw, path, where = read_file(setting, value), value, value
    if b"PRIVATE KEY" in raw:
        raise ValueError(f"{setting}: {where} holds a private key, and it is given to hosts; leave only certificates")
    return Trusted(certificates=authorities(raw, setting, where), path=path)


def authorities(raw: bytes, setting: str, where: str) -> tuple[x509.Certificate, ...]:
    """:raise ValueError: no certificates in PEM, too many of them, or one that is no CA's."""
    try:
        found = certificates_in(raw)
    except CertificateMalformed as problem:
        raise ValueError(f"{setting}: {where}: {problem}") from None
    if not found:
        raise ValueError(f"{setting}: {where} holds no certificate in PEM form; it must be a path or the PEM text")
    for one in found:
        _check_ca(one, setting, where)
    if len(pem_text(found)) > GIVEN_PEM_BYTES:
        raise ValueError(f"{setting}: {where} holds more than {GIVEN_PEM_BYTES} bytes of certificates; hosts take less")
    return found


def _check_ca(certificate: x509.Certificate, setting: str, where: str) -> None:
    try:
        extensions = certificate.extensions
        signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        with suppress(x509.ExtensionNotFound):
            signs = signs and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        signs = False
    except ValueError:
        raise ValueError(f"{setting}: a certificate in {where} has malformed extensions") from None
    if not signs:
        raise ValueError(
            f"{setting}: {where} holds a certificate that is no CA's (basicConstraints CA:TRUE, and keyCertSign where "
            "it has a key usage)"
        )


# -- the CA in files --------------------------------------------------------------------------------------------------
Stamp = tuple[int, int, int]


class CAFiles:
    """
    Certificate and key of the CA (spec/ldap section 8.2), read again when they change.

    :param key: empty where another program holds it; then the certificate is never made here.
    :param random_bits: returns a random integer of so many bits.
    """

    def __init__(self, certificate: str, key: str, *, now: Now, random_bits: Callable[[int], int]) -> None:
        self._certificate = certificate
        self._key = key
        self._now = now
        self._random_bits = random_bits

    def open(self) -> CA:
        """
        The CA; made when neither half exists. Of two servers that start at once on one volume, one makes it and both
        have it.

        :raise ValueError: a half is missing, a file is unusable, or the halves do not belong together; what is there is
            never overwritten.
        """
        if not self._key:
            return self.load()
        if not self._there(self._certificate) and not self._there(self._key):
            self._generate()
        return self.load()

    def load(self) -> CA:
        """:raise ValueError: see :meth:`open`."""
        if not self._key:
            raw = read_file("IDENTREE_MTLS_CA_CERT", self._certificate)
            return CA(certificates=authorities(raw, "IDENTREE_MTLS_CA_CERT", self._certificate))
        for half, other, setting in (
            (self._certificate, self._key, "IDENTREE_MTLS_CA_CERT"),
            (self._key, self._certificate, "IDENTREE_MTLS_CA_KEY"),
        ):
            if not self._there(half):
                raise ValueError(
                    f"{setting}: {half} is missing, while {other} is there. Put it back from the backup; or, to begin "
                    f"with a new CA, move {other} away and restart: then every host must be provisioned again"
                )
        raw = read_file("IDENTREE_MTLS_CA_CERT", self._certificate)
        certificates = authorities(raw, "IDENTREE_MTLS_CA_CERT", self._certificate)
        key = self._private(read_file("IDENTREE_MTLS_CA_KEY", self._key))
        if _spki(key.public_key()) != _spki(certificates[0].public_key()):
            raise ValueError(
                f"IDENTREE_MTLS_CA_KEY: {self._key} is not the key of the first certificate in {self._certificate}"
            )
        return CA(certificates=certificates, key=key)

    def stamps(self) -> tuple[Stamp, ...] | None:
        """What tells changed files from these; None while one of them is gone."""
        try:
            found = [os.stat(path) for path in (self._certificate, self._key) if path]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def exposed(self) -> str:
        """A warning when others can read the key, else empty."""
        try:
            mode = os.stat(self._key).st_mode if self._key else 0
        except OSError:
            return ""
        return f"{self._key} can be read by others; run: chmod 600 {self._key}" if mode & 0o077 else ""

    @staticmethod
    def _there(path: str) -> bool:
        # a dangling link and what may not be looked at count as there: nothing is made in their place
        return os.path.lexists(path)

    def _private(self, raw: bytes) -> PrivateKey:
        try:
            key = load_pem_private_key(raw, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, PrivateKey):
            raise ValueError(
                f"IDENTREE_MTLS_CA_KEY: {self._key} holds no unencrypted private key in PEM form that signs"
            )
        return key

    def _generate(self) -> None:
        """Under a lock, so that of several processes one makes it."""
        try:
            with open(os.open(f"{self._key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._there(self._certificate) or self._there(self._key):
                    return
                certificate, key = self._made()
                # the key first: a certificate without its key could be distributed and be of no use
                _create(self._key, key, 0o600)
                try:
                    _create(self._certificate, certificate, 0o644)
                except OSError:
                    # nobody has seen it, and it would be half a CA
                    with suppress(OSError):
                        os.unlink(self._key)
                    raise
        except OSError as problem:
            raise ValueError(
                f"IDENTREE_MTLS_CA_KEY: the CA cannot be made: {problem.filename or self._key}: {problem.strerror}; "
                "the directories must exist and be writable for the user that identree runs as"
            ) from None

    def _made(self) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._now().replace(microsecond=0)
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "identree"),
                x509.NameAttribute(NameOID.COMMON_NAME, "identree mTLS CA"),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(_serial(self._random_bits))
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def _create(path: str, content: bytes, mode: int) -> None:
    """A new file, whole or not at all, never in place of another; under the lock. :raise OSError:"""
    directory = os.path.dirname(path) or "."
    temporary = os.path.join(directory, f".{os.path.basename(path)}.new")
    # of one who died at this
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # unlike a rename, a link fails when the name is taken
        os.link(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(setting: str, name: str, limit: int = PEM_BYTES) -> bytes:
    """:raise ValueError: names the setting and says what to do."""
    # symbolic links are followed: container platforms mount secrets as links
    try:
        with Path(name).open("rb") as file:
            raw = file.read(limit + 1)
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or "not a path"
        raise ValueError(
            f"{setting}: {name[:200]} cannot be read ({why}); it must exist and be readable for the user that "
            "identree runs as"
        ) from None
    if len(raw) > limit:
        raise ValueError(f"{setting}: {name} is larger than {limit} bytes")
    return raw


# -- issuing ----------------------------------------------------------------------------------------------------------
class Authority:
    """
    Issues certificates to hosts.

    :param files: opened here, which blocks; a CA is made when there is none.
    :param remote: holds the key where the files do not.
    :param lifetime: of a certificate, before the jitter.
    :param below: returns a random integer from 0 to below its argument.
    :param random_bits: returns a random integer of so many bits.
    :raise ValueError: the CA cannot be used.
    """

    _log = Logger()

    def __init__(
        self,
        files: CAFiles,
        remote: Callable[[x509.Certificate], SigningKey] | None = None,
        *,
        lifetime: timedelta,
        now: Now,
        below: Callable[[int], int],
        random_bits: Callable[[int], int],
        in_thread: InThread,
    ) -> None:
        self._files = files
        self._lifetime = lifetime
        self._now = now
        self._below = below
        self._random_bits = random_bits
        self._in_thread = in_thread
        self._trouble = ""
        self._ca = files.open()
        self._stamps = files.stamps()
        self._remote = remote(self._ca.issuer) if remote else None
        self._placeholder: PrivateKey | None = None
        hash_of(_public(self._ca.issuer), remote=self._remote is not None)
        exposed = files.exposed()
        if exposed:
            self._log.warn("mTLS: {exposed}", exposed=exposed)

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """What host certificates must be signed by."""
        return self._ca.certificates

    @property
    def pem(self) -> str:
        return self._ca.pem

    @property
    def expires_at(self) -> datetime:
        """The end of the issuing certificate."""
        return self._ca.issuer.not_valid_after_utc

    async def refresh(self) -> bool:
        """
        Read the files again if they changed; whether there is another CA now. What is unusable changes nothing, and is
        logged once. Where another program has the key, the issuing certificate stays until a restart.
        """
        try:
            loaded = await self._in_thread(self._load_if_changed)
        except ValueError as problem:
            if str(problem) != self._trouble:
                self._trouble = str(problem)
                self._log.error("mTLS: {problem}. The CA that was read before stays in force.", problem=problem)
            return False
        self._trouble = ""
        if loaded is None:
            return False
        ca, self._stamps = loaded
        if ca.certificates == self._ca.certificates:
            return False
        if self._remote is not None and ca.issuer != self._ca.issuer:
            self._log.error("mTLS: the CA certificate is another one; restart identree to use it with the remote key")
            return False
        self._ca, self._placeholder = ca, None
        self._log.info("mTLS: the CA was read again, it is valid until {until}", until=self.expires_at.isoformat())
        return True

    async def issue(self, hostname: str) -> Issued:
        """
        A certificate and a new key for a host.

        :param hostname: valid; the certificate carries it as it is.
        :raise CannotIssue: the CA is not valid now, or its key did not sign.
        """
        now = self._now()
        issuer = self._ca.issuer
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            raise CannotIssue(
                f"the CA is valid from {issuer.not_valid_before_utc.isoformat()} to "
                f"{issuer.not_valid_after_utc.isoformat()} only"
            )
        not_after = min((now + self._life()).replace(microsecond=0), issuer.not_valid_after_utc)
        ca = self._ca
        try:
            if ca.key is not None:
                local = ca.key
                key, certificate = await self._in_thread(lambda: self._signed_here(ca, local, hostname, now, not_after))
            else:
                key, certificate = await self._signed_there(ca, hostname, now, not_after)
        except SigningFailed as problem:
            raise CannotIssue(str(problem)) from problem
        return Issued(
            certificate=certificate.public_bytes(Encoding.PEM).decode("ascii"),
            key=_key_pem(key).decode("ascii"),
            ca=ca.pem,
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
        )

    def _life(self) -> timedelta:
        spread = int(self._lifetime.total_seconds()) // JITTER_PART
        offset = timedelta(seconds=self._below(spread) if spread else 0)
        return self._lifetime + offset if self._below(2) else self._lifetime - offset

    def _load_if_changed(self) -> tuple[CA, tuple[Stamp, ...]] | None:
        stamps = self._files.stamps()
        if stamps is not None and stamps == self._stamps:
            return None
        ca = self._files.load()
        hash_of(_public(ca.issuer), remote=self._remote is not None)
        return ca, stamps or ()

    def _signed_here(
        self, ca: CA, local: PrivateKey, hostname: str, now: datetime, not_after: datetime
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(ca, key, hostname, now, not_after)
        return key, builder.sign(local, hash_of(_public(ca.issuer), remote=False))

    async def _signed_there(
        self, ca: CA, hostname: str, now: datetime, not_after: datetime
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """
        The library signs only with keys that it has. So a throw-away key of the same kind signs first, which puts the
        right algorithm in place, and then its signature is replaced by the real one.
        """
        assert self._remote is not None
        public = _public(ca.issuer)
        algorithm = hash_of(public, remote=True)
        assert algorithm is not None

        def drafted() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
            if self._placeholder is None:
                if isinstance(public, rsa.RSAPublicKey):
                    self._placeholder = rsa.generate_private_key(65537, PLACEHOLDER_RSA_BITS)
                else:
                    self._placeholder = ec.generate_private_key(ec.SECP256R1())
            key = ec.generate_private_key(ec.SECP256R1())
            return key, self._builder(ca, key, hostname, now, not_after).sign(self._placeholder, algorithm)

        key, draft = await self._in_thread(drafted)
        digest = hashlib.new(algorithm.name, draft.tbs_certificate_bytes).digest()
        signature = await self._remote.sign(digest, algorithm.name)
        return key, assemble(draft, signature, ca.issuer)

    def _builder(
        self, ca: CA, key: ec.EllipticCurvePrivateKey, hostname: str, now: datetime, not_after: datetime
    ) -> x509.CertificateBuilder:
        issuer = ca.issuer
        short = len(hostname) <= COMMON_NAME_CHARACTERS
        # a name cut to fit might be another host's, so a long one has no common name at all
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)] if short else [])
        identifier = _authority_identifier(issuer)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(_serial(self._random_bits))
            .not_valid_before(max(now.replace(microsecond=0) - BACKDATED, issuer.not_valid_before_utc))
            .not_valid_after(not_after)
            # RFC 5280 section 4.2.1.6: critical where there is no subject
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=not short)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(identifier, critical=False)
        )


def hash_of(public: PublicKey, *, remote: bool) -> Hash | None:
    """
    What certificates of this key are signed with; None where the algorithm has its own.

    :param remote: only a digest is given to the key's holder.
    :raise ValueError: a remote key of a kind that signs no digests.
    """
    if isinstance(public, ec.EllipticCurvePublicKey):
        bits = public.curve.key_size
        return SHA256() if bits <= 256 else SHA384() if bits <= 384 else SHA512()
    if isinstance(public, rsa.RSAPublicKey):
        return SHA256()
    if remote:
        raise ValueError("the CA's key signs no digests (Ed25519 or Ed448); use an ECDSA or RSA key with Vault")
    return None


def assemble(draft: x509.Certificate, signature: bytes, issuer: x509.Certificate) -> x509.Certificate:
    """
    The certificate with another signature (RFC 5280 section 4.1), verified.

    :raise SigningFailed: the signature is not the issuer's.
    """
    tbs = draft.tbs_certificate_bytes
    whole = draft.public_bytes(Encoding.DER)
    at = whole.index(tbs) + len(tbs)
    algorithm = whole[at : _end_of_element(whole, at)]
    der = _der(0x30, tbs + algorithm + _der(0x03, b"\0" + signature))
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise SigningFailed("the signature that came back does not fit the CA's certificate") from None
    return certificate


def _der(tag: int, content: bytes) -> bytes:
    """One element with its definite length (X.690 section 8.1)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _end_of_element(der: bytes, at: int) -> int:
    """Where the element that begins at ``at`` ends; the bytes are a certificate's that was parsed already."""
    first = der[at + 1]
    if first < 0x80:
        return at + 2 + first
    start = at + 2 + (first & 0x7F)
    return start + int.from_bytes(der[at + 2 : start], "big")


def _authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(issuer))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _public(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if not isinstance(key, PublicKey):
        raise ValueError("the CA's key is of a kind that signs no certificates here; use ECDSA, RSA or Ed25519")
    return key


def _spki(key: object) -> bytes:
    assert isinstance(key, PublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # SEC 1, "EC PRIVATE KEY": what deployed hosts expect
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _serial(random_bits: Callable[[int], int]) -> int:
    # RFC 5280 section 4.1.2.2: positive
    return random_bits(SERIAL_BITS) or 1


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
