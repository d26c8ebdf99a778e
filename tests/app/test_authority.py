"""The certificate authority: its files, what it issues, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from identree.app.authority import (
    Authority,
    CAFiles,
    CannotIssue,
    Issued,
    assemble,
    certificate_name,
    hash_of,
    trusted,
)
from identree.app.ports import SigningFailed

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
YEAR = timedelta(hours=8760)

# Made once: an RSA key takes a while.
RSA = rsa.generate_private_key(65537, 2048)


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    return execute(function)


def self_signed(
    key: Any, *, ca: bool = True, until: timedelta = 3650 * timedelta(days=1), name: str = "a CA"
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(NOW + until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[no-any-return]


class Remote:
    """A key elsewhere: signs digests as Vault does."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.asked: list[str] = []
        self.broken: Exception | None = None

    async def sign(self, digest: bytes, hash_name: str) -> bytes:
        self.asked.append(hash_name)
        if self.broken is not None:
            raise self.broken
        kind = Prehashed({"sha256": SHA256, "sha384": SHA384, "sha512": SHA512}[hash_name]())
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(digest, padding.PKCS1v15(), kind)
        return self.key.sign(digest, ec.ECDSA(kind))  # type: ignore[no-any-return]


class AuthorityTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.certificate, self.key = self.path / "ca.crt", self.path / "ca.key"
        self.now = NOW
        self.below: Callable[[int], int] = lambda n: 0

    def files(self, key: str | None = None) -> CAFiles:
        return CAFiles(
            str(self.certificate),
            str(self.key) if key is None else key,
            now=lambda: self.now,
            random_bits=lambda bits: (1 << bits) - 3,
        )

    def authority(self, remote: Remote | None = None, lifetime: timedelta = YEAR) -> Authority:
        return Authority(
            self.files("" if remote else None),
            (lambda certificate: remote) if remote else None,
            lifetime=lifetime,
            now=lambda: self.now,
            below=lambda n: self.below(n),
            random_bits=lambda bits: 0x0ABC,
            in_thread=inline,
        )

    def issue(self, authority: Authority, hostname: str = "web1.example.com") -> Issued:
        return self.successResultOf(Deferred.fromCoroutine(authority.issue(hostname)))

    def leaf(self, authority: Authority, hostname: str = "web1.example.com") -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.issue(authority, hostname).certificate.encode())

    def write_ca(self, key: Any, certificate: x509.Certificate | None = None) -> None:
        self.certificate.write_bytes(pem(certificate or self_signed(key)))
        self.key.write_bytes(key_pem(key))
        self.key.chmod(0o600)


class FileTests(AuthorityTestCase):
    def refused(self) -> str:
        return str(self.assertRaises(ValueError, self.files().open))

    def test_made(self) -> None:
        """Without either half a CA is made as the contract wants it."""
        ca = self.files().open()
        certificate = ca.issuer
        self.assertEqual(certificate.subject.rfc4514_string(), "CN=identree mTLS CA,O=identree")
        self.assertEqual(certificate.not_valid_before_utc, NOW.replace(microsecond=0) - timedelta(minutes=5))
        self.assertEqual(certificate.not_valid_after_utc, NOW.replace(microsecond=0) + timedelta(days=3650))
        self.assertEqual(certificate.serial_number, (1 << 128) - 3)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertEqual((constraints.critical, constraints.value.ca, constraints.value.path_length), (True, True, 0))
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        self.assertEqual((usage.key_cert_sign, usage.crl_sign, usage.digital_signature), (True, True, False))
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        self.assertEqual(certificate.signature_hash_algorithm.name, "sha256")

    def test_modes(self) -> None:
        """Only identree reads the key; nothing is left beside the two files and the lock."""
        self.files().open()
        self.assertEqual(
            [oct(path.stat().st_mode & 0o777) for path in (self.certificate, self.key)], ["0o644", "0o600"]
        )
        self.assertIn(b"-----BEGIN EC PRIVATE KEY-----", self.key.read_bytes())
        self.assertEqual(sorted(os.listdir(self.path)), ["ca.crt", "ca.key", "ca.key.lock"])

    def test_kept(self) -> None:
        """The second start has the same CA."""
        self.assertEqual(self.files().open().issuer, self.files().open().issuer)

    def test_half(self) -> None:
        """A half alone is never overwritten, and the remedy is named."""
        for missing in (self.certificate, self.key):
            self.files().open()
            missing.unlink()
            left = self.key if missing is self.certificate else self.certificate
            before = left.read_bytes()
            said = self.refused()
            self.assertIn(f"{missing} is missing, while {left} is there. Put it back", said)
            self.assertEqual(left.read_bytes(), before)
            left.unlink()

    def test_unreadable_half(self) -> None:
        """A half that is there but cannot be used is not replaced either."""
        self.files().open()
        self.certificate.write_bytes(b"rubbish")
        before = self.key.read_bytes()
        self.assertIn("holds no certificate in PEM form", self.refused())
        self.assertEqual((self.certificate.read_bytes(), self.key.read_bytes()), (b"rubbish", before))

    def test_dangling_link(self) -> None:
        """A link that leads nowhere (a volume that is not mounted) counts as there."""
        self.certificate.symlink_to(self.path / "elsewhere")
        self.key.symlink_to(self.path / "elsewhere.key")
        self.assertIn("cannot be read", self.refused())

    def test_crash_between_the_halves(self) -> None:
        """A certificate that cannot be written takes the key with it, so that the next start can try again."""
        good = self.certificate
        self.certificate = self.path / "nowhere" / "ca.crt"
        self.assertIn("must exist and be writable", self.refused())
        self.assertFalse(self.key.exists())
        self.certificate = good
        self.files().open()

    def test_no_directory(self) -> None:
        """A directory that is missing is named."""
        self.certificate, self.key = self.path / "no" / "ca.crt", self.path / "no" / "ca.key"
        self.assertIn(f"{self.path}/no", self.refused())

    def test_other_key(self) -> None:
        """Halves that do not belong together."""
        self.write_ca(ec.generate_private_key(ec.SECP256R1()))
        self.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
        self.assertIn("is not the key of the first certificate", self.refused())

    def test_no_ca(self) -> None:
        """A certificate that may not sign others."""
        key = ec.generate_private_key(ec.SECP256R1())
        self.write_ca(key, self_signed(key, ca=False))
        self.assertIn("no CA's", self.refused())

    def test_exposed_key(self) -> None:
        """A key that others can read is used, and told."""
        self.write_ca(ec.generate_private_key(ec.SECP256R1()))
        self.key.chmod(0o644)
        self.assertEqual(self.files().exposed(), f"{self.key} can be read by others; run: chmod 600 {self.key}")
        self.assertEqual(self.files("").exposed(), "")

    def test_openssl(self) -> None:
        """The openssl command accepts the chain as one for TLS clients."""
        issued = self.issue(self.real_time_authority())
        leaf = self.path / "leaf.crt"
        leaf.write_text(issued.certificate)
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(self.certificate), str(leaf)],
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.returncode, done.stdout), (0, f"{leaf}: OK\n"), done.stderr)

    def real_time_authority(self) -> Authority:
        self.now = datetime.now(UTC)
        return self.authority()


class IssueTests(AuthorityTestCase):
    def test_contents(self) -> None:
        """Subject, names, usage and serial are the contract's."""
        certificate = self.leaf(self.authority())
        self.assertEqual(certificate.subject.rfc4514_string(), "CN=web1.example.com")
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
        self.assertEqual((names.critical, names.value.get_values_for_type(x509.DNSName)), (False, ["web1.example.com"]))
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        self.assertEqual((usage.digital_signature, usage.key_cert_sign), (True, False))
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(extended), [ExtendedKeyUsageOID.CLIENT_AUTH])
        self.assertRaises(x509.ExtensionNotFound, extensions.get_extension_for_class, x509.BasicConstraints)
        self.assertIsInstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        self.assertEqual(certificate.not_valid_before_utc, NOW.replace(microsecond=0) - timedelta(minutes=5))

    def test_serial(self) -> None:
        """Lower-case hex without leading zeros."""
        self.assertEqual(self.issue(self.authority()).serial, "abc")

    def test_key(self) -> None:
        """The key is the certificate's, in the form that deployed hosts expect, and in no representation."""
        issued = self.issue(self.authority())
        self.assertTrue(issued.key.startswith("-----BEGIN EC PRIVATE KEY-----"))
        key = load_pem_private_key(issued.key.encode(), None)
        shown = x509.load_pem_x509_certificate(issued.certificate.encode()).public_key()
        self.assertEqual(key.public_key(), shown)
        self.assertNotIn("PRIVATE", repr(issued))

    def test_issuer(self) -> None:
        """It verifies against what comes along as the CA, and names its key."""
        issued = self.issue(self.authority())
        ca = x509.load_pem_x509_certificate(issued.ca.encode())
        leaf = x509.load_pem_x509_certificate(issued.certificate.encode())
        leaf.verify_directly_issued_by(ca)
        self.assertEqual(
            leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier,
            ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        )

    def test_long_name(self) -> None:
        """A name that fits no common name stands whole in the alternative names, and only there."""
        hostname = ".".join(["a" * 62] * 4) + "b"
        self.assertEqual(len(hostname), 252)
        certificate = self.leaf(self.authority(), hostname)
        self.assertEqual(list(certificate.subject), [])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        self.assertTrue(names.critical)
        self.assertEqual(certificate_name(certificate), hostname)

    def test_longest_common_name(self) -> None:
        """64 characters still are one."""
        certificate = self.leaf(self.authority(), "a" * 64)
        self.assertEqual(certificate.subject.rfc4514_string(), f"CN={'a' * 64}")

    def test_jitter(self) -> None:
        """The life is the setting's, give or take what is below a sixth of it."""
        ends = set()
        for offset, sign in ((0, 0), (-1, 0), (-1, 1)):
            self.below = lambda n, offset=offset, sign=sign: sign if n == 2 else offset % n  # type: ignore[misc]
            ends.add(self.leaf(self.authority()).not_valid_after_utc - NOW.replace(microsecond=0))
        sixth = timedelta(seconds=8760 * 600 - 1)
        self.assertEqual(ends, {YEAR, YEAR - sixth, YEAR + sixth})

    def test_clamped(self) -> None:
        """No certificate outlives the CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        self.write_ca(key, self_signed(key, until=timedelta(days=10)))
        authority = self.authority()
        self.assertEqual(self.leaf(authority).not_valid_after_utc, authority.expires_at)

    def test_expired_ca(self) -> None:
        """A CA at its end issues nothing."""
        authority = self.authority()
        self.now = authority.expires_at
        failure = self.failureResultOf(Deferred.fromCoroutine(authority.issue("web1")), CannotIssue)
        self.assertIn("the CA is valid from", str(failure.value))

    def test_kinds_of_keys(self) -> None:
        """An operator's CA may have any of the usual keys."""
        for key in (RSA, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
            self.write_ca(key)
            authority = self.authority()
            self.leaf(authority).verify_directly_issued_by(authority.certificates[0])


class RefreshTests(AuthorityTestCase):
    def refresh(self, authority: Authority) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(authority.refresh()))

    def test_unchanged(self) -> None:
        """Nothing new is no change."""
        self.assertIs(self.refresh(self.authority()), False)

    def test_gentle_change(self) -> None:
        """A new CA before the old one in the file: the new one issues, both are trusted."""
        authority = self.authority()
        old = authority.certificates[0]
        key = ec.generate_private_key(ec.SECP256R1())
        new = self_signed(key)
        self.certificate.write_bytes(pem(new) + pem(old))
        self.key.write_bytes(key_pem(key))
        self.assertIs(self.refresh(authority), True)
        self.assertEqual(authority.certificates, (new, old))
        self.leaf(authority).verify_directly_issued_by(new)

    def test_half_a_change(self) -> None:
        """While only one half is new the CA that was read before stays, and that is said once."""
        authority = self.authority()
        old = authority.certificates
        self.certificate.write_bytes(pem(self_signed(ec.generate_private_key(ec.SECP256R1()))))
        self.assertIs(self.refresh(authority), False)
        self.assertIs(self.refresh(authority), False)
        self.assertEqual(authority.certificates, old)
        self.leaf(authority).verify_directly_issued_by(old[0])


class RemoteTests(AuthorityTestCase):
    def remote(self, key: Any) -> tuple[Remote, Authority]:
        self.certificate.write_bytes(pem(self_signed(key)))
        remote = Remote(key)
        return remote, self.authority(remote)

    def test_signed(self) -> None:
        """For every kind of key that signs digests the certificate verifies, and says the right algorithm."""
        for key, hash_name in (
            (ec.generate_private_key(ec.SECP256R1()), "sha256"),
            (ec.generate_private_key(ec.SECP384R1()), "sha384"),
            (ec.generate_private_key(ec.SECP521R1()), "sha512"),
            (RSA, "sha256"),
        ):
            remote, authority = self.remote(key)
            leaf = self.leaf(authority)
            leaf.verify_directly_issued_by(authority.certificates[0])
            self.assertEqual(certificate_name(leaf), "web1.example.com")
            assert leaf.signature_hash_algorithm is not None
            self.assertEqual((remote.asked, leaf.signature_hash_algorithm.name), ([hash_name], hash_name))

    def test_no_key_here(self) -> None:
        """No key is made beside the certificate."""
        self.remote(RSA)
        self.assertFalse(self.key.exists())

    def test_certificate_is_needed(self) -> None:
        """It is never made here either."""
        said = str(self.assertRaises(ValueError, self.authority, Remote(RSA)))
        self.assertIn("IDENTREE_MTLS_CA_CERT", said)

    def test_other_key(self) -> None:
        """A signature of another key is noticed before a host gets it."""
        remote, authority = self.remote(ec.generate_private_key(ec.SECP256R1()))
        remote.key = ec.generate_private_key(ec.SECP256R1())
        failure = self.failureResultOf(Deferred.fromCoroutine(authority.issue("web1")), CannotIssue)
        self.assertIn("does not fit the CA's certificate", str(failure.value))

    def test_unavailable(self) -> None:
        """What the holder of the key says goes to the log."""
        remote, authority = self.remote(RSA)
        remote.broken = SigningFailed("Vault is sealed")
        failure = self.failureResultOf(Deferred.fromCoroutine(authority.issue("web1")), CannotIssue)
        self.assertEqual(str(failure.value), "Vault is sealed")

    def test_no_digests(self) -> None:
        """An Ed25519 key cannot sign digests: told at the start."""
        said = str(self.assertRaises(ValueError, self.remote, ed25519.Ed25519PrivateKey.generate()))
        self.assertIn("use an ECDSA or RSA key", said)

    def test_changed_certificate(self) -> None:
        """Another CA certificate needs another key, and so a restart."""
        _, authority = self.remote(RSA)
        before = authority.certificates
        self.certificate.write_bytes(pem(self_signed(RSA, name="another CA")))
        self.assertIs(self.successResultOf(Deferred.fromCoroutine(authority.refresh())), False)
        self.assertEqual(authority.certificates, before)


class AssembleTests(SynchronousTestCase):
    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, signature: bytes) -> None:
        """Whatever comes back as a signature, the answer is a certificate of the issuer's or SigningFailed."""
        self.assertRaises(SigningFailed, assemble, DRAFT, signature, ISSUER)

    def test_the_right_one(self) -> None:
        """The issuer's own signature gives a certificate with the draft's contents."""
        digest = hashlib.sha256(DRAFT.tbs_certificate_bytes).digest()
        signature = ISSUER_KEY.sign(digest, ec.ECDSA(Prehashed(SHA256())))
        whole = assemble(DRAFT, signature, ISSUER)
        self.assertEqual(whole.tbs_certificate_bytes, DRAFT.tbs_certificate_bytes)
        self.assertEqual(whole.signature, signature)

    def test_hashes(self) -> None:
        """A curve's hash is as strong as the curve."""
        names = []
        for curve in (ec.SECP224R1(), ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
            algorithm = hash_of(ec.generate_private_key(curve).public_key(), remote=True)
            assert algorithm is not None
            names.append(algorithm.name)
        self.assertEqual(names, ["sha256", "sha256", "sha384", "sha512"])


class NameTests(SynchronousTestCase):
    def name(self, common: str = "", *names: x509.GeneralName) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []))
            .issuer_name(ISSUER.subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + YEAR)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return certificate_name(builder.sign(ISSUER_KEY, SHA256()))

    def test_alternative_name_first(self) -> None:
        """The first DNS name counts, not the common name."""
        self.assertEqual(self.name("common", x509.DNSName("first"), x509.DNSName("second")), "first")

    def test_common_name(self) -> None:
        """Without DNS names the common name does."""
        self.assertEqual(self.name("common"), "common")
        self.assertEqual(self.name("common", x509.RFC822Name("a@b.c")), "common")

    def test_normalised(self) -> None:
        """As the registry has them."""
        self.assertEqual(self.name("", x509.DNSName("WEB1.Example.com.")), "web1.example.com")

    def test_no_host_name(self) -> None:
        """What is no host name speaks for nobody: a DN must not be made of it."""
        for bad in ("web1,ou=people", "web 1", "*", "ünï", "a\x00b"):
            self.assertEqual(self.name(bad), "", bad)
        self.assertEqual(self.name(), "")


class TrustedTests(SynchronousTestCase):
    def test_text(self) -> None:
        """PEM text, also with the line breaks that environment files can carry."""
        text = pem(ISSUER).decode()
        for value in (text, text.replace("\n", "\\n")):
            found = trusted(value)
            self.assertEqual((found.path, found.certificates, found.pem), ("", (ISSUER,), text))

    def test_path(self) -> None:
        """Or a path, which is followed later on."""
        with TemporaryDirectory() as directory:
            path = Path(directory) / "ca.crt"
            path.write_bytes(b"a comment\n" + pem(ISSUER))
            found = trusted(str(path))
        self.assertEqual((found.path, found.pem), (str(path), pem(ISSUER).decode()))

    def test_neither(self) -> None:
        """Anything else stops the start, with the setting's name."""
        for value in ("/none.crt", "MIIB", "a\0b", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"):
            self.assertIn("IDENTREE_LDAP_TLS_CA_CERT", str(self.assertRaises(ValueError, trusted, value)), value)

    def test_private_key(self) -> None:
        """A key beside the certificate would be given to every host."""
        value = (pem(ISSUER) + key_pem(ISSUER_KEY)).decode()
        said = str(self.assertRaises(ValueError, trusted, value))
        self.assertIn("private key", said)
        self.assertNotIn("BEGIN", said)

    def test_too_much(self) -> None:
        """Agents read answers of bounded size."""
        self.assertIn("hosts take less", str(self.assertRaises(ValueError, trusted, pem(ISSUER).decode() * 60)))


ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = self_signed(ISSUER_KEY)
DRAFT = (
    x509.CertificateBuilder()
    .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web1")]))
    .issuer_name(ISSUER.subject)
    .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    .serial_number(7)
    .not_valid_before(NOW)
    .not_valid_after(NOW + YEAR)
    .sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
)
