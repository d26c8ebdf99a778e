"""``identree audit verify``: what is whole is verified, and whatever is done to a log is found and named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import audit, checkpoints
from identree.core.checkpoints import Standing
from identree.core.events import AuditCheckpoint
from identree.sinks import verify as module
from identree.sinks.verify import BAD, UNREADABLE, VERIFIED, verify
from tests.core.test_audit import E0, E1
from tests.sinks.records import START, lines, sealed


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

    def verify(self, *paths: Path, **options: Any) -> tuple[int, str]:
        out = StringIO()
        return verify(paths or (self.path,), out, **options), out.getvalue()

    def whole(self, *paths: Path, **options: Any) -> str:
        status, text = self.verify(*paths, **options)
        self.assertEqual(status, VERIFIED, text)
        return text

    def bad(self, where: str, what: str, *paths: Path, **options: Any) -> str:
        """It is not verified, and the first bad record is at that ``file:line`` for that reason."""
        status, text = self.verify(*paths, **options)
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

    def test_any_name(self) -> None:
        """A file may have any name."""
        name = "audit\n.log.1"
        self.file(name, lines(self.records))
        self.assertIn("audit\\n.log.1:10", self.whole(self.directory / name))

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


class OrderTests(Base):
    """Searches give the newest first, or in no order."""

    def test_memory(self) -> None:
        """A chain is followed in the memory of a few entries, whether it runs forwards or backwards."""
        self.patch(module, "MAX_STRETCHES", 2)
        records = sealed(300)
        other = sealed(300, instance="b2")
        for order in (records, records[::-1], [*records[150:], *records[:150]], [*records[149::-1], *records[150:]]):
            self.file("audit.log", lines(order))
            self.whole()
        self.file("audit.log", lines(r for pair in zip(records[::-1], other, strict=True) for r in pair))
        self.whole()

    def test_shuffled(self) -> None:
        """Where there is no order, memory is bounded, and what to do is said."""
        self.patch(module, "MAX_STRETCHES", 100)
        records = sealed(300)
        self.file("audit.log", lines([*records[::2], *records[1::2]]))
        status, text = self.verify()
        self.assertEqual(status, UNREADABLE)
        self.assertIn("in too wild an order", text)
        self.assertIn("export them sorted by time", text)

    def test_backwards_run(self) -> None:
        """A gap in a run without an identity is found backwards, too, and is not taken for the log's beginning."""
        records = sealed(10, instance="")
        self.file("audit.log", lines([*records[:4:-1], *records[3::-1]]))
        self.bad("audit.log:5, seq 5", "1 before this one missing (seq 4): the last before it is at")

    def test_backwards_runs(self) -> None:
        """Runs that follow each other, newest first."""
        first, second = sealed(5, instance=""), sealed(4, instance="", reason="second")
        self.file("audit.log", lines([*second[::-1], *first[:1:-1]]))
        self.assertIn("note: the oldest run begins at seq 2", self.whole())

    def test_first_backwards(self) -> None:
        """Of several bad records the oldest is named first, whichever stands first."""
        content = [record.plain for record in self.records]
        content[3], content[7] = changed(self.records[3], actor="eve"), changed(self.records[7], actor="eve")
        self.file("audit.log", *(line + b"\n" for line in reversed(content)))
        self.bad("audit.log:7, seq 3", "it was changed: seq 4")

    def test_long_overlap(self) -> None:
        """The first different record of a long overlap is found in pieces of bounded memory."""
        self.patch(module, "COMPARED_AT_ONCE", 7)
        records = sealed(60)
        forged = sealed(15, head=audit.Head(45, records[44].hash), reason="forged")
        self.file("audit.log", lines(records))
        copy = self.file("copy.log", lines([*records[:45], *forged]))
        self.bad("audit.log:46, seq 45", f"another record of this number stands at {copy}:46", self.path, copy)

    def test_many_bad_lines(self) -> None:
        """A file of nonsense costs no memory, and is counted."""
        self.patch(module, "MAX_REMEMBERED", 50)
        self.file("audit.log", b"nonsense\n" * 500)
        status, text = self.verify()
        self.assertEqual((status, text.count("bad record:")), (BAD, 19))
        self.assertIn("and 480 more", text)


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
        """
        No byte before the last record can be changed unnoticed. The first record may become one of another chain; that
        it is missing in its own is only noted, since it might have been rotated away.
        """
        content = bytearray(lines(self.records))
        end = len(lines(self.records[:-1]))
        at = data.draw(st.integers(0, end - 1))
        content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
        self.path.write_bytes(bytes(content))
        status, text = self.verify()
        self.assertTrue(status == BAD or "note: chain a1 begins at seq 1" in text, text)


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


class Signer:
    """Somebody with a key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.id = checkpoints.key_id(self._key.public_key().public_bytes_raw())

    def reason(self, record: audit.Sealed, **changes: Any) -> str:
        """A statement about the record."""
        seconds = timedelta(seconds=record.seq)
        standing = Standing(instance=record.instance, seq=record.seq, hash=record.hash, time=START + seconds)
        standing = replace(standing, **changes)
        return checkpoints.statement(standing, self._key.sign(checkpoints.signed_bytes(standing)))

    def pem(self, *, private: bool = False) -> bytes:
        if private:
            return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def chain(count: int, signer: Signer, *, every: int = 5, behind: int = 1, reason: str = "a") -> list[audit.Sealed]:
    """
    Records of which each ``every``-th is a checkpoint.

    :param behind: how far behind what it vouches for a checkpoint stands.
    """
    records: list[audit.Sealed] = []
    while len(records) < count:
        head = audit.Head(len(records), records[-1].hash) if records else audit.Head()
        if len(records) % every == every - 1:
            records.append(sign(head, signer.reason(records[-behind]), signer.id))
        else:
            records += sealed(1, head=head, reason=reason)
    return records


def sign(head: audit.Head, reason: str, key_id: str) -> audit.Sealed:
    event = AuditCheckpoint(at=START + timedelta(seconds=head.next_seq), username="", code=key_id, reason=reason)
    return audit.seal(head, audit.fields(event), version="1.0", instance="a1")[1]


def rewritten(records: Sequence[audit.Sealed], which: int, **values: object) -> list[audit.Sealed]:
    """What somebody makes of a log who can compute hashes: one record changed, all links right again."""
    head, result = audit.Head(), []
    for record in records:
        old = json.loads(record.plain)
        if record.seq == which:
            old.update(values)
        fields = {key: value for key, value in old.items() if key not in ("seq", "prev_hash", "instance", "version")}
        head, sealed_again = audit.seal(head, fields, version="1.0", instance="a1")
        result.append(sealed_again)
    return result


class CheckpointBase(Base):
    def setUp(self) -> None:
        super().setUp()
        self.signer = Signer()
        self.records = chain(20, self.signer)
        self.key = self.file("audit.pub", self.signer.pem())


class CheckpointTests(CheckpointBase):
    """Those that stand in the logs."""

    def test_good(self) -> None:
        """Signatures are checked, and the age of the last one told."""
        for behind in (1, 3):
            self.file("audit.log", lines(chain(20, self.signer, behind=behind)))
            text = self.whole(keys=[self.key], now=START + timedelta(hours=2, seconds=19 - behind))
            self.assertIn("signatures: 4 checkpoints signed with the keys given", text)
            self.assertIn(f"chain a1: last checkpoint at {self.path}:20, seq 19, signed 2026-01-02T03:04:", text)
            self.assertIn("2h0m0s ago; it vouches for seq", text)
            self.assertNotIn("note:", text.replace("note: chain", ""))

    def test_unchecked(self) -> None:
        """Without a key, what is missing is said, with the key's name."""
        self.file("audit.log", lines(self.records))
        text = self.whole()
        self.assertIn("the signatures of 4 checkpoints were not checked; give the public key with --key", text)
        self.assertIn(f"(wanted: {self.signer.id})", text)

    def test_two_keys(self) -> None:
        """After a change of the key, both verify; the wrong one alone does not."""
        other = Signer()
        key = self.file("other.pub", other.pem())
        head = audit.Head(20, self.records[-1].hash)
        self.file("audit.log", lines([*self.records, sign(head, other.reason(self.records[-1]), other.id)]))
        self.assertIn("5 checkpoints signed with the keys given", self.whole(keys=[self.key, key]))
        self.bad(
            "audit.log:21, seq 20", f"signed with the key {other.id}, which is none of those given", keys=[self.key]
        )

    def test_no_checkpoints(self) -> None:
        """A key for nothing is said."""
        self.file("audit.log", lines(sealed(3)))
        self.assertIn("there is no checkpoint that the keys given could prove", self.whole(keys=[self.key]))

    def test_forged_signature(self) -> None:
        """Who has no key cannot make a checkpoint, nor take one from elsewhere."""
        forger = Signer()
        head, last = audit.Head(20, self.records[-1].hash), self.records[-1]
        self.file("audit.log", lines([*self.records, sign(head, forger.reason(last), self.signer.id)]))
        self.bad("audit.log:21, seq 20", f"the key {self.signer.id} did not sign", keys=[self.key])
        statement = self.signer.reason(last).replace(last.hash, self.records[3].hash)
        self.file("audit.log", lines([*self.records, sign(head, statement, self.signer.id)]))
        self.bad("audit.log:21, seq 20", "did not sign what it says", keys=[self.key])

    def test_nonsense(self) -> None:
        """A checkpoint without a statement, about another chain or about the future is none."""
        head, last = audit.Head(20, self.records[-1].hash), self.records[-1]
        for reason, what in (
            ("", "not of the form"),
            ("x", "not of the form"),
            (self.signer.reason(last, instance="b2"), "about another chain"),
            (self.signer.reason(last, seq=20), "about records behind it"),
        ):
            self.file("audit.log", lines([*self.records, sign(head, reason, self.signer.id)]))
            for keys in ([], [self.key]):
                self.bad("audit.log:21, seq 20", what, keys=keys)

    def test_recomputed(self) -> None:
        """
        Somebody rewrote a record and all hashes behind it: the chain holds, but the checkpoints name other hashes; even
        without a key the first record is named that one of them vouches for.
        """
        for behind in (1, 3):
            records = chain(20, self.signer, behind=behind)
            self.file("audit.log", lines(rewritten(records, 6, actor="eve")))
            seq = 9 - behind
            for keys in ([], [self.key]):
                text = self.bad(f"audit.log:{seq + 1}, seq {seq}", "not the record that the checkpoint at", keys=keys)
                self.assertIn("audit.log:10, seq 9, vouches for: the log was rewritten, here or before", text)

    def test_signed_anew(self) -> None:
        """Who signs the rewritten chain with a key of his own is found by the key."""
        self.file("audit.log", lines(chain(20, Signer(), reason="forged")))
        self.assertIn("were not checked", self.whole())
        self.bad("audit.log:5, seq 4", "which is none of those given", keys=[self.key])

    def test_age(self) -> None:
        """A chain that goes on without a checkpoint for too long is bad: somebody may have taken them out."""
        head = audit.Head(20, self.records[-1].hash)
        self.file("audit.log", lines([*self.records, *sealed(10, head=head)]))
        self.whole(keys=[self.key], max_age=timedelta(seconds=11))
        self.bad(
            "audit.log:30, seq 29",
            "the last checkpoint vouches for seq 18; the chain goes on for 11s without one",
            keys=[self.key],
            max_age=timedelta(seconds=10),
        )
        self.file("audit.log", lines(sealed(10)))
        self.whole(max_age=timedelta(seconds=9))
        self.bad("audit.log:10, seq 9", "vouches for nothing", max_age=timedelta(seconds=8))

    def test_without_identity(self) -> None:
        """Who relies on checkpoints is told of records that none of them can vouch for."""
        told = "note: 3 records have no identity, as those of deployed versions; no checkpoint vouches for them"
        self.file("audit.log", lines(sealed(3, instance="")), lines(self.records))
        self.assertIn(told, self.whole(keys=[self.key]))
        self.assertIn(told, self.whole(max_age=timedelta(days=1)))
        self.assertNotIn(told, self.whole())

    def test_impossible_time(self) -> None:
        """A day that does not exist is told, not fallen over."""
        record = audit.seal(
            audit.Head(), {**json.loads(self.records[0].plain), "timestamp": "2026-02-31T00:00:00Z"}, version="1.0"
        )[1]
        self.file("audit.log", changed(record, instance="a1") + b"\n")
        self.bad("audit.log:1, seq 0", "timestamps that do not exist", max_age=timedelta(hours=1))

    def test_bad_keys(self) -> None:
        """A file without a public key is told, with exit code 2; so is a private key, which belongs nowhere else."""
        self.file("audit.log", lines(self.records))
        for content, what in (
            (b"nonsense", "no Ed25519 public key"),
            (self.signer.pem(private=True), "it is a private key"),
        ):
            status, text = self.verify(keys=[self.file("key", content)])
            self.assertEqual(status, UNREADABLE)
            self.assertIn(what, text)
        self.assertEqual(self.verify(keys=[self.directory / "none"])[0], UNREADABLE)

    def test_too_many(self) -> None:
        """Checkpoints that must be looked up are bounded."""
        self.patch(module, "MAX_CHECKPOINTS", 3)
        self.file("audit.log", lines(chain(20, self.signer, behind=2)))
        status, text = self.verify()
        self.assertEqual(status, UNREADABLE)
        self.assertIn("give fewer files", text)


class KeptTests(CheckpointBase):
    """Checkpoints that somebody has kept elsewhere."""

    def setUp(self) -> None:
        super().setUp()
        # as a syslog server keeps them that drops everything else
        self.keep = self.file(
            "kept.log", *(b"<86>1 x y identree - - [a] " + r.canonical + b"\n" for r in self.records[4::5])
        )

    def options(self, *, key: bool = True) -> dict[str, Any]:
        return {"kept": [self.keep], "keys": [self.key] if key else []}

    def test_agree(self) -> None:
        """They confirm a log, in whatever form it is."""
        self.file("audit.log", lines(self.records))
        text = self.whole(**self.options())
        self.assertIn("chain a1: 4 kept checkpoints confirmed by these logs", text)
        self.assertIn("signatures: 8 checkpoints signed with the keys given", text)
        self.assertIn("verified: 20 records in 1 file", text)

    def test_whole_log_kept(self) -> None:
        """A copy with everything in it serves as well; only its checkpoints count."""
        self.keep = self.file("copy.log", lines(self.records))
        self.file("audit.log", lines(self.records[:12]))
        self.bad("audit.log:12, seq 11", "records behind this one are missing", **self.options())
        self.file("audit.log", lines(self.records))
        self.whole(**self.options())

    def test_rewritten(self) -> None:
        """
        The chain was computed anew with a changed record and all its checkpoints signed by somebody, or taken out: what
        was kept finds it, names the record and the checkpoint, and up to where the log is the old one.
        """
        for forged in (
            rewritten(self.records, 11, actor="eve"),
            [*self.records[:10], *sealed(10, head=audit.Head(10, self.records[9].hash), reason="forged")],
        ):
            self.file("audit.log", lines(forged))
            for key in (False, True):
                out = self.bad(
                    "audit.log:14, seq 13",
                    f"when the checkpoint at {self.keep}:3 (seq 14) was signed, 2026-01-02T03:04:18Z",
                    **self.options(key=key),
                )
                self.assertIn("rewritten, here or before, after seq 9, the last that a kept checkpoint confirms", out)

    def test_only_the_checkpoint_rewritten(self) -> None:
        """The checkpoint itself must still stand in the log as it was kept."""
        forged = [*self.records[:19], *sealed(1, head=audit.Head(19, self.records[18].hash), reason="forged")]
        self.file("audit.log", lines(forged))
        self.bad("audit.log:20, seq 19", f"when the checkpoint at {self.keep}:4 (seq 19)", **self.options())

    def test_truncated(self) -> None:
        """Records missing at the end, which no chain can tell."""
        for count in (19, 16, 5):
            self.file("audit.log", lines(self.records[:count]))
            self.whole(keys=[self.key])
            self.bad(
                f"audit.log:{count}, seq {count - 1}",
                f"behind this one are missing: the checkpoint at {self.keep}:4 has seq 19 and vouches for seq 18",
                **self.options(),
            )

    def test_chain_gone(self) -> None:
        """Nothing of a chain is there at all."""
        self.file("audit.log", lines(sealed(3, instance="b2")))
        self.bad("kept.log:4, seq 19", "these logs have nothing of the chain a1", **self.options())

    def test_rotated(self) -> None:
        """Checkpoints of what was rotated away cannot be compared, which is said."""
        self.file("audit.log", lines(self.records[12:]))
        text = self.whole(**self.options())
        self.assertIn("note: chain a1: 2 kept checkpoints older than these logs, and not compared", text)
        self.assertIn("2 kept checkpoints confirmed", text)

    def test_forged_kept(self) -> None:
        """What was kept counts only with its signature."""
        self.file("audit.log", lines(self.records))
        self.keep = self.file("kept.log", lines(chain(20, Signer(), reason="forged")[4::5]))
        self.bad("kept.log:1, seq 4", "which is none of those given", **self.options())

    def test_damaged_kept(self) -> None:
        """A damaged line among them is named."""
        self.file("audit.log", lines(self.records))
        self.keep = self.file("kept.log", self.records[4].plain, b"\n", self.records[9].plain[:-30], b"\n")
        self.bad("kept.log:2", "no JSON object", **self.options())

    def test_none_kept(self) -> None:
        """A file without a checkpoint is the wrong one: exit code 2."""
        self.file("audit.log", lines(self.records))
        self.keep = self.file("kept.log", lines(sealed(3)))
        status, text = self.verify(**self.options())
        self.assertEqual(status, UNREADABLE)
        self.assertIn(f"{self.keep}: there is no checkpoint (event audit_checkpoint) in it", text)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 17), st.booleans(), st.booleans())
    def test_any_rewriting(self, which: int, backwards: bool, key: bool) -> None:
        """Whichever record before the last checkpoint is rewritten, it is found, however the log is ordered."""
        forged = rewritten(self.records, which, username="eve", code="")
        self.file("audit.log", lines(forged[::-1] if backwards else forged))
        status, text = self.verify(**self.options(key=key))
        self.assertEqual(status, BAD, text)
        named = int(text.partition("FIRST BAD RECORD: ")[2].partition(", seq ")[2].partition(":")[0])
        self.assertTrue(which <= named <= which + 5, text)
