"""What is read in certificates, against ``cryptography``; and whether a server would take one."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from identree.agent import certificates, clock
from identree.agent.certificates import Certificate, NotACertificate
from tests.agent.authority import Authority


@functools.cache
def some_certificate() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return certificates.read_pem(Authority(Path(directory)).text)[0].der


class ReadTests(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.authority = Authority(self.directory)

    def test_fields(self) -> None:
        """Times, names, serial number and issuer as the other implementation sees them."""
        pair = self.authority.issue("web01", "Web01.example.com", "*.b.example", "192.0.2.1", "2001:db8::1", days=12)
        [own] = certificates.read_file(pair.certificate)
        theirs = x509.load_pem_x509_certificate(Path(pair.certificate).read_bytes())
        self.assertEqual(own.not_before, theirs.not_valid_before_utc.timestamp())
        self.assertEqual(own.not_after, theirs.not_valid_after_utc.timestamp())
        self.assertEqual(own.serial, f"{theirs.serial_number:x}")
        self.assertEqual(own.names, ["web01.example.com", "*.b.example", "192.0.2.1", "2001:db8::1"])
        self.assertEqual((own.common_name, own.authority, own.self_issued), ("web01", False, False))
        [ca] = certificates.read_file(self.authority.file)
        self.assertEqual((ca.authority, ca.self_issued, ca.subject), (True, True, own.issuer))

    def test_far_future(self) -> None:
        """From 2050 on times stand in the other form."""
        pair = self.authority.issue("old", days=40000)
        theirs = x509.load_pem_x509_certificate(Path(pair.certificate).read_bytes())
        self.assertEqual(certificates.read_file(pair.certificate)[0].not_after, theirs.not_valid_after_utc.timestamp())

    def test_openssl(self) -> None:
        """One that openssl made, with RSA and without any extension; and the same text after we wrote it."""
        path = self.directory / "o.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3", "-subj", "/CN=o/O=x"),
                *("-keyout", "/dev/null", "-out", str(path)),
            ],
            check=True,
            capture_output=True,
        )
        [own] = certificates.read_file(str(path))
        self.assertEqual(own.common_name, "o")
        self.assertTrue(abs(own.not_after - time.time() - 3 * 86400) < 3600)
        self.assertEqual(certificates.pem(own), path.read_text())

    def test_bundle(self) -> None:
        """Several with text between them; the system's own bundle."""
        text = f"# one\n{self.authority.text}two\n{self.authority.text}"
        self.assertEqual(len(certificates.read_pem(text)), 2)
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        if bundle.exists():
            self.assertGreater(len(certificates.read_pem(bundle.read_text())), 10)

    def test_host_names(self) -> None:
        """Names match without regard to case; a wildcard stands for one label, at the left."""
        own = certificates.read_file(self.authority.issue("x", "a.example", "*.b.example").certificate)[0]
        for host, wanted in (
            ("a.example", True),
            ("A.EXAMPLE.", True),
            ("x.b.example", True),
            ("b.example", False),
            ("y.x.b.example", False),
            ("x", False),
            ("", False),
        ):
            self.assertEqual(own.names_host(host), wanted, host)

    def test_none(self) -> None:
        """Text, damaged and cut ones."""
        for text in (
            "",
            "x",
            self.authority.text.replace("-----END", "-----ENDE"),
            self.authority.text.replace("M", "N", 1),
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----",
        ):
            with self.subTest(text[:30]), self.assertRaises(NotACertificate):
                certificates.read_pem(text)

    def test_limits(self) -> None:
        """Too many, and too large a file."""
        with self.assertRaises(NotACertificate):
            certificates.read_pem(self.authority.text * (certificates.MAX_CERTIFICATES + 1))
        path = self.directory / "large"
        path.write_bytes(b"x" * (certificates.MAX_FILE_BYTES + 1))
        with self.assertRaises(NotACertificate):
            certificates.read_file(str(path))

    def test_cut_anywhere(self) -> None:
        """A certificate that ends anywhere is none, and nothing else happens."""
        der = certificates.read_pem(self.authority.text)[0].der
        for end in range(len(der)):
            with self.assertRaises(NotACertificate):
                Certificate(der[:end])

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes are a certificate or none."""
        with contextlib.suppress(NotACertificate):
            Certificate(data)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
    def test_any_change(self, at: int, value: int) -> None:
        """A certificate with one changed byte is one or none."""
        data = bytearray(some_certificate())
        data[at % len(data)] = value
        with contextlib.suppress(NotACertificate):
            Certificate(bytes(data))


class RefusalTests(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.authority = Authority(self.directory)

    def test_taken(self) -> None:
        """One of that CA, for clients only or for everything."""
        for client in (True, False):
            pair = self.authority.issue("web01", client=client)
            self.assertEqual(certificates.refusal(pair.certificate, pair.key, self.authority.file), "")

    def test_other_ca(self) -> None:
        """Another CA, also of the same name; an expired one."""
        pair = self.authority.issue("web01", client=True)
        for name in ("test authority", "another"):
            other = Authority(self.directory, name)
            self.assertNotEqual(certificates.refusal(pair.certificate, pair.key, other.file), "")
        late = self.authority.issue("web01", days=-0.5)
        self.assertIn("expired", certificates.refusal(late.certificate, late.key, self.authority.file))

    def test_not_together(self) -> None:
        """A key of another certificate."""
        one, two = self.authority.issue("a"), self.authority.issue("b")
        with self.assertRaises((OSError, ValueError)):
            certificates.refusal(one.certificate, two.key, self.authority.file)


class ClockTests(unittest.TestCase):
    def test_date(self) -> None:
        """The one form that servers send; nothing else."""
        self.assertEqual(clock.http_date("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777)
        for bad in (
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nox 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
        ):
            self.assertIsNone(clock.http_date(bad), bad)

    def test_ahead(self) -> None:
        """How far our clock is ahead."""
        self.assertEqual(clock.ahead({"date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 784111780), 3)
        self.assertIsNone(clock.ahead({}, 0))
