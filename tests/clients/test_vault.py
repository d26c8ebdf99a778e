"""Signing with a key in Vault, against a stand-in in memory that refuses what the real one refuses."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, execute
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.authority import Authority, CAFiles
from identree.app.ports import SigningFailed
from identree.clients.vault import REQUEST_SECONDS, VaultKey
from tests.clients.vault import ADDRESS, TOKEN, Vault

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
DIGEST = hashlib.sha256(b"a certificate").digest()


def ca_of(key: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )


class VaultTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.lines: list[str] = []
        self.patch(VaultKey, "_log", Logger(observer=lambda event: self.lines.append(formatEvent(event))))
        self.serve(EC)

    def serve(self, *keys: Any, ca: Any = None, **changes: Any) -> None:
        self.vault = Vault(*keys)
        self.client = self.build(ca or keys[0], **changes)

    def build(self, ca: Any, **changes: Any) -> VaultKey:
        values: dict[str, Any] = {
            "http": StubTreq(self.vault),
            "clock": self.clock,
            "monotonic": self.clock.seconds,
            "address": ADDRESS + "/",
            "token": TOKEN,
            "key_name": "identree-ca",
            "certificate": ca_of(ca),
            **changes,
        }
        return VaultKey(**values)

    def sign(self, digest: bytes = DIGEST) -> bytes:
        return self.successResultOf(Deferred.fromCoroutine(self.client.sign(digest, "sha256")))

    def refused(self) -> str:
        failure = self.failureResultOf(Deferred.fromCoroutine(self.client.sign(DIGEST, "sha256")), SigningFailed)
        said = str(failure.value)
        self.assertNotIn(TOKEN, said)
        return said

    def renew(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.client.renew()))


class SigningTests(VaultTestCase):
    def issued(self, key: Any) -> x509.Certificate:
        """A whole certificate, through the authority."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "ca.crt"
        path.write_bytes(ca_of(key).public_bytes(Encoding.PEM))
        authority = Authority(
            CAFiles(str(path), "", now=lambda: NOW, random_bits=lambda bits: 5),
            lambda certificate: self.client,
            lifetime=timedelta(days=365),
            now=lambda: NOW,
            below=lambda n: 0,
            random_bits=lambda bits: 5,
            in_thread=execute,  # type: ignore[arg-type]
        )
        issued = self.successResultOf(Deferred.fromCoroutine(authority.issue("web1")))
        return x509.load_pem_x509_certificate(issued.certificate.encode())

    def test_certificates(self) -> None:
        """Certificates of ECDSA and RSA keys verify against the CA."""
        for key in (EC, ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1()), RSA):
            self.serve(key)
            self.issued(key).verify_directly_issued_by(ca_of(key))

    def test_raw_signature(self) -> None:
        """Two numbers side by side become DER, as certificates have them."""
        self.vault.raw_signatures = True
        EC.public_key().verify(self.sign(b"x" * 32), b"x" * 32, ec.ECDSA(_prehashed()))

    def test_unpadded(self) -> None:
        """Base64 without padding is read too."""
        self.vault.padded = False
        EC.public_key().verify(self.sign(), DIGEST, ec.ECDSA(_prehashed()))

    def test_checked_once(self) -> None:
        """The version is looked up before the first signature only."""
        self.sign()
        self.sign()
        paths = ["GET /v1/transit/keys/identree-ca", *["POST /v1/transit/sign/identree-ca"] * 2]
        self.assertEqual(self.vault.asked, paths)

    def test_pinned_version(self) -> None:
        """After a rotation in Vault the version that the CA's certificate was made with goes on signing."""
        self.serve(OTHER, EC, OTHER, ca=EC)
        EC.public_key().verify(self.sign(), DIGEST, ec.ECDSA(_prehashed()))

    def test_mount_and_namespace(self) -> None:
        """Both go where Vault wants them."""
        self.serve(EC, mount="teams/pki/transit", namespace="platform/identree")
        self.vault.mount, self.vault.namespace = "teams/pki/transit", "platform/identree"
        self.sign()
        self.assertEqual(self.vault.asked[0], "GET /v1/teams/pki/transit/keys/identree-ca")

    def test_odd_name(self) -> None:
        """A name cannot lead to another path."""
        self.serve(EC, key_name="../sys/seal")
        self.assertIn("answers 404", self.refused())


class CheckTests(VaultTestCase):
    def check(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.client.check()))

    def impossible(self) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(self.client.check()), ValueError).value)

    def test_good(self) -> None:
        """The CA's key is there."""
        self.check()

    def test_other_key(self) -> None:
        """None of the versions is the CA's: told at the start, with the setting."""
        self.serve(OTHER, OTHER, ca=EC)
        said = self.impossible()
        self.assertIn("none of the 2 versions of identree-ca", said)
        self.assertIn("IDENTREE_MTLS_VAULT_KEY_NAME", said)
        self.assertIn("none of the 2 versions", self.refused())

    def test_retired_version(self) -> None:
        """Vault signs only with newer versions."""
        self.serve(EC, OTHER)
        self.vault.min_encryption_version = 2
        self.assertIn("min_encryption_version", self.impossible())

    def test_symmetric_key(self) -> None:
        """A key that encrypts has no public part."""
        self.vault.replies["/v1/transit/keys/identree-ca"] = (
            200,
            {"data": {"type": "aes256-gcm96", "keys": {"1": 1767225600}, "supports_signing": False}},
        )
        self.assertIn("does not sign", self.impossible())

    def test_nonsense(self) -> None:
        """What is no answer of Vault's is a failure, not a crash."""
        for document in ({}, [], {"data": {}}, {"data": {"keys": []}}, {"data": 1}, None):
            self.vault.replies["/v1/transit/keys/identree-ca"] = (200, document)
            self.failureResultOf(Deferred.fromCoroutine(self.client.check()), SigningFailed)


class FailureTests(VaultTestCase):
    def test_wrong_token(self) -> None:
        """A refused token is told as that, and never shown."""
        self.serve(EC, token="hvs.wrong")
        self.assertEqual(
            self.refused(),
            f"Vault at {ADDRESS} answers 403 (permission denied); the token is wrong, has ended, or its policy does "
            "not allow it",
        )

    def test_sealed(self) -> None:
        """So is a seal; afterwards signing works again."""
        self.vault.sealed = True
        self.assertIn("answers 503 (Vault is sealed)", self.refused())
        self.vault.sealed = False
        self.sign()

    def test_token_echoed(self) -> None:
        """A proxy that says back the token does not bring it into the log."""
        self.vault.replies["/v1/transit/keys/identree-ca"] = (400, {"errors": [f"bad header {TOKEN}\n\x1b[31m"]})
        self.assertIn("(bad header *** ", self.refused())

    def test_redirect(self) -> None:
        """A standby node that redirects is not followed: the token would go elsewhere."""
        self.vault.replies["/v1/transit/keys/identree-ca"] = (307, {})
        self.assertIn("give the address of the active node", self.refused())

    def test_no_answer(self) -> None:
        """Waiting ends."""
        self.vault.replies["/v1/transit/keys/identree-ca"] = None
        signing = Deferred.fromCoroutine(self.client.sign(DIGEST, "sha256"))
        self.assertNoResult(signing)
        self.clock.advance(REQUEST_SECONDS)
        self.assertIn("no answer within 15 s", str(self.failureResultOf(signing, SigningFailed).value))

    def test_signatures_that_are_none(self) -> None:
        """Each form of nonsense in place of a signature is a failure."""
        self.sign()
        for signature in (None, 7, "", "vault:v1:", "vault:v2:MEUC", "vault:v1:MEUC", "vault:v1:M", "vault:v1:%%%%"):
            self.vault.replies["/v1/transit/sign/identree-ca"] = (200, {"data": {"signature": signature}})
            self.refused()


class TokenTests(VaultTestCase):
    def looked(self) -> list[str]:
        paths = [path.rpartition("/")[2] for path in self.vault.asked]
        self.vault.asked.clear()
        return paths

    def test_renewed_in_time(self) -> None:
        """Looked up once, then renewed when half of its time has passed, again and again."""
        self.renew()
        self.assertEqual(self.looked(), ["lookup-self"])
        self.clock.advance(1799)
        self.renew()
        self.assertEqual(self.looked(), [])
        for _ in range(3):
            self.clock.advance(1800)
            self.renew()
            self.assertEqual(self.looked(), ["renew-self"])
        self.assertEqual(self.lines, [])

    def test_root(self) -> None:
        """A token without an end needs nothing."""
        self.vault.ttl = 0
        self.renew()
        self.clock.advance(1e6)
        self.renew()
        self.assertEqual((self.looked(), self.lines), (["lookup-self"], []))

    def test_not_renewable(self) -> None:
        """One that cannot be renewed is told once, with its end."""
        self.vault.renewable = False
        self.renew()
        self.clock.advance(1e6)
        self.renew()
        self.assertEqual(self.looked(), ["lookup-self"])
        self.assertEqual(
            [line.partition(";")[0] for line in self.lines],
            ["Vault: the token ends in 1.0 hours and cannot be renewed"],
        )

    def test_longest_life(self) -> None:
        """One that cannot live longer is told before it ends."""
        self.renew()
        self.vault.longest = 1800
        self.clock.advance(1800)
        self.renew()
        self.assertIn("has reached its longest life and ends in 0.5 hours", self.lines[0])

    def test_failure(self) -> None:
        """What goes wrong is logged once, tried again, and its end is told."""
        self.renew()
        self.vault.sealed = True
        self.clock.advance(1800)
        self.renew()
        self.renew()
        self.vault.sealed = False
        self.renew()
        self.assertEqual(self.looked(), ["lookup-self", *["renew-self"] * 3])
        self.assertEqual(len(self.lines), 2)
        self.assertIn("could not be renewed", self.lines[0])
        self.assertEqual(self.lines[1], "Vault: the token is renewed again")
        self.assertNotIn(TOKEN, "".join(self.lines))


def _prehashed() -> Any:
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    return Prehashed(SHA256())
