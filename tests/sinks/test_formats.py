"""
Records in other forms. What the schemas demand stands here once more, by hand, from OCSF 1.3.0 and from ArcSight's
"Implementing CEF", so that a slip in the mapping shows.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import audit
from identree.core.audit import Sealed
from identree.core.events import KINDS, ChallengeApproved, Event
from identree.sinks import cef, formats, ocsf
from identree.sinks.formats import CEF, FORMATS, NATIVE, OCSF
from tests.sinks.records import sealed

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MILLISECONDS = 1_767_323_045_000
ALL = {
    "username": "alice",
    "hostname": "web-01",
    "code": "ABCDEF-123456",
    "actor": "bob",
    "reason": "fix <a> & é",
    "remote_addr": "10.0.0.1",
}

# Of each class: the attributes beside those of the base event, required ones first, and the numbers of its activities.
COMMON = {
    *("class_uid", "class_name", "category_uid", "activity_id", "activity_name", "type_uid", "severity_id", "severity"),
    *("status_id", "status", "status_detail", "time", "metadata", "message", "unmapped", "raw_data"),
}
REQUIRED = {"class_uid", "category_uid", "activity_id", "type_uid", "severity_id", "time", "metadata"}
CLASSES: dict[int, tuple[str, set[str], set[str], set[int]]] = {
    0: ("Base Event", set(), set(), {99}),
    3001: ("Account Change", {"user"}, {"actor", "src_endpoint"}, {*range(1, 12), 99}),
    3002: ("Authentication", {"user"}, {"actor", "src_endpoint", "dst_endpoint", "service"}, {*range(1, 7), 99}),
    3003: ("Authorize Session", {"user", "privileges"}, {"src_endpoint", "dst_endpoint"}, {1, 2, 99}),
    3004: ("Entity Management", {"entity"}, {"src_endpoint", "comment"}, {*range(1, 14), 99}),
    3005: ("User Access Management", {"user", "privileges"}, {"src_endpoint", "resource"}, {1, 2, 99}),
    6002: ("Application Lifecycle", {"app"}, set(), {*range(1, 9), 99}),
}


def seal(kind: str, head: audit.Head = audit.Head(7, "0" * 64), instance: str = "a1", **values: str) -> Sealed:  # noqa: B008
    event = KINDS[kind](at=AT, **{"username": "", **values})
    return audit.seal(head, audit.fields(event, values.get("request_id", "")), version="1.2", instance=instance)[1]


def mapped(kind: str, **values: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(OCSF.text(seal(kind, **values)))
    return event


def extension(kind: str, **values: str) -> dict[str, str]:
    """The keys of a CEF line, taken apart by the letter of the format."""
    line = CEF.text(seal(kind, **values)).decode()
    pairs = re.findall(r"([A-Za-z0-9]+)=((?:[^=\\]|\\.)*?)(?= [A-Za-z0-9]+=|$)", line.split("|", 7)[7])
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}


@st.composite
def records(draw: st.DrawFn) -> Sealed:
    """Records of any content, of every kind and of kinds that nobody knows."""
    words = st.text(max_size=30) | st.text("=\\|\n\r\t <>&\"'\u2028\x7f\x85 a1", max_size=12)
    values = {name: draw(words) for name in ("username", "hostname", "code", "actor", "reason", "remote_addr")}
    kind = draw(st.sampled_from(sorted(KINDS)) | words)
    event = type("Some", (Event,), {"kind": kind, "__slots__": ()})(at=AT, **values)
    seq = draw(st.integers(0, 2**64 - 1))
    head = audit.Head(seq, "ab" * 32 if seq else "")
    fields = audit.fields(event, draw(words))
    return audit.seal(head, fields, version=draw(words), instance=draw(words))[1]


class AllFormatsTests(SynchronousTestCase):
    @given(records())
    def test_one_line(self, record: Sealed) -> None:
        """Whatever a record holds, it is one line of UTF-8 that begins as all of its format do, without control
        characters where the native form has none."""
        for form in FORMATS.values():
            for line in (form.text(record), form.wire(record)):
                text = line.decode()
                self.assertFalse(re.search("[\x00-\x1f\u2028\u2029]", text), (form.name, text))
                self.assertTrue(line.startswith(form.begins), (form.name, text))
            if form.is_json:
                self.assertIsInstance(json.loads(form.text(record)), dict)

    @given(records())
    def test_place(self, record: Sealed) -> None:
        """The chain and number are found again in the line, and nowhere else."""
        # invalid text is written as U+FFFD, and CEF has no room for control characters: instances have neither
        instance = json.loads(record.plain).get("instance", "")
        for form in FORMATS.values():
            if form is CEF and cef._CONTROL.search(instance.replace("\n", "").replace("\r", "")):
                continue
            # a native record with an impossible hash or time is none; those here are sound
            self.assertEqual(form.place(form.text(record)), (instance, record.seq), form.name)
            self.assertEqual(formats.place(form.text(record)), (instance, record.seq), form.name)

    @given(st.binary(max_size=60), st.sampled_from(sorted(FORMATS)))
    def test_other_lines(self, line: bytes, name: str) -> None:
        """What is no record has no place, however it begins."""
        self.assertIsNone(FORMATS[name].place(line))
        self.assertIsNone(FORMATS[name].place(FORMATS[name].begins + line))

    @given(st.data(), st.sampled_from(sorted(FORMATS)))
    def test_cut_lines(self, data: st.DataObject, name: str) -> None:
        """The beginning of a line is known as such; cut JSON has no place."""
        line = FORMATS[name].text(sealed(3)[2])
        torn = line[: data.draw(st.integers(0, len(line) - 1))]
        self.assertTrue(formats.may_begin(torn))
        if FORMATS[name].is_json:
            self.assertIsNone(formats.place(torn))

    def test_foreign(self) -> None:
        """Text that is none of ours is not taken for the beginning of a line."""
        for text in (b"my only copy of a poem", b'{"class":1}', b"CEF:0|other|", b'{"sequence":1}'):
            self.assertFalse(formats.may_begin(text))

    def test_settings(self) -> None:
        """The names are those of the settings."""
        self.assertEqual(list(FORMATS), ["native", "ocsf", "cef"])

    def test_native(self) -> None:
        """identree's own form is the P-form in logs and the C-form on the wire."""
        [record] = sealed(1)
        self.assertEqual((NATIVE.text(record), NATIVE.wire(record)), (record.plain, record.canonical))


class CompleteTests(SynchronousTestCase):
    def test_every_kind(self) -> None:
        """The table has every kind of the catalogue and no other."""
        self.assertEqual(set(ocsf.MEANINGS), set(KINDS))

    def test_titles(self) -> None:
        """Every kind has a title of its own."""
        titles = [means.title for means in (*ocsf.MEANINGS.values(), *ocsf.POLICY_MEANINGS.values())]
        self.assertEqual(len(set(titles)), len(titles))

    def test_documented(self) -> None:
        """``docs/audit.md`` has a row for every kind, with class, activity and severity as they are."""
        text = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text()
        for kind, means in ocsf.MEANINGS.items():
            number, name = means.activity
            severity = means.severity.value[0]
            row = f"| `{kind}` | {means.title} | {means.of.caption} {means.of.uid} | {number} {name} | {severity} |"
            self.assertIn(row, text)


class OcsfTests(SynchronousTestCase):
    def test_schema(self) -> None:
        """Every kind, with all fields and with none, has what its class demands and nothing that the class has not."""
        for kind in KINDS:
            for values in (ALL, {}, {**ALL, "hostname": "(unknown)", "actor": "policy_added", "remote_addr": "::1"}):
                with self.subTest(kind, values=values):
                    event = mapped(kind, **values)
                    caption, required, optional, activities = CLASSES[event["class_uid"]]
                    optional = optional | ({"actor"} if "host" in event["metadata"].get("profiles", []) else set())
                    self.assertLessEqual(REQUIRED | required, set(event))
                    self.assertLessEqual(set(event), COMMON | required | optional)
                    self.assertEqual(event["class_name"], caption)
                    self.assertIn(event["activity_id"], activities)
                    self.assertEqual(event["category_uid"], event["class_uid"] // 1000)
                    self.assertEqual(event["type_uid"], event["class_uid"] * 100 + event["activity_id"])
                    self.assertEqual(event["time"], MILLISECONDS)
                    for name in required & {"user", "entity", "app"}:
                        self.assertTrue(event[name]["name"])

    @given(records())
    def test_chain(self, record: Sealed) -> None:
        """``raw_data`` is what was hashed, and stands beside its hash."""
        event = json.loads(OCSF.text(record))
        self.assertEqual(event["raw_data"].encode(), record.canonical)
        self.assertEqual(sha256(event["raw_data"].encode()).hexdigest(), event["unmapped"]["hash"])

    def test_approval(self) -> None:
        """An approval, field by field."""
        record = audit.seal(
            audit.Head(7, "ab" * 32),
            audit.fields(ChallengeApproved(at=AT, **ALL), "00112233aabbccdd"),
            version="1.2",
            instance="a1",
        )[1]
        self.assertEqual(
            json.loads(OCSF.text(record)),
            {
                "class_uid": 3003,
                "class_name": "Authorize Session",
                "category_uid": 3,
                "activity_id": 1,
                "activity_name": "Assign Privileges",
                "type_uid": 300301,
                "severity_id": 1,
                "severity": "Informational",
                "status_id": 1,
                "status": "Success",
                "status_detail": "fix <a> & é",
                "time": MILLISECONDS,
                "metadata": {
                    "version": "1.3.0",
                    "product": {"name": "identree", "vendor_name": "identree", "version": "1.2"},
                    "uid": "a1:7",
                    "sequence": 7,
                    "event_code": "challenge_approved",
                    "log_name": "audit",
                    "log_provider": "identree",
                    "original_time": "2026-01-02T03:04:05Z",
                    "correlation_uid": "ABCDEF-123456",
                    "profiles": ["host"],
                },
                "message": "Sudo approved",
                "actor": {"user": {"name": "bob"}},
                "user": {"name": "alice"},
                "privileges": ["sudo"],
                "src_endpoint": {"ip": "10.0.0.1"},
                "dst_endpoint": {"hostname": "web-01"},
                "unmapped": {
                    "hash": record.hash,
                    "prev_hash": "ab" * 32,
                    "instance": "a1",
                    "request_id": "00112233aabbccdd",
                    "code": "ABCDEF-123456",
                },
                "raw_data": record.canonical.decode(),
            },
        )

    def test_failures(self) -> None:
        """What somebody did not get is a failure, all else a success."""
        failed = {kind for kind in KINDS if mapped(kind, **ALL)["status_id"] == 2}
        self.assertEqual(
            failed,
            {
                "challenge_rejected",
                "challenge_expired",
                "approval_refused",
                "authentication_failed",
                "ldap_bind_failed",
            },
        )

    def test_everybody(self) -> None:
        """An administrator who revoked everybody's sessions revoked those of everybody, not of nobody."""
        self.assertEqual(mapped("sessions_revoked_bulk", actor="bob")["user"]["name"], "(everybody)")

    def test_host_names(self) -> None:
        """A host is ``hostname`` only where it can be one."""
        for name, key in (("web-01.example.com", "hostname"), ("(unknown)", "name"), ("web_01", "name")):
            event = mapped("challenge_approved", **{**ALL, "hostname": name})
            self.assertEqual(event["dst_endpoint"], {key: name})

    def test_addresses(self) -> None:
        """A source is ``ip`` only where it can be one."""
        for name, key in (("2001:db8::1", "ip"), ("10.0.0.1", "ip"), ("unix", "name")):
            self.assertEqual(mapped("user_logged_in", username="a", remote_addr=name)["src_endpoint"], {key: name})

    def test_policies(self) -> None:
        """A policy is the entity, and the administrator the actor, whatever the record's ``actor`` says."""
        for word, activity in (("policy_added", 1), ("policy_deleted", 4)):
            event = mapped("config_changed", username="carol", actor=word, reason="prod")
            self.assertEqual((event["activity_id"], event["actor"]["user"]["name"]), (activity, "carol"))
            self.assertEqual(
                event["entity"], {"name": "prod", "type": "Policy", "type_id": 5, "policy": {"name": "prod"}}
            )

    def test_certificate(self) -> None:
        """A certificate is known by its serial and its host."""
        event = mapped("certificate_issued", username="web-01", hostname="web-01", code="1f")
        self.assertEqual(event["entity"], {"name": "web-01", "type": "client certificate", "type_id": 99, "uid": "1f"})

    def test_unknown_kind(self) -> None:
        """A kind that the table does not know is a Base Event of its name."""
        record = json.loads(sealed(1)[0].plain)
        plain = audit.plain({**record, "event": "news"})
        news = Sealed(instance="a1", seq=0, plain=plain.encode(), canonical=audit.canonical(plain).encode(), hash="")
        event = json.loads(OCSF.text(news))
        self.assertEqual((event["class_uid"], event["activity_id"], event["activity_name"]), (0, 99, "news"))
        self.assertEqual(event["unmapped"]["username"], "user0")

    def test_tampered(self) -> None:
        """A line whose number is not that of the record in it has no place."""
        line = OCSF.text(sealed(2)[1])
        self.assertIsNone(OCSF.place(line.replace(b'"sequence":1', b'"sequence":2')))


class CefTests(SynchronousTestCase):
    def test_approval(self) -> None:
        """An approval, byte for byte."""
        record = seal("challenge_approved", **ALL)
        self.assertEqual(
            CEF.text(record).decode(),
            "CEF:0|identree|identree|1.2|challenge_approved|Sudo approved|1|rt=1767323045000 cn1Label=seq cn1=7 "
            "cs3Label=instance cs3=a1 externalId=a1:7 suser=bob duser=alice dhost=web-01 src=10.0.0.1 outcome=success "
            "reason=fix <a> & é cs4Label=code cs4=ABCDEF-123456 "
            f"cs1Label=prev_hash cs1={'0' * 64} cs2Label=hash cs2={record.hash}",
        )

    def test_escapes(self) -> None:
        """Values escape backslash, equals sign and line ends, the header bar and backslash; a TAB becomes a space."""
        self.assertEqual(cef.value("a=b\\c|d\r\ne\tf"), r"a\=b\\c|d\r\ne f")
        self.assertEqual(cef.header("a=b\\c|d\r\ne"), r"a=b\\c\|d  e")

    def test_forged(self) -> None:
        """A reason cannot pass for another key."""
        keys = extension("challenge_approved", **{**ALL, "reason": "x cn1=99 cs3=zz suser=root"})
        self.assertEqual((keys["cn1"], keys["cs3"], keys["suser"]), ("7", "a1", "bob"))
        self.assertEqual(keys["reason"], "x cn1=99 cs3=zz suser=root")

    def test_ipv6(self) -> None:
        """``src`` is for IPv4 only; an IPv6 address has a key that says so."""
        keys = extension("user_logged_in", username="alice", remote_addr="2001:db8::1")
        self.assertNotIn("src", keys)
        self.assertEqual((keys["c6a2Label"], keys["c6a2"]), ("Source IPv6 Address", "2001:db8::1"))

    def test_empty(self) -> None:
        """What a record does not have is left out, with its label."""
        keys = extension("challenge_expired", username="alice")
        self.assertEqual(
            set(keys),
            {"rt", "cn1Label", "cn1", "cs3Label", "cs3", "externalId", "duser", "outcome"}
            | {"cs1Label", "cs1", "cs2Label", "cs2"},
        )

    def test_no_host(self) -> None:
        """A group or a channel in ``hostname`` is no destination host but the object."""
        for kind, label in (
            ("sudo_rule_modified", "sudo rule"),
            ("notification_channel_added", "notification channel"),
        ):
            keys = extension(kind, username="carol", actor="carol", hostname="ops")
            self.assertNotIn("dhost", keys)
            self.assertEqual((keys["cs5Label"], keys["cs5"]), (label, "ops"))

    def test_severities(self) -> None:
        """Severity and outcome follow the same table as OCSF."""
        for kind in KINDS:
            line = CEF.text(seal(kind, **ALL)).decode()
            event = mapped(kind, **ALL)
            self.assertEqual(int(line.split("|")[6]), {1: 1, 2: 3, 3: 5, 4: 8}[event["severity_id"]])
            self.assertIn(f" outcome={event['status'].lower()} ", line)

    def test_strange_numbers(self) -> None:
        """A line whose number is none has no place."""
        line = CEF.text(sealed(2)[1])
        for wrong in (b"cn1=-1", b"cn1=\xd9\xa1", b"cn1=" + b"1" * 21, b"cn2=1", b"cn1"):
            self.assertIsNone(CEF.place(line.replace(b"cn1=1", wrong)))
