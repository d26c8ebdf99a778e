"""``identree audit verify``: what is whole is verified, and whatever is done to a log is found and named."""

from __future__ import annotations

import gzip
import json
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import audit
from identree.sinks.verify import BAD, UNREADABLE, VERIFIED, verify
from tests.core.test_audit import E0, E1
from tests.sinks.records import lines, sealed


def changed(record: audit.Sealed, **values: object) -> bytes:
    """The record with other values, written in the right form, without its newline."""
    return audit.plain(audit.ordered({**json.loads(record.plain), **values})).encode()


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.path = self.directory / "audit.log"
        self.records = sealed(10)

    def file(self, name: str, *content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(b"".join(content))
        return path

    def verify(self, *paths: Path) -> tuple[int, str]:
        out = StringIO()
        return verify(paths or (self.path,), out), out.getvalue()

    def whole(self, *paths: Path) -> str:
        status, text = self.verify(*paths)
        self.assertEqual(status, VERIFIED, text)
        return text

    def bad(self, where: str, what: str, *paths: Path) -> str:
        """It is not verified, and the first bad record is at that ``file:line`` for that reason."""
        status, text = self.verify(*paths)
        self.assertEqual(status, BAD, text)
        [first] = [line for line in text.splitlines() if line.startswith("FIRST BAD RECORD")]
        self.assertIn(f"{self.directory}/{where}", first)
        self.assertIn(what, first)
        return text


class WholeTests(Base):
    def test_one_file(self) -> None:
        """A whole log is verified; the last hash is told, for who keeps it elsewhere."""
        self.file("audit.log", lines(self.records))
        text = self.whole()
        self.assertIn(f"chain a1: seq 0 to 9, last hash {self.records[-1].hash} at {self.path}:10", text)
        self.assertIn("verified: 10 records in 1 file", text)

    def test_forged_text(self) -> None:
        """What a log says is shown harmless: it neither commands the terminal nor adds lines of its own."""
        hostile = "a\x1b[2J\nverified: 99 records\u202e"
        self.file("audit.log", lines(sealed(2, instance=hostile)))
        text = self.whole()
        self.assertIn("chain a\\x1b[2J\\nverified: 99 records\\u202e: seq 0", text)
        self.assertFalse([line for line in text.splitlines() if not line.isprintable()])

    def test_empty(self) -> None:
        """An empty file holds nothing bad."""
        self.assertIn("0 records", self.whole(self.file("audit.log")))

    def test_vectors(self) -> None:
        """The records of the specification verify, in C-form too."""
        self.file("audit.log", f"{E0}\n{E1}\n".encode())
        self.assertIn("2 records", self.whole())

    def test_any_order(self) -> None:
        """Rotated and compressed files verify in any order."""
        three = self.file("audit.log.3.gz", gzip.compress(lines(self.records[:3])))
        ten = self.file("audit.log.2", lines(self.records[3:5]))
        one = self.file("audit.log.1", lines(self.records[5:9]))
        live = self.file("audit.log", lines(self.records[9:]))
        for order in ((three, ten, one, live), (live, one, ten, three), (one, three, live, ten)):
            self.assertIn("seq 0 to 9", self.whole(*order))

    def test_swapped_lines(self) -> None:
        """Lines in another order are the same chain: records are ordered by their number."""
        self.file("audit.log", lines([*self.records[:3], self.records[4], self.records[3], *self.records[5:]]))
        self.whole()

    def test_rotated_away(self) -> None:
        """Without the oldest files the chain begins later, which is said."""
        self.file("audit.log", lines(self.records[4:]))
        self.assertIn("note: chain a1 begins at seq 4", self.whole())

    def test_written_again(self) -> None:
        """Records that a crash repeated are the same byte for byte, and fine."""
        self.file("audit.log", lines([*self.records[:7], *self.records[4:], self.records[9]]))
        self.assertIn("note: 4 records stand there more than once", self.whole())

    def test_copies(self) -> None:
        """A copy of a part, and one file named twice, change nothing."""
        self.file("audit.log", lines(self.records))
        copy = self.file("copy.log", lines(self.records[2:8]))
        self.whole(self.path, copy, self.path)

    def test_replicas(self) -> None:
        """Chains of several replicas may share a file."""
        other = sealed(10, instance="b2")
        self.file("audit.log", lines(r for pair in zip(self.records, other, strict=True) for r in pair))
        text = self.whole()
        self.assertIn("chain a1: seq 0 to 9", text)
        self.assertIn("chain b2: seq 0 to 9", text)

    @settings(max_examples=30, deadline=None)
    @given(st.permutations(range(10)), st.lists(st.integers(0, 9), max_size=5))
    def test_any_shuffle(self, order: list[int], again: list[int]) -> None:
        """No order and no repetition of whole lines makes a whole log bad."""
        self.path.write_bytes(lines(self.records[i] for i in (*order, *again)))
        self.whole()


class RunTests(Base):
    """Logs of deployed versions: no identity, a new chain at every start."""

    def setUp(self) -> None:
        super().setUp()
        self.first = sealed(5, instance="")
        self.second = sealed(4, instance="", reason="second")

    def test_runs(self) -> None:
        """Every start is a run of its own, no error."""
        self.file("audit.log", lines([*self.first, *self.second]))
        text = self.whole()
        self.assertEqual(text.count("run from"), 2)

    def test_runs_over_files(self) -> None:
        """A run may go on in the next file; the oldest may have lost its beginning."""
        one = self.file("audit.log.1", lines([*self.first[2:], *self.second[:2]]))
        live = self.file("audit.log", lines(self.second[2:]))
        self.assertIn("note: the oldest run begins at seq 2", self.whole(live, one))

    def test_gap(self) -> None:
        """A dropped event is a gap, and named."""
        self.file("audit.log", lines([*self.first[:2], *self.first[3:], *self.second]))
        self.bad("audit.log:3, seq 3", "1 before this one missing (seq 2)")

    def test_changed(self) -> None:
        """A changed record of a run is named, wherever the run stands."""
        self.file("audit.log", lines(self.first), lines(self.second[:1]))
        with self.path.open("ab") as file:
            file.write(changed(self.second[1], actor="mallory") + b"\n" + lines(self.second[2:]))
        self.bad("audit.log:7, seq 1", "it was changed: seq 2")

    def test_lost_beginning(self) -> None:
        """A later run without its beginning is bad."""
        self.file("audit.log", lines([*self.first, *self.second[2:]]))
        self.bad("audit.log:6, seq 2", "follows no record")

    def test_written_again(self) -> None:
        """Records that a crash repeated are fine here, too."""
        records = sealed(10, instance="")
        self.file("audit.log", lines([*records[:7], *records[4:]]))
        self.assertIn("note: 3 records stand there more than once", self.whole())

    def test_rewritten(self) -> None:
        """A chain that was recomputed from some record on differs from what was written before."""
        records = sealed(10, instance="")
        forged = sealed(6, instance="", head=audit.Head(4, records[3].hash), reason="forged")
        self.file("audit.log", lines([*records[:7], *forged]))
        self.bad("audit.log:5, seq 4", f"another record of this number stands at {self.path}:8")

    def test_copy(self) -> None:
        """A copy of a part of a run is fine."""
        self.file("audit.log", lines(self.first))
        self.whole(self.path, self.file("copy", lines(self.first[2:4])))


class TamperingTests(Base):
    def write(self, *content: bytes) -> None:
        self.file("audit.log", b"".join(line + b"\n" for line in content))

    def plain(self) -> list[bytes]:
        return [record.plain for record in self.records]

    def test_every_field(self) -> None:
        """Changing any value of a record is found and that record named."""
        for values in (
            {"timestamp": "2026-01-02T03:04:59Z"},
            {"event": "challenge_rejected"},
            {"username": "eve"},
            {"hostname": "web-02"},
            {"code": "ABCDEF-654321"},
            {"actor": "eve"},
            {"reason": ""},
            {"remote_addr": "10.0.0.2"},
            {"version": "1.1"},
        ):
            content = self.plain()
            content[4] = changed(self.records[4], **values)
            self.write(*content)
            self.bad("audit.log:5, seq 4", "it was changed: seq 5")

    def test_prev_hash(self) -> None:
        """A changed ``prev_hash`` breaks the links on both sides, and is named once."""
        content = self.plain()
        content[4] = changed(self.records[4], prev_hash="0" * 64)
        self.write(*content)
        text = self.bad("audit.log:5, seq 4", "it was changed: it does not fit the record before it")
        self.assertNotIn("\nbad record", text)

    def test_seq(self) -> None:
        """A changed number is a number too many and one too few."""
        content = self.plain()
        content[4] = changed(self.records[4], seq=8)
        self.write(*content)
        text = self.bad("audit.log:5, seq 8", "another record of this number stands at")
        self.assertIn("1 before this one missing (seq 4)", text)

    def test_instance(self) -> None:
        """A changed or removed identity leaves a gap in its chain."""
        for instance in ("b2", ""):
            content = self.plain()
            content[4] = changed(self.records[4], instance=instance)
            self.write(*content)
            self.bad("audit.log:6, seq 5", "1 before this one missing (seq 4)")

    def test_source(self) -> None:
        """A changed source is not a record of identree at all."""
        content = self.plain()
        content[4] = changed(self.records[4], source="other")
        self.write(*content)
        self.bad("audit.log:5:", "'source' is not 'identree'")

    def test_last_two(self) -> None:
        """When only two records are left behind the change, both are named."""
        content = self.plain()
        content[8] = changed(self.records[8], actor="eve")
        self.write(*content)
        self.bad("audit.log:9, seq 8", "this record or the next, seq 9")

    def test_removed(self) -> None:
        """Removed records are counted, and the one after them named."""
        content = self.plain()
        self.write(*content[:3], *content[6:])
        self.bad(
            "audit.log:4, seq 6", f"3 before this one missing (seq 3 to 5): the last before it is at {self.path}:3"
        )

    def test_removed_file(self) -> None:
        """A removed file in the middle is a gap."""
        old = self.file("audit.log.2", lines(self.records[:3]))
        live = self.file("audit.log", lines(self.records[6:]))
        self.bad("audit.log:1, seq 6", "3 before this one missing", live, old)

    def test_inserted(self) -> None:
        """A record that was squeezed in bears a number that another has."""
        content = self.plain()
        self.write(*content[:5], changed(self.records[5], actor="eve"), *content[5:])
        self.bad("audit.log:6, seq 5", f"another record of this number stands at {self.path}:7")

    def test_swapped_contents(self) -> None:
        """Two records that changed their contents, but not their places in the chain, are found."""
        content = self.plain()
        content[4] = changed(self.records[4], username="user6")
        content[6] = changed(self.records[6], username="user4")
        self.write(*content)
        text = self.bad("audit.log:5, seq 4", "it was changed")
        self.assertIn("audit.log:7, seq 6: it was changed", text)

    def test_rewritten_end(self) -> None:
        """A chain that was recomputed from some record on does not fit a copy of the true one."""
        copy = self.file("copy.log", lines(self.records))
        forged = sealed(6, head=audit.Head(4, self.records[3].hash), reason="forged")
        self.write(*self.plain()[:4], *(record.plain for record in forged))
        self.bad("audit.log:5, seq 4", f"another record of this number stands at {copy}:5", self.path, copy)

    def test_truncated(self) -> None:
        """A last line that lost its end is named."""
        self.file("audit.log", lines(self.records)[:-20])
        self.bad("audit.log:10:", "it is incomplete")

    def test_not_a_record(self) -> None:
        """Foreign, misordered and overlong lines are named, and what is wrong with them."""
        content = self.plain()
        misordered = json.dumps(dict(reversed(json.loads(content[4]).items())), separators=(",", ":")).encode()
        unknown = content[4][:-1] + b',"x":"y"}'
        for line, what in (
            (b"# a remark", "no JSON object"),
            (b"", "no JSON object"),
            (b"\xff\xfe", "not UTF-8"),
            (misordered, "not in the order"),
            (unknown, "unknown key 'x'"),
            (b"x" * (3 << 20), "longer than"),
        ):
            self.write(*content[:4], line, *content[5:])
            text = self.bad("audit.log:5:", what)
            self.assertIn("audit.log:6, seq 5: 1 before this one missing", text)

    def test_many_problems(self) -> None:
        """A ruined log gives a short answer."""
        self.write(*(b"nonsense" for _ in range(100)))
        status, text = self.verify()
        self.assertEqual((status, text.count("bad record:")), (BAD, 19))
        self.assertIn("and 80 more", text)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_byte(self, data: st.DataObject) -> None:
        """No byte before the last record can be changed unnoticed."""
        content = bytearray(lines(self.records))
        end = len(lines(self.records[:-1]))
        at = data.draw(st.integers(0, end - 1))
        content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
        self.path.write_bytes(bytes(content))
        self.assertEqual(self.verify()[0], BAD)


class UnreadableTests(Base):
    def test_missing(self) -> None:
        """A file that is not there is told, with exit code 2."""
        status, text = self.verify(self.path)
        self.assertEqual(status, UNREADABLE)
        self.assertIn(str(self.path), text)

    def test_broken_archive(self) -> None:
        """A damaged archive is told, not a traceback."""
        whole = gzip.compress(lines(self.records))
        for broken in (whole[:-30], whole[:40] + b"\0\0\0" + whole[43:], whole[:12]):
            status, text = self.verify(self.file("audit.log.1.gz", broken))
            self.assertEqual(status, UNREADABLE)
            self.assertIn("audit.log.1.gz", text)
