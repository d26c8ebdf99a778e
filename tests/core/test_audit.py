"""The audit record: serialisation, chain, and reading back (spec/audit-and-metrics sections 1 to 3)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import audit
from identree.core.events import KINDS, ChallengeCreated

E0 = (
    r'{"seq":0,"timestamp":"2026-01-02T03:04:05Z","event":"challenge_created","username":"alice","hostname":"web-01",'
    r'"code":"ABCDEF-123456","reason":"fix \u003ca\u003e \u0026 \"b\" é\u2028","remote_addr":"10.0.0.1",'
    r'"source":"identree","version":"dev"}'
)
E0_HASH = "1d1bb666b3e5ea3bf9cc5817fb467b9fd28a7e3d82bcae7aa085e58a4ef34a41"
E1 = (
    '{"seq":1,"prev_hash":"1d1bb666b3e5ea3bf9cc5817fb467b9fd28a7e3d82bcae7aa085e58a4ef34a41",'
    '"timestamp":"2026-01-02T03:04:06Z","event":"notification_route_added","username":"","actor":"bob",'
    '"source":"identree","version":"dev"}'
)
E1_HASH = "25c4f97e3e53c69852642b279d70525bfe6db5976c31b612b961e62bdfa332c9"

CREATED = ChallengeCreated(
    at=datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC),
    username="alice",
    hostname="web-01",
    code="ABCDEF-123456",
    reason='fix <a> & "b" é\u2028',
    remote_addr="10.0.0.1",
)
ROUTE_ADDED = {
    "timestamp": "2026-01-02T03:04:06Z",
    "event": "notification_route_added",
    "username": "",
    "hostname": "",
    "code": "",
    "actor": "bob",
    "reason": "",
    "remote_addr": "",
}


class VectorTests(SynchronousTestCase):
    """The vectors of section 3."""

    def test_first(self) -> None:
        """E0: 246 bytes of C-form, its hash, and no ``prev_hash``."""
        head, record = audit.seal(audit.Head(), audit.fields(CREATED), version="dev")
        self.assertEqual(record.canonical.decode(), E0)
        self.assertEqual((len(record.canonical), record.hash), (246, E0_HASH))
        self.assertEqual(head, audit.Head(1, E0_HASH))

    def test_second(self) -> None:
        """E1: 222 bytes of C-form and its hash, with an empty user name."""
        _, record = audit.seal(audit.Head(1, E0_HASH), ROUTE_ADDED, version="dev")
        self.assertEqual(record.canonical.decode(), E1)
        self.assertEqual((len(record.canonical), record.hash), (222, E1_HASH))

    def test_plain(self) -> None:
        """The P-form has ``<``, ``>``, ``&`` raw, and still escapes U+2028."""
        _, record = audit.seal(audit.Head(), audit.fields(CREATED), version="dev")
        self.assertIn(r'"reason":"fix <a> & \"b\" é\u2028"', record.plain.decode())


class SerialisationTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        """Control characters are escaped as specified, U+007F and the slash stay."""
        text = audit.plain({"reason": '"\\\n\r\t\b\f\x00\x1f\x7f/\u2028\u2029'})
        self.assertEqual(text, '{"reason":"\\"\\\\\\n\\r\\t\\b\\f\\u0000\\u001f\x7f/\\u2028\\u2029"}')

    def test_invalid_bytes(self) -> None:
        r"""Each invalid byte is written as ``\ufffd``; a real U+FFFD is written raw."""
        self.assertEqual(audit.plain({"a": b"x\xff\xfe".decode("utf-8", "surrogateescape")}), r'{"a":"x\ufffd\ufffd"}')
        self.assertEqual(audit.plain({"a": "\ufffd"}), '{"a":"\ufffd"}')

    def test_instance(self) -> None:
        """The identity of the chain is the last key, absent when empty."""
        _, record = audit.seal(audit.Head(), ROUTE_ADDED, version="dev", instance="a1")
        self.assertTrue(record.plain.endswith(b'"version":"dev","instance":"a1"}'))

    def test_kinds(self) -> None:
        """Every kind of event seals and reads back."""
        for kind in KINDS.values():
            event = kind(at=CREATED.at, username="alice")
            _, record = audit.seal(audit.Head(), audit.fields(event), version="dev")
            self.assertEqual(audit.read(record.plain).hash, record.hash)

    @given(st.text(), st.text())
    def test_round_trip(self, reason: str, username: str) -> None:
        """Whatever is in a record, both forms read back to the same hash, and every JSON reader can read them."""
        values = {**ROUTE_ADDED, "reason": reason, "username": username}
        _, record = audit.seal(audit.Head(3, E0_HASH), values, version="dev", instance="a1")
        for form in (record.plain, record.canonical):
            link = audit.read(form)
            self.assertEqual((link.seq, link.prev_hash, link.instance, link.hash), (3, E0_HASH, "a1", record.hash))
            json.loads(form)

    @given(st.binary())
    def test_any_bytes(self, raw: bytes) -> None:
        """A user name made of any bytes can be recorded and read back."""
        values = {**ROUTE_ADDED, "username": raw.decode("utf-8", "surrogateescape")}
        _, record = audit.seal(audit.Head(), values, version="dev")
        self.assertEqual(audit.read(record.plain).hash, record.hash)


class ReadTests(SynchronousTestCase):
    def test_deployed_escape(self) -> None:
        r"""A record with an escaped ``\ufffd`` keeps the hash of its own text."""
        raw = E0.replace("alice", r"al\ufffdce").encode()
        self.assertEqual(audit.read(raw).hash, sha256(raw).hexdigest())

    def refused(self, raw: bytes | str, why: str) -> None:
        raw = raw.encode() if isinstance(raw, str) else raw
        with self.assertRaisesRegex(audit.Malformed, why):
            audit.read(raw)

    def test_not_json(self) -> None:
        """What is no JSON object is said to be none."""
        for raw in (b"", b"{", b"[]", b"null", b"[" * 100_000, E0.encode()[:-1], E0.encode() + b"x", b"9" * 5000):
            self.refused(raw, "no JSON object")
        self.refused(b"\xff", "not UTF-8")
        self.refused(E0.replace('"seq":0', '"seq":NaN'), "NaN is no JSON")

    def test_keys(self) -> None:
        """Unknown, doubled, missing and misplaced keys are named."""
        self.refused(E0.replace('"source"', '"cert_serial":"1","source"'), "unknown key 'cert_serial'")
        self.refused(E0.replace('"source"', '"source":"identree","source"'), "stands there twice")
        self.refused(E0.replace('"username":"alice",', ""), "has no 'username'")
        self.refused(E0.replace('"seq":0,', "").replace('"dev"}', '"dev","seq":0}'), "not in the order")

    def test_values(self) -> None:
        """Values of a wrong type or form are named."""
        for seq in ("-1", "1.0", "true", '"0"', "null", str(1 << 64)):
            self.refused(E0.replace('"seq":0', f'"seq":{seq}'), "whole number")
        self.refused(E0.replace('"alice"', "1"), "'username' is no text")
        self.refused(E0.replace('"web-01"', '""'), "'hostname' is empty")
        self.refused(E0.replace("05Z", "05+00:00"), "'timestamp' is not of the form")
        self.refused(E0.replace('"source":"identree"', '"source":"other"'), "'source' is not 'identree'")
        self.refused(E1.replace("1d1bb6", "sha256:"), "64 lower-case")
        self.refused(E0.replace('"seq":0', '"seq":5'), "the record with seq 0, and only that")
        self.refused(E1.replace('"seq":1', '"seq":0'), "the record with seq 0, and only that")

    def test_form(self) -> None:
        """Spaces and needless escapes are noticed, though the values are the same."""
        self.refused(E0.replace('"seq":0', '"seq": 0'), "not written as identree writes it")
        self.refused(E0.replace("alice", r"\u0061lice"), "not written as identree writes it")
