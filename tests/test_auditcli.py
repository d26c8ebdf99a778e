"""``identree audit``: what the words mean, what comes out, and that it can be verified again."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree import auditcli
from identree.app.checkpoints import Checkpoints, SigningKey
from identree.auditcli import main
from identree.core import audit, checkpoints
from identree.core.audit import Sealed
from identree.core.events import UserSignedOut
from identree.sinks.exports import Export
from identree.sinks.jsonl import JsonLog, Target
from identree.sinks.verify import BAD, VERIFIED, verify
from identree.storage.opening import open_store
from identree.storage.store import SqlStore
from tests.postgres import cluster
from tests.sinks.records import START, lines, sealed

NOW = datetime(2026, 1, 3, tzinfo=UTC)
# The command as a process of its own: it runs the reactor, which no process does twice.
COMMAND = (sys.executable, "-c", "import sys; from identree.auditcli import main; sys.exit(main(sys.argv[1:]))")


def settings_of(directory: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "IDENTREE_EXTERNAL_URL": "https://identree.example.com",
        "IDENTREE_SHARED_SECRET": "cli-shared-0123456789abcdef01234",
        "IDENTREE_SESSION_SECRET": "cli-session-0123456789abcdef0123",
        "IDENTREE_DATABASE_DSN": str(directory / "identree.db"),
        "IDENTREE_OIDC_ISSUER_URL": "https://id.example.com",
        "IDENTREE_OIDC_CLIENT_ID": "identree",
        "IDENTREE_OIDC_CLIENT_SECRET": "a-client-secret",
        "IDENTREE_TOML_CONFIG_FILE": str(directory / "identree.toml"),
        "IDENTREE_LDAP_BASE_DN": "dc=example,dc=com",
        "IDENTREE_AUDIT_LOG": str(directory / "audit.log"),
        **more,
    }


def at(seq: int) -> str:
    """The instant of the test records of that number."""
    return (START + timedelta(seconds=seq)).isoformat()


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.environ = settings_of(self.directory)
        self.records = sealed(10)

    def file(self, name: str, *content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(b"".join(content))
        return str(path)

    def main(self, *words: str, status: int = 0) -> list[bytes]:
        """The lines that it printed; ``self.err`` has the rest."""
        out, err = TextIOWrapper(BytesIO(), encoding="utf-8"), StringIO()
        with patch.dict(os.environ, self.environ, clear=True), redirect_stdout(out), redirect_stderr(err):
            found = main(words, now=lambda: NOW)
        self.err = err.getvalue()
        out.flush()
        printed = out.buffer.getvalue()  # type: ignore[attr-defined]
        self.assertEqual(found, status, self.err or printed.decode())
        return list(printed.splitlines())

    def seqs(self, printed: Sequence[bytes]) -> list[int]:
        return [json.loads(line)["seq"] for line in printed]


class WordsTests(Base):
    def test_help(self) -> None:
        """Every command says what its exit status means."""
        self.assertIn("export", b"\n".join(self.main("--help")).decode())
        for command in ("verify", "export", "parked"):
            self.assertIn("exit status: 0", b" ".join(self.main(command, "--help")).decode())

    def test_mistakes(self) -> None:
        """Words that are off are the caller's mistakes, and said."""
        for words in (
            (),
            ("look",),
            ("verify",),
            ("export", "--from", "yesterday"),
            ("export", "--from", "2026-02-31"),
            ("export", "--to", "2026-01-02T03:04:05"),
            ("export", "--to", "-5h"),
            ("export", "--from", "999999d"),
            ("export", "--format", "xml"),
            ("verify", "--max-age", "long", "x"),
        ):
            self.main(*words, status=2)
            self.assertIn("usage: identree audit", self.err, words)
        self.main("export", "--from", "1h", "--to", "2h", status=2)
        self.assertIn("--from must be before --to", self.err)

    def test_bad_settings(self) -> None:
        """All mistakes in the settings are said, and nothing is read."""
        self.environ["IDENTREE_CHALLENGE_TTL"] = "soon"
        for command in ("export", "parked"):
            self.assertEqual(self.main(command, status=2), [])
            self.assertIn("IDENTREE_CHALLENGE_TTL", self.err)

    def test_no_database(self) -> None:
        """A database that is not there is told, and not made."""
        for command in ("export", "parked"):
            self.main(command, status=2)
            self.assertIn("the database cannot be read: [Errno 2] No such file or directory", self.err)
        self.assertEqual(list(self.directory.iterdir()), [])


class VerifyTests(Base):
    def test_statuses(self) -> None:
        """0 verified, 1 bad, 2 unreadable."""
        path = self.file("audit.log", lines(self.records))
        self.assertIn(b"verified: 10 records in 1 file", self.main("verify", path))
        self.file("audit.log", lines([*self.records[:4], *self.records[5:]]))
        self.assertIn("FIRST BAD RECORD", b"\n".join(self.main("verify", path, status=1)).decode())
        self.main("verify", str(self.directory / "none"), status=2)

    def test_options(self) -> None:
        """Keys, kept checkpoints and the greatest age reach the check."""
        path = self.file("audit.log", lines(self.records))
        [line] = self.main("verify", path, "--key", str(self.directory / "none"), status=2)
        self.assertIn(b"cannot read: [Errno 2]", line)
        printed = self.main("verify", path, "--checkpoints", path, status=2)
        self.assertIn(b"there is no checkpoint", printed[0])
        printed = self.main("verify", path, "--max-age", "5s", status=1)
        self.assertIn("goes on for 9s without one", b"\n".join(printed).decode())


class ExportTests(Base):
    """From files."""

    def test_everything(self) -> None:
        """Without a span everything comes out, as it stands there, without any settings."""
        self.environ = {}
        path = self.file("audit.log", lines(self.records))
        self.assertEqual(self.main("export", path), [record.plain for record in self.records])
        self.assertEqual(self.err, "")

    def test_span(self) -> None:
        """From the first instant on, up to before the second."""
        path = self.file("audit.log", lines(self.records))
        for words, wanted in (
            (("--from", at(3), "--to", at(7)), [3, 4, 5, 6]),
            (("--from", "2026-01-02T04:04:08+01:00", "--to", "2026-01-02 03:04:09.5z"), [3, 4]),
            (("--from", "2026-01-02T03:04:12.001Z"), [8, 9]),
            (("--from", "20h55m50s"), [5, 6, 7, 8, 9]),
            (("--to", "20h55m50s"), [0, 1, 2, 3, 4]),
            (("--from", "2026-01-02", "--to", "2026-01-03"), list(range(10))),
            (("--from", "1d"), list(range(10))),
        ):
            self.assertEqual(self.seqs(self.main("export", *words, path)), wanted, words)

    def test_nothing(self) -> None:
        """An empty span is no failure, but said."""
        path = self.file("audit.log", lines(self.records))
        self.assertEqual(self.main("export", "--from", "1h", path), [])
        self.assertIn("no record in that span", self.err)

    def test_any_form_and_order(self) -> None:
        """From exports of all kinds, each record once, in the order of its chain, in the form of the JSON log."""
        other = sealed(3, instance="b2")
        loki = self.file(
            "loki.jsonl", *(json.dumps({"line": r.canonical.decode()}).encode() + b"\n" for r in self.records[6:1:-1])
        )
        syslog = self.file("syslog", *(b"<86>1 x y identree - - [a] " + r.canonical + b"\n" for r in self.records[:3]))
        log = self.file("log.1.gz", gzip.compress(lines([*self.records[5:], *other[::-1]])))
        expected = [record.plain for record in (*self.records, *other)]
        self.assertEqual(self.main("export", log, loki, syslog), expected)

    def test_instance(self) -> None:
        """One of several chains."""
        path = self.file("audit.log", lines(self.records), lines(sealed(3, instance="b2")))
        self.assertEqual(len(self.main("export", "--instance", "b2", path)), 3)

    def test_formats(self) -> None:
        """Written as the sinks would; OCSF verifies again."""
        path = self.file("audit.log", lines(self.records))
        self.assertTrue(all(line.startswith(b"CEF:0|") for line in self.main("export", "--format", "cef", path)))
        ocsf = self.file("ocsf", *(line + b"\n" for line in self.main("export", "--format", "ocsf", path)))
        self.assertEqual(verify([ocsf], StringIO()), VERIFIED)
        self.assertEqual(self.main("export", ocsf), [record.plain for record in self.records])

    def test_clock(self) -> None:
        """Where a clock was set, what lies between belongs to the span, so that the chain stays whole."""
        head, records = audit.Head(), []
        for number, second in enumerate([1, 2, 40, 3, 4, 0, 50]):
            values = {**json.loads(self.records[0].plain), "timestamp": audit.timestamp(START + timedelta(0, second))}
            values = {key: value for key, value in values.items() if key not in ("seq", "instance")}
            head, record = audit.seal(head, values, version=f"{number}", instance="a1")
            records.append(record)
        path = self.file("audit.log", lines(records))
        self.assertEqual(self.seqs(self.main("export", "--from", at(2), "--to", at(5), path)), [1, 2, 3, 4])

    def test_gap(self) -> None:
        """What is missing within the span is said; the rest is printed."""
        path = self.file("audit.log", lines([*self.records[:4], *self.records[6:8], self.records[9]]))
        self.assertEqual(len(self.main("export", path, status=1)), 7)
        self.assertIn("chain 'a1': seq 4 to 5 missing", self.err)
        self.assertIn("chain 'a1': seq 8 missing", self.err)
        self.main("export", "--to", at(4), path)

    def test_damaged(self) -> None:
        """Lines that are no records are named and left out."""
        path = self.file("audit.log", lines(self.records[:5]), b"nonsense\x1b[2J\n" * 9, lines(self.records[5:])[:-9])
        self.assertEqual(self.seqs(self.main("export", path, status=1)), list(range(9)))
        self.assertIn(f"{path}:6: this is no audit record", self.err)
        self.assertIn("and 5 more places", self.err)
        self.assertNotIn("\x1b", self.err)

    def test_differing(self) -> None:
        """Two records of one number: one is printed, and the doubt said."""
        forged = sealed(1, head=audit.Head(4, self.records[3].hash), reason="forged")
        path = self.file("audit.log", lines([*self.records, *forged]))
        self.assertEqual(self.main("export", path, status=1), [record.plain for record in self.records])
        self.assertIn("two different records bear seq 4", self.err)

    def test_runs(self) -> None:
        """Records of deployed versions begin anew at every start; all come out, by time, each once."""
        first = sealed(5, instance="")
        head, second = audit.Head(), []
        for number in range(3):
            values = {"timestamp": audit.timestamp(START + timedelta(minutes=1)), "event": "x", "username": str(number)}
            head, record = audit.seal(head, values, version="1")
            second.append(record)
        path = self.file("audit.log", lines([*second, *first[::-1], *second]))
        printed = self.main("export", path)
        self.assertEqual(printed, [record.plain for record in (*first, *second)])
        self.assertEqual(len(self.main("export", "--from", at(30), path)), 3)

    def test_unreadable(self) -> None:
        """A file that is none is told, with exit code 2."""
        self.main("export", str(self.directory / "none"), status=2)
        self.assertIn("cannot read", self.err)
        cef = self.file("cef", b"CEF:0|identree|identree|1|x|x|1|\n")
        self.main("export", cef, status=2)
        self.assertIn("it is CEF", self.err)

    @settings(max_examples=40, deadline=None)
    @given(st.permutations(range(10)), st.lists(st.integers(0, 9), max_size=5), st.integers(0, 10), st.integers(0, 10))
    def test_any_order(self, order: list[int], again: list[int], begin: int, end: int) -> None:
        """Whatever the order and the repetitions, a span comes out whole, and verifies."""
        path = self.file("audit.log", lines(self.records[i] for i in (*order, *again)))
        if begin < end:
            printed = self.main("export", "--from", at(begin), "--to", at(end), path)
            self.assertEqual(self.seqs(printed), list(range(begin, end)))
            self.assertEqual(verify([self.file("out", *(line + b"\n" for line in printed))], StringIO()), VERIFIED)


class OwnLogTests(Base):
    """The log of the settings; the database is left out."""

    def setUp(self) -> None:
        super().setUp()
        self.log = self.directory / "audit.log"
        self.beside = lambda: None

        def beside(settings: Any, work: Any, remedy: str = "") -> bool:
            self.beside()
            return True

        self.patch(auditcli, "_beside", beside)

    def test_rotated(self) -> None:
        """Rotated and compressed files belong to it, other files beside it do not."""
        self.file("audit.log.10.gz", gzip.compress(lines(self.records[:2])))
        self.file("audit.log.2", lines(self.records[2:5]))
        self.file("audit.log.1", lines(self.records[5:9]))
        self.file("audit.log", lines(self.records[9:]))
        self.file("audit.log.bak", b"nonsense")
        self.file("audit.logs", b"nonsense")
        self.assertEqual(self.seqs(self.main("export")), list(range(10)))

    def test_rotates_meanwhile(self) -> None:
        """A log that is rotated while it is read loses nothing."""
        self.file("audit.log.1", lines(self.records[:3]))
        self.file("audit.log", lines(self.records[3:7]))

        def rotate() -> None:
            os.rename(f"{self.log}.1", f"{self.log}.2")
            os.rename(self.log, f"{self.log}.1")
            self.log.write_bytes(lines(self.records[7:]))

        self.beside = rotate
        self.assertEqual(self.seqs(self.main("export")), list(range(10)))

    def test_oldest_goes_meanwhile(self) -> None:
        """A file that is rotated away between two readings is no failure."""
        old = Path(self.file("audit.log.1", lines(self.records[:3])))
        self.file("audit.log", lines(self.records[3:]))
        self.beside = old.unlink
        self.assertEqual(self.seqs(self.main("export")), list(range(3, 10)))

    def test_always_rotated(self) -> None:
        """A log that never holds still is given up, which is said."""
        self.file("audit.log", lines(self.records))
        files = auditcli._rotated
        numbers = iter(range(1, 100))

        def rotated(log: Path | None) -> list[Export]:
            self.file(f"audit.log.{next(numbers)}", lines(self.records))
            return files(log)

        self.patch(auditcli, "_rotated", rotated)
        self.assertEqual(self.seqs(self.main("export", status=1)), list(range(10)))
        self.assertIn("was rotated each time that it was read", self.err)

    def test_being_written(self) -> None:
        """A record that is being written is no damage; one that is damaged is."""
        self.file("audit.log", lines(self.records[:5]), self.records[5].plain[:40])
        self.assertEqual(self.seqs(self.main("export")), list(range(5)))
        self.file("audit.log", lines(self.records[:5]), self.records[5].plain[:40] + b"\n")
        self.main("export", status=1)

    def test_cef(self) -> None:
        """A log in CEF cannot be read back, which is said."""
        self.environ["IDENTREE_AUDIT_LOG_FORMAT"] = "cef"
        self.file("audit.log", b"CEF:0|identree|identree|1|x|x|1|\n")
        self.assertEqual(self.main("export", status=1), [])
        self.assertIn("is written in CEF, which cannot be read back", self.err)

    def test_none(self) -> None:
        """No log, one that goes to standard output, and one that has not begun."""
        for value in ("", "stdout", str(self.directory / "none" / "audit.log")):
            self.environ["IDENTREE_AUDIT_LOG"] = value
            self.assertEqual(self.main("export"), [])


class _DatabaseTests:
    """With a database, while a server has it open."""

    directory: Path
    environ: dict[str, str]
    store: SqlStore
    addCleanup: Any
    assertEqual: Any
    assertIn: Any
    assertLess: Any

    def driver(self) -> tuple[str, str]:
        """Name and DSN; SQLite's and PostgreSQL's tests have their own."""
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        """Beside the store; SQLite's and PostgreSQL's tests have their own."""
        raise NotImplementedError

    async def open(self, instance: str, log: Any = None) -> SqlStore:
        driver, dsn = self.driver()
        store = open_store(
            reactor,
            driver=driver,
            dsn=dsn,
            version="1.0",
            instance=instance,
            log=log,
            sinks=("loki",),
            max_open_conns=2,
        )
        await store.start()
        self.addCleanup(store.stop)
        return store

    def prepare(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        driver, dsn = self.driver()
        self.environ = settings_of(self.directory, IDENTREE_DATABASE_DRIVER=driver, IDENTREE_DATABASE_DSN=dsn)

    async def happen(self, store: SqlStore, count: int) -> None:
        for number in range(count):
            moment = START + timedelta(seconds=number)
            await store.record([UserSignedOut(at=moment, username=f"user{number} <é>")])

    async def command(self, *words: str, status: int = 0) -> list[bytes]:
        done = await deferToThread(
            subprocess.run, [*COMMAND, *words], env=self.environ, capture_output=True, timeout=120
        )
        self.err = done.stderr.decode()
        self.assertEqual(done.returncode, status, self.err)
        return list(done.stdout.splitlines())

    async def test_log_and_database(self) -> None:
        """The log, what was rotated away, and what of other replicas only the database has; and it verifies."""
        path = self.directory / "audit.log"
        log = JsonLog(Target(path), max_bytes=3000, max_files=50)
        self.addCleanup(log.close)
        mine = await self.open("0123456789abcdef", log)
        other = await self.open("1123456789abcdef")
        key = SigningKey.load_or_create(str(self.directory / "a.key"), str(self.directory / "a.pub"))
        await self.happen(mine, 60)
        await Checkpoints(mine, mine.outbox, key, lambda: NOW).sign()
        await self.happen(other, 20)
        self.assertLess(2, len(list(self.directory.glob("audit.log.*"))))
        # of these only the log knows, after retention
        self.execute("DELETE FROM outbox WHERE instance = '0123456789abcdef' AND seq < 50")
        records = await other.chain_records("1123456789abcdef", -1)
        printed = await self.command("export")
        self.assertEqual(len(printed), 81)
        self.assertEqual(printed[61:], [record.plain for record in records])
        out = self.directory / "out.jsonl"
        out.write_bytes(b"".join(line + b"\n" for line in printed))
        text = StringIO()
        self.assertEqual(verify([out], text, keys=[self.directory / "a.pub"]), VERIFIED, text.getvalue())
        self.assertIn("1 checkpoint signed", text.getvalue())
        span = await self.command("export", "--from", at(5), "--to", at(8), "--instance", "1123456789abcdef")
        self.assertEqual(span, [record.plain for record in records[5:8]])

    async def test_only_database(self) -> None:
        """Without a log, the database alone; more records than one reading of it gives."""
        self.environ["IDENTREE_AUDIT_LOG"] = "stdout"
        store = await self.open("0123456789abcdef")
        events = [UserSignedOut(at=START + timedelta(seconds=n), username="alice") for n in range(1200)]
        for first in range(0, 1200, 100):
            await store.record(events[first : first + 100])
        printed = await self.command("export", "--from", at(100), "--to", at(1150))
        self.assertEqual([json.loads(line)["seq"] for line in printed], list(range(100, 1150)))

    async def test_parked(self) -> None:
        """What a sink would not take: who, what, when, why, and the record byte for byte."""
        store = await self.open("0123456789abcdef")
        await self.happen(store, 3)
        records = await store.chain_records("0123456789abcdef", -1)
        await store.outbox.park("loki", records[:2], "entry too <old>", NOW)
        await store.outbox.park("splunk_hec", records[2:], "no", NOW)
        printed = await self.command("parked")
        self.assertEqual([(json.loads(line)["sink"], json.loads(line)["seq"]) for line in printed][:1], [("loki", 0)])
        self.assertEqual(len(printed), 3)
        [line] = await self.command("parked", "--sink", "splunk_hec")
        self.assertEqual(
            line,
            b'{"sink":"splunk_hec","seq":2,"instance":"0123456789abcdef","parked_at":"2026-01-03T00:00:00Z",'
            b'"reason":"no","record":' + records[2].plain + b"}",
        )
        self.assertEqual(await self.command("parked", "--sink", "syslog"), [])


class SqliteTests(_DatabaseTests, TestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.database = Path(temporary.name) / "identree.db"
        self.prepare()

    def driver(self) -> tuple[str, str]:
        return "sqlite", str(self.database)

    def execute(self, sql: str) -> None:
        connection = sqlite3.connect(self.database, timeout=30)
        with closing(connection), connection:
            connection.execute(sql)


class PostgresTests(_DatabaseTests, TestCase):
    """A real server."""

    def setUp(self) -> None:
        self.dsn = cluster().create_database()
        self.addCleanup(cluster().drop_database, self.dsn)
        self.prepare()

    def driver(self) -> tuple[str, str]:
        return "postgres", self.dsn

    def execute(self, sql: str) -> None:
        cluster().execute(self.dsn.rpartition("/")[2], sql)

    async def test_unreachable(self) -> None:
        """A server that is away: one line, no traceback, no password, and what to do."""
        self.environ["IDENTREE_DATABASE_DSN"] = "postgresql://identree:secret-password@127.0.0.1:9/identree"
        self.assertEqual(await self.command("export", status=2), [])
        self.assertIn("the database cannot be read", self.err)
        self.assertIn("name the log's files", self.err)
        self.assertEqual([part for part in ("Traceback", "secret-password") if part in self.err], [])


class PipeTests(Base):
    def test_reader_goes_away(self) -> None:
        """``identree audit export | head`` ends quietly, however much is left."""
        path = self.file("audit.log", lines(sealed(5000)))
        process = subprocess.Popen(
            [*COMMAND, "export", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environ
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        self.assertEqual((process.wait(60), process.stderr.read()), (0, b""))
        process.stderr.close()


class AttackTests(Base):
    def test_recomputed_log(self) -> None:
        """
        The whole way: a server signs, a checkpoint is kept elsewhere, somebody computes the log anew without a flaw,
        and the kept checkpoint finds it.
        """
        key = Ed25519PrivateKey.generate()
        records = sealed(5)
        kept = self.signed(records, SigningKey(key))
        forged = sealed(5, reason="forged")
        forged.append(self.signed(forged, SigningKey(Ed25519PrivateKey.generate())))
        path, elsewhere = self.file("audit.log", lines(forged)), self.file("kept", kept.plain + b"\n")
        self.main("verify", path)
        printed = b"\n".join(self.main("verify", path, "--checkpoints", elsewhere, status=BAD)).decode()
        self.assertIn(f"FIRST BAD RECORD: {path}:5, seq 4: it is not the record that was there", printed)

    def signed(self, records: list[Sealed], key: SigningKey) -> Sealed:
        last = records[-1]
        standing = checkpoints.Standing(instance="a1", seq=last.seq, hash=last.hash, time=START)
        reason = checkpoints.statement(standing, key.sign(checkpoints.signed_bytes(standing)))
        fields = {"timestamp": audit.timestamp(START), "event": checkpoints.KIND, "username": "", "code": key.id}
        head = audit.Head(last.seq + 1, last.hash)
        return audit.seal(head, {**fields, "reason": reason}, version="1.0", instance="a1")[1]
