"""Records read back from what Splunk, Loki, syslog and OCSF receivers give out; whatever is done to them is found."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree import __version__
from identree.core import audit
from identree.core.audit import Malformed, Sealed
from identree.sinks import exports
from identree.sinks.exports import Entry, Export, Unreadable, sealed_of
from identree.sinks.formats import FORMATS
from identree.sinks.verify import BAD, UNREADABLE, VERIFIED, verify
from tests.core.test_audit import E0
from tests.sinks.records import lines, sealed

OCSF, CEF = FORMATS["ocsf"], FORMATS["cef"]


def _lines(texts: Sequence[str | bytes]) -> bytes:
    return b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts)


def _quoted(record: Sealed) -> str:
    return '"' + record.plain.decode().replace('"', '""') + '"'


def _stamp(record: Sealed) -> str:
    return str(1767323045000000000 + record.seq)


def syslog(record: Sealed, message: bytes | None = None, sd: str = "") -> bytes:
    """As rsyslog's RSYSLOG_SyslogProtocol23Format writes it."""
    user = json.loads(record.plain)["username"]
    head = f'<86>1 2026-01-02T03:04:05Z web-01 identree - - [identree@0 event="x" username="{user}" hostname=""{sd}] '
    return head.encode() + (record.canonical if message is None else message)


def splunk_lines(records: Sequence[Sealed]) -> bytes:
    """``search/jobs/export`` with ``output_mode=json``, and what the button of the search page gives."""
    rows = [
        json.dumps(
            {
                "preview": False,
                "offset": number,
                **({"lastrow": True} if number == len(records) - 1 else {}),
                "result": {"_raw": record.plain.decode(), "_time": "x", "source": "identree"},
            }
        )
        for number, record in enumerate(records)
    ]
    return _lines(rows or ['{"preview":false,"lastrow":true}'])


def splunk_csv(records: Sequence[Sealed]) -> bytes:
    out = StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["_time", "_raw", "host"])
    writer.writerows([["2026-01-02", record.plain.decode(), "web,01"] for record in records])
    return out.getvalue().encode()


def splunk_results(records: Sequence[Sealed]) -> bytes:
    results = [{"_raw": record.plain.decode(), "host": "x"} for record in records]
    return json.dumps({"preview": False, "init_offset": 0, "messages": [], "results": results}).encode()


def splunk_rows(records: Sequence[Sealed]) -> bytes:
    rows = [["x", record.plain.decode()] for record in records]
    return json.dumps({"preview": False, "fields": ["host", "_raw"], "rows": rows}).encode()


def loki_lines(records: Sequence[Sealed]) -> bytes:
    return _lines(
        [
            json.dumps({"labels": {"app": "identree"}, "line": record.canonical.decode(), "timestamp": "2026"})
            for record in records
        ]
    )


def loki_answer(records: Sequence[Sealed]) -> bytes:
    """The API's answer, with the records spread over two streams."""
    streams = [
        {"stream": {"n": str(part)}, "values": [[_stamp(r), r.canonical.decode()] for r in records[part::2]]}
        for part in range(2)
    ]
    return json.dumps({"status": "success", "data": {"resultType": "streams", "result": streams}}).encode()


def grafana(records: Sequence[Sealed]) -> bytes:
    return json.dumps(
        [{"line": r.canonical.decode(), "timestamp": _stamp(r), "fields": {"app": "identree"}} for r in records],
        indent=2,
    ).encode()


def logcli_default(records: Sequence[Sealed]) -> bytes:
    return _lines([b'2026-01-02T03:04:05Z {app="identree"} ' + record.canonical for record in records])


FORMS: dict[str, Callable[[Sequence[Sealed]], bytes]] = {
    "json log": lines,
    "C-form": lambda records: _lines([record.canonical for record in records]),
    "ocsf": lambda records: _lines([OCSF.text(record) for record in records]),
    "splunk json lines": splunk_lines,
    "splunk csv": splunk_csv,
    "splunk results": splunk_results,
    "splunk rows": splunk_rows,
    "splunk ocsf": lambda records: _lines(
        [json.dumps({"preview": False, "result": {"_raw": OCSF.text(record).decode()}}) for record in records]
    ),
    "logcli jsonl": loki_lines,
    "logcli default": logcli_default,
    "loki answer": loki_answer,
    "grafana": grafana,
    "rsyslog": lambda records: _lines([syslog(record) for record in records]),
    "rsyslog ocsf": lambda records: _lines([syslog(record, OCSF.wire(record)) for record in records]),
}


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.path = self.directory / "export"
        self.records = self.chain(6)

    def chain(self, count: int) -> list[Sealed]:
        """Of this version, so that OCSF is compared."""
        head, records = audit.Head(), []
        for old in sealed(count):
            values = {k: v for k, v in json.loads(old.plain).items() if k not in ("seq", "prev_hash", "instance")}
            head, record = audit.seal(head, values, version=__version__, instance="a1")
            records.append(record)
        return records

    def file(self, content: bytes, name: str = "export") -> Export:
        path = self.directory / name
        path.write_bytes(content)
        return Export(path)

    def entries(self, content: bytes) -> list[Entry]:
        return list(self.file(content).entries())

    def hashes(self, content: bytes) -> list[str]:
        """Of the records in it, or what is wrong with them."""
        found = []
        for entry in self.entries(content):
            try:
                if entry.trouble is not None:
                    raise entry.trouble
                found.append(audit.read(entry.record).hash)
            except Malformed as trouble:
                found.append(str(trouble))
        return found

    def trouble(self, content: bytes) -> list[str]:
        return [str(entry.trouble) for entry in self.entries(content) if entry.trouble is not None]

    def verify(self, content: bytes) -> tuple[int, str]:
        self.path.write_bytes(content)
        out = StringIO()
        return verify([self.path], out), out.getvalue()

    def bad(self, content: bytes, *parts: str) -> str:
        status, text = self.verify(content)
        self.assertEqual(status, BAD, text)
        [first] = [line for line in text.splitlines() if line.startswith("FIRST BAD RECORD")]
        for part in parts:
            self.assertIn(part, first)
        return text


class FormTests(Base):
    def test_every_form(self) -> None:
        """The records come out of every form, in either order, compressed or not."""
        for name, write in FORMS.items():
            for records in (self.records, self.records[::-1], self.records[:1]):
                wanted = [record.hash for record in records]
                if name == "loki answer":
                    wanted = [record.hash for part in range(2) for record in records[part::2]]
                self.assertEqual(self.hashes(write(records)), wanted, name)
                self.assertEqual(self.hashes(gzip.compress(write(records))), wanted, name)

    def test_verified(self) -> None:
        """Every form verifies, oldest or newest first."""
        for name, write in FORMS.items():
            for records in (self.records, self.records[::-1]):
                status, text = self.verify(write(records))
                self.assertEqual(status, VERIFIED, (name, text))
                self.assertIn(f"chain a1: seq 0 to 5, last hash {self.records[-1].hash}", text)

    def test_forms_together(self) -> None:
        """One chain may be spread over files of different forms."""
        names = []
        for number, write in enumerate(FORMS.values()):
            path = self.directory / f"part{number}"
            path.write_bytes(write(self.records[number % 5 : number % 5 + 2]))
            names.append(path)
        out = StringIO()
        self.assertEqual(verify(names, out), VERIFIED, out.getvalue())
        self.assertIn("seq 0 to 5", out.getvalue())

    def test_format_changed_in_a_log(self) -> None:
        """The setting may be changed in the middle of a log; each line tells which format it has."""
        for split in (1, 3, 5):
            texts = [record.plain for record in self.records[:split]] + [OCSF.text(r) for r in self.records[split:]]
            for order in (texts, texts[::-1]):
                status, text = self.verify(_lines(order))
                self.assertEqual(status, VERIFIED, text)
                self.assertIn("6 records", text)
            forged = texts[-1].replace(b'"message":"', b'"message":"not ')
            self.bad(_lines([*texts[:-1], forged]), "export:6", "OCSF members")

    def test_extracted_fields(self) -> None:
        """Splunk takes the members of OCSF out into fields of their own: the raw event counts, and is compared."""
        results = [
            {"_raw": OCSF.text(record).decode(), "raw_data": record.canonical.decode(), "message": "x"}
            for record in self.records
        ]
        by_line = [json.dumps({"preview": False, "result": result}) for result in results]
        for content in (json.dumps({"results": results}).encode(), _lines(by_line)):
            self.assertEqual(self.verify(content)[0], VERIFIED)
        results[2]["_raw"] = results[2]["_raw"].replace('"message":"', '"message":"not ')
        by_line[2] = json.dumps({"preview": False, "result": results[2]})
        for content in (json.dumps({"results": results}).encode(), _lines(by_line)):
            self.bad(content, "OCSF members")

    def test_nothing_found(self) -> None:
        """A search that found nothing is an export without records."""
        for name in ("splunk json lines", "splunk results", "splunk rows", "loki answer", "grafana", "splunk csv"):
            self.assertEqual(self.verify(FORMS[name]([]))[0], VERIFIED, name)

    def test_windows(self) -> None:
        """Carriage returns and byte order marks of exports are not the record's."""
        for name in ("splunk csv", "logcli jsonl", "rsyslog", "grafana", "splunk json lines"):
            content = b"\xef\xbb\xbf" + FORMS[name](self.records).replace(b"\n", b"\r\n")
            self.assertEqual(self.verify(content)[0], VERIFIED, name)

    def test_no_last_newline(self) -> None:
        """An export that ends without a line feed is whole."""
        for name, write in FORMS.items():
            self.assertEqual(self.verify(write(self.records).rstrip(b"\n"))[0], VERIFIED, name)

    def test_appended_answers(self) -> None:
        """Loki gives at most 5000 lines at once: answers behind each other are one export."""
        answers = loki_answer(self.records[:3]) + loki_answer(self.records[3:]) + b"\n" + loki_answer([])
        self.assertEqual(self.verify(answers)[0], VERIFIED)
        self.assertEqual([entry.line for entry in self.entries(answers)], [1, 2, 3, 4, 5, 6])

    def test_metadata_of_lines(self) -> None:
        """Loki's values may carry structured metadata."""
        value = [_stamp(self.records[0]), self.records[0].canonical.decode(), {"a": "b"}]
        answer = {"data": {"result": [{"stream": {}, "values": [value]}]}}
        self.assertEqual(self.hashes(json.dumps(answer).encode()), [self.records[0].hash])

    def test_places(self) -> None:
        """Lines are numbered as an editor does, entries of a document as they stand there."""
        for name in ("splunk csv", "rsyslog", "grafana"):
            export = self.file(FORMS[name](self.records))
            numbers = [entry.line for entry in export.entries()]
            self.assertEqual(numbers, list(range(2, 8) if name == "splunk csv" else range(1, 7)))
        self.assertEqual(export.at(3), f"{self.path}:entry 3")

    def test_forwarded(self) -> None:
        """A syslog line that went on to Loki or Splunk holds the record all the same."""
        for message in (self.records[0].canonical, OCSF.wire(self.records[0])):
            line = syslog(self.records[0], message).decode()
            for wrapped in ({"labels": {}, "line": line}, {"result": {"_raw": line}}):
                self.assertEqual(self.hashes(_lines([json.dumps(wrapped)])), [self.records[0].hash])

    def test_hostile_prefix(self) -> None:
        """What a user calls himself does not hide the record: in structured data quotation marks are escaped."""
        line = syslog(self.records[0], sd=' x="{\\"seq\\":9} truncated=\\"1\\" {\\"raw_data\\":\\"y\\"}"')
        self.assertEqual(self.hashes(_lines([line])), [self.records[0].hash])

    def test_deployed_escape(self) -> None:
        r"""A record with an escaped \ufffd keeps the hash of its own text on every way."""
        raw = E0.replace("alice", r"al\ufffdce")
        link = audit.read(raw.encode())
        record = sealed_of(raw.encode(), link)
        self.assertEqual(record.canonical.decode(), raw)
        for name in ("splunk csv", "logcli jsonl", "rsyslog"):
            self.assertEqual(self.hashes(FORMS[name]([record])), [link.hash], name)

    @given(st.text(max_size=40))
    @settings(max_examples=100, deadline=None)
    def test_any_reason(self, reason: str) -> None:
        """No text in a record is changed on the way out and back, in whatever form; the P-form comes back, too."""
        [record] = sealed(1, reason=reason)
        for name, write in FORMS.items():
            self.path.write_bytes(write([record]))
            [entry] = Export(self.path).entries()
            self.assertIsNone(entry.trouble, name)
            self.assertEqual(sealed_of(entry.record, audit.read(entry.record)), record, name)


class TroubleTests(Base):
    def test_cef(self) -> None:
        """CEF cannot be verified, and that is said, on every way."""
        texts = [CEF.text(record) for record in self.records]
        for content in (
            _lines(texts),
            _lines([syslog(record, text) for record, text in zip(self.records, texts, strict=True)]),
            _lines([json.dumps({"line": text.decode()}) for text in texts]),
        ):
            status, text = self.verify(content)
            self.assertEqual(status, UNREADABLE)
            self.assertIn("it is CEF, which does not hold the records themselves", text)
        for name in ("json log", "rsyslog", "logcli jsonl"):
            content = FORMS[name](self.records[1:]) + _lines([texts[0]])
            self.bad(content, "export:6: this is no audit record: it is ")

    def test_names_of_columns_in_a_reason(self) -> None:
        """Nor does it make CSV of it, or anything else."""
        for reason in (
            ",_raw,",
            'x,line,"y',
            '{"results":[]}',
            "<86>1 x",
            ' truncated="1" ',
            '{"seq":1}',
            '"raw_data":',
        ):
            for name, write in FORMS.items():
                status, text = self.verify(write(sealed(2, reason=reason)))
                self.assertEqual(status, VERIFIED, (name, reason, text))

    def test_cef_in_a_reason(self) -> None:
        """What a user writes does not make CEF of an export."""
        for name, write in FORMS.items():
            self.assertEqual(self.verify(write(sealed(2, reason=" CEF:0|x|")))[0], VERIFIED, name)

    def test_no_raw(self) -> None:
        """A search that gave fields instead of events says so."""
        for content in (
            _lines([json.dumps({"preview": False, "result": {"user": "alice"}})]),
            json.dumps({"preview": False, "fields": ["user"], "rows": [["alice"]]}).encode(),
        ):
            self.bad(content, "without _raw", "no table, fields or stats")

    def test_metric_query(self) -> None:
        """Numbers over time are no log lines."""
        answer = {"data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "2"]]}, {"metric": {}}]}}
        self.bad(json.dumps(answer).encode(), "entry 1")
        self.assertIn("without rate()", self.trouble(json.dumps(answer).encode())[0])

    def test_cut(self) -> None:
        """A message that UDP cut names the remedy."""
        line = syslog(self.records[1], self.records[1].canonical[:-9], sd=' truncated="9"')
        content = _lines([syslog(self.records[0]), line, *(syslog(record) for record in self.records[2:])])
        self.bad(content, "export:2", "cut to fit into a UDP datagram", "IDENTREE_AUDIT_SYSLOG_MAX_UDP_BYTES")

    def test_other_programs(self) -> None:
        """What other programs have written to the same file is passed over, and counted; not what was identree's."""
        other = b"<86>1 2026-01-02T03:04:05Z web-01 sshd - - - Accepted {publickey} for alice"
        content = _lines([other, *(part for record in self.records for part in (syslog(record), other))])
        status, text = self.verify(content)
        self.assertEqual(status, VERIFIED, text)
        self.assertIn(f"note: {self.path}: 7 lines of other programs passed over", text)
        ruined = syslog(self.records[0]).replace(b'{"seq"', b"<seq>")
        self.bad(_lines([ruined, *(syslog(record) for record in self.records[1:])]), "export:1")

    def test_server_log(self) -> None:
        """Nor do lines about identree, as of its server log and of systemd, stand in the way in a syslog file."""
        others = (
            b'Jan  2 03:04:05 h identree[123]: time=x level=ERROR msg="AUDIT sink error" sink=loki',
            b"Jan  2 03:04:05 h systemd[1]: Started identree.service - identity bridge.",
            b"Jan  2 03:04:05 h sudo: root : COMMAND=/usr/bin/identree audit parked",
        )
        whole = _lines([*map(syslog, self.records), *others])
        status, text = self.verify(whole)
        self.assertEqual(status, VERIFIED, text)
        self.assertIn("3 lines of other programs passed over", text)
        for ours in (b"<86>1 2026-01-02T03:04:05Z h identree - - damaged", b"Jan  2 03:04:05 h identree damaged"):
            self.bad(whole + ours + b"\n", "export:10")

    def test_column_twice(self) -> None:
        """Of two columns of one name people may look at the other one."""
        rows = ["x,_raw,_raw", *(f"1,{_quoted(r)},{_quoted(r).replace('bob', 'eve')}" for r in self.records)]
        self.bad(_lines(rows), "export:1", "two columns")

    def test_too_long(self) -> None:
        """A line without an end is no record, and costs no memory."""
        for name in ("json log", "logcli jsonl", "rsyslog", "splunk csv"):
            written = FORMS[name](self.records).splitlines(keepends=True)
            written[3] = b'"' * (3 << 20) + b"\n" if name == "splunk csv" else b"{" * (3 << 20) + b"\n"
            text = self.bad(b"".join(written))
            self.assertIn("1 before this one missing", text)

    def test_large_document(self) -> None:
        """A document beyond the limit is not read; how to do without is said."""
        self.patch(exports, "MAX_DOCUMENT_BYTES", 2 << 20)
        content = json.dumps([{"line": "x" * 1000}] * 3000).encode()
        status, text = self.verify(content)
        self.assertEqual(status, UNREADABLE)
        self.assertIn("a JSON document of more than 2 MiB is not read", text)
        self.assertIn("logcli --output=jsonl", text)

    def test_deep(self) -> None:
        """Nesting without end is no trouble."""
        for content in (b"[" * 200_000, b'{"line":' * 100_000, b'{"data":{"result":[[[[]]]]}}', b"[[]]", b"[1,null]"):
            self.assertEqual(self.verify(content)[0], BAD, content[:20])

    def test_surrogates(self) -> None:
        """JSON may name what UTF-8 cannot carry; that is no record."""
        for value in ({"line": "\ud800"}, {"raw_data": "\udcff"}, {"result": {"_raw": "\udfff"}}):
            for content in (_lines([json.dumps(value)]), json.dumps([value], indent=1).encode()):
                self.assertEqual(self.verify(content)[0], BAD)

    def test_pipe(self) -> None:
        """What can be read only once is refused."""
        os.mkfifo(self.path)
        with self.assertRaisesRegex(Unreadable, "no regular file"):
            Export(self.path)

    def test_ocsf_members(self) -> None:
        """Nobody reads raw_data: what people read of an OCSF event must be what the record says."""
        for name in ("ocsf", "splunk ocsf", "rsyslog ocsf"):
            content = FORMS[name](self.records)
            message = json.loads(OCSF.text(self.records[2]))["message"].encode()
            changed = content.splitlines(keepends=True)
            changed[2] = changed[2].replace(message, b"Nothing at all")
            self.bad(b"".join(changed), "export:3", "OCSF members do not say what its raw_data")

    def test_ocsf_members_twice(self) -> None:
        """A key that stands there twice says one thing to us and another to the next reader."""
        for name in ("ocsf", "splunk ocsf", "rsyslog ocsf"):
            changed = FORMS[name](self.records).splitlines(keepends=True)
            for known in (b'{"class_uid":', b'{\\"class_uid\\":'):
                quote = b'\\"' if b"\\" in known else b'"'
                forged = known.replace(b"{", b"{%bmessage%b:%bNothing%b," % ((quote,) * 4))
                changed[2] = changed[2].replace(known, forged)
            self.bad(b"".join(changed), "export:3")

    def test_ocsf_members_of_another_type(self) -> None:
        """True is not 1, though Python says so."""
        for name, value in (("activity_id", True), ("severity_id", 1.0)):
            events = [json.loads(OCSF.text(record)) for record in self.records]
            self.assertEqual(events[2][name], 1)
            events[2][name] = value
            self.bad(_lines([json.dumps(event) for event in events]), "export:3", "OCSF members")

    def test_ocsf_of_another_version(self) -> None:
        """The mapping of another version may differ; the record counts."""
        event = {**json.loads(OCSF.text(sealed(1)[0])), "message": "said otherwise then"}
        self.assertEqual(self.verify(_lines([json.dumps(event)]))[0], VERIFIED)


class TamperingTests(Base):
    """In every form."""

    def setUp(self) -> None:
        super().setUp()
        self.contents = {name: write(self.records) for name, write in FORMS.items()}
        self.whole = {name: self.hashes(content) for name, content in self.contents.items()}

    @settings(max_examples=600, deadline=None)
    @given(st.data())
    def test_any_byte(self, data: st.DataObject) -> None:
        """
        A changed byte is found and a record named, unless all records before the last one are what they were. The first
        one may become one of another chain; then it is noted that it is missing in its own.
        """
        name = data.draw(st.sampled_from(sorted(FORMS)))
        content = bytearray(self.contents[name])
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
        status, text = self.verify(bytes(content))
        if status == VERIFIED:
            left = {digest for digest in self.hashes(bytes(content)) if digest in self.whole[name]}
            left.add(self.records[-1].hash)
            if "note: chain a1 begins at seq 1" in text:
                left.add(self.records[0].hash)
            self.assertEqual(left, set(self.whole[name]), text)
        elif status == BAD:
            self.assertIn("FIRST BAD RECORD: ", text)

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(FORMS)), st.integers(1, 4), st.booleans())
    def test_removed(self, name: str, which: int, backwards: bool) -> None:
        """A removed record is named by its number, and the one behind it by its place."""
        records = [*self.records[:which], *self.records[which + 1 :]]
        self.bad(FORMS[name](records[::-1] if backwards else records), f"seq {which + 1}: 1 before", f"(seq {which})")

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(FORMS)), st.integers(1, 4), st.booleans())
    def test_inserted(self, name: str, which: int, backwards: bool) -> None:
        """An inserted record bears a number that another has, and is named."""
        forged = sealed(1, head=audit.Head(which, self.records[which - 1].hash), reason="forged")
        records = [*self.records[:which], *forged, *self.records[which:]]
        self.bad(FORMS[name](records[::-1] if backwards else records), f", seq {which}: another record of this number")

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(FORMS)), st.integers(1, 3), st.booleans())
    def test_swapped(self, name: str, which: int, backwards: bool) -> None:
        """Two records that changed their numbers are found; only links tell, so either of the two is named first."""
        records = list(self.records)
        one, other = records[which], records[which + 1]
        records[which : which + 2] = [self.renumbered(other, one), self.renumbered(one, other)]
        text = self.bad(FORMS[name](records[::-1] if backwards else records), "changed")
        self.assertRegex(text, f"FIRST BAD RECORD: .*, seq ({which}|{which + 1}): ")

    def renumbered(self, record: Sealed, place: Sealed) -> Sealed:
        """The record, in the place of another one."""
        values, there = json.loads(record.plain), json.loads(place.plain)
        values.update(seq=there["seq"], prev_hash=there["prev_hash"])
        raw = audit.plain(audit.ordered(values)).encode()
        return sealed_of(raw, audit.read(raw))

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(sorted(FORMS)), st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
    def test_any_order(self, name: str, order: list[int], again: list[int]) -> None:
        """No order and no repetition makes an export bad."""
        status, text = self.verify(FORMS[name]([self.records[i] for i in (*order, *again)]))
        self.assertEqual(status, VERIFIED, text)
