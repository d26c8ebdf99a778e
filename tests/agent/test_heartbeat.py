"""``heartbeat``: what is said, what is remembered, and what is done on the occasion."""

from __future__ import annotations

import json
import os
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from identree.agent import breakglass, heartbeat, journal, places
from identree.agent.config import Config
from identree.agent.heartbeat import BeatError, Heartbeat, Record, architecture, os_info
from identree.agent.watch import Watch
from identree.agent.wire import Client
from tests.agent.authority import Authority, SecureScriptedServer, server_context
from tests.agent.scripted import SECRET, Answer, Request, ScriptedServer

NOW = 1_800_000_000.0


class OsTests(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.first, self.second = (os.path.join(temporary.name, name) for name in ("etc", "usr"))

    def info(self, text: str | None = None, second: str | None = None) -> str:
        for path, content in ((self.first, text), (self.second, second)):
            if content is not None:
                Path(path).write_text(content)
        return os_info((self.first, self.second), "x86_64")

    def test_pretty(self) -> None:
        """The pretty name, unquoted, with the machine; comments are passed over."""
        self.assertEqual(
            self.info('# PRETTY_NAME="no"\nNAME=x\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'),
            "Debian GNU/Linux 12 (bookworm) (amd64)",
        )
        self.assertEqual(self.info("PRETTY_NAME='Rocky Linux 9'\n"), "Rocky Linux 9 (amd64)")

    def test_parts(self) -> None:
        """Without it name and version, or the name."""
        self.assertEqual(self.info("NAME=Arch\nVERSION_ID=7\n"), "Arch 7 (amd64)")
        self.assertEqual(self.info("NAME=Arch\n"), "Arch (amd64)")

    def test_second_place(self) -> None:
        """The other place, when the first is missing; and a system that does not say."""
        self.assertEqual(self.info(None, "PRETTY_NAME=Fedora\n"), "Fedora (amd64)")
        os.unlink(self.second)
        self.assertEqual(self.info(), "linux/amd64")

    def test_long_and_dirty(self) -> None:
        """What is too long or moves cursors is cut and cleaned."""
        self.assertEqual(self.info("PRETTY_NAME=A\x1b[2JB\n"), "A[2JB (amd64)")
        self.assertLess(len(self.info(f"PRETTY_NAME={'x' * 9000}\n")), 220)

    def test_machines(self) -> None:
        """The names that servers know."""
        for machine, name in (
            ("aarch64", "arm64"),
            ("i686", "386"),
            ("armv7l", "arm"),
            ("armv6l", "arm"),
            ("ppc64le", "ppc64le"),
            ("s390x", "s390x"),
            ("riscv64", "riscv64"),
            ("loongarch64", "loongarch64"),
        ):
            self.assertEqual(architecture(machine), name)


class BeatCase(unittest.TestCase):
    """:ivar reply: to the heartbeat. :ivar rotated: what the rotation was asked for."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.where = places.Places(run=str(self.root / "run"), state=str(self.root / "state"))
        (self.root / "run").mkdir()
        self.hash = self.root / "hash"
        self.hash.write_text("x")
        os.utime(self.hash, (NOW, NOW))
        self.reply = Answer(204, b"")
        self.rotated: list[str] = []
        patch = mock.patch.object(journal, "_send", lambda priority, text: None)
        patch.start()
        self.addCleanup(patch.stop)
        self.server = self.serve()
        self.addCleanup(self.server.stop)

    def serve(self) -> ScriptedServer:
        return ScriptedServer(self.answer)

    def answer(self, request: Request) -> Answer:
        return self.reply if request.path == "/api/agent/heartbeat" else Answer(200, {"status": "ok"})

    def config(self, **values: str) -> Config:
        return Config(
            "client.conf",
            {
                "IDENTREE_SERVER_URL": self.server.url,
                "IDENTREE_SHARED_SECRET": SECRET,
                "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
                "IDENTREE_HOSTNAME": "Web01.example.com.",
                "IDENTREE_BREAKGLASS_FILE": str(self.hash),
                **values,
            },
        )

    def beat(self, **values: str) -> None:
        config = self.config(**values)
        client = Client(config, Watch(parent=False))
        self.addCleanup(client.close)
        Heartbeat(config, client, now=lambda: NOW, where=self.where, rotate=self.rotated.append).run()

    def record(self) -> Record:
        return Record.read(self.where.state)


class BeatTests(BeatCase):
    def test_said(self) -> None:
        """Name, version and system, with the secret; both answers that servers give are good."""
        for reply in (Answer(204, b""), Answer(200, {}), Answer(200, b"ok")):
            self.reply = reply
            self.beat()
        request = self.server.requests[0]
        self.assertEqual((request.method, request.path), ("POST", "/api/agent/heartbeat"))
        self.assertEqual(set(request.json), {"hostname", "version", "os_info"})
        self.assertEqual(request.json["hostname"], "web01.example.com")
        self.assertEqual(request.headers["x-shared-secret"], SECRET)
        self.assertLess(len(request.body), 4096)

    def test_remembered(self) -> None:
        """When it was taken, and how the clocks stand."""
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(NOW - 30))
        self.reply = Answer(204, b"", {"Date": date})
        self.beat()
        record = self.record()
        self.assertEqual((record.heard, record.tried, record.problem, record.ahead), (NOW, NOW, "", 30))
        self.assertEqual(os.stat(os.path.join(self.where.state, heartbeat.RECORD)).st_mode & 0o777, 0o600)

    def test_refused(self) -> None:
        """A refusal names the remedy, and is remembered beside the last good one."""
        self.beat()
        for status, word in ((401, "IDENTREE_SHARED_SECRET"), (500, "HTTP 500"), (302, "HTTP 302"), (404, "HTTP 404")):
            self.reply = Answer(status, {})
            with self.assertRaises(BeatError) as caught:
                self.beat()
            self.assertIn(word, str(caught.exception))
            self.assertEqual(self.record().heard, NOW)
            self.assertIn(f"HTTP {status}", self.record().problem)

    def test_nobody(self) -> None:
        """Nobody there: said, remembered, and no report is tried."""
        self.server.stop()
        with self.assertRaises(BeatError):
            self.beat()
        self.assertNotEqual(self.record().problem, "")

    def test_reports(self) -> None:
        """Uses of the break-glass password that waited are reported."""
        breakglass.record_use("web01", "alice", int(NOW), self.where)
        self.beat()
        [report] = [each for each in self.server.requests if each.path == "/api/breakglass/report"]
        self.assertEqual(report.json["username"], "alice")
        self.assertEqual(breakglass.pending_reports(self.where), [])

    def test_unwritable(self) -> None:
        """That it cannot be remembered is no failure."""
        Path(self.where.state).write_text("in the way")
        self.beat()
        self.assertEqual(self.record().heard, 0)

    def test_planted_record(self) -> None:
        """A record that others can write, a link, and nonsense count for nothing."""
        self.beat()
        path = Path(self.where.state) / heartbeat.RECORD
        good = path.read_text()
        path.chmod(0o666)
        self.assertEqual(self.record().heard, 0)
        path.chmod(0o600)
        for text in ("", "[]", "{}", json.dumps({**json.loads(good), "heard": "x"}), "[" * 4000):
            path.write_text(text)
            self.assertEqual(self.record().heard, 0)
        path.rename(path.parent / "real")
        path.symlink_to(path.parent / "real")
        self.assertEqual(self.record().heard, 0)

    def test_rotation_without_tls(self) -> None:
        """Over plain HTTP anybody could ask for a new password: it does not count."""
        self.reply = Answer(200, {"rotate_breakglass_before": "2030-01-01T00:00:00Z"})
        self.beat()
        self.assertEqual(self.rotated, [])


class RotationTests(BeatCase):
    WANTED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + 3600))

    def serve(self) -> ScriptedServer:
        authority = Authority(self.root)
        self.authority = authority
        context = server_context(authority.issue("localhost", "localhost"), clients=authority.file, optional=True)
        return SecureScriptedServer(self.answer, context)

    def config(self, **values: str) -> Config:
        return super().config(**{"IDENTREE_CA_CERT": self.authority.file, **values})

    def test_asked(self) -> None:
        """A request for a new password is answered with one."""
        self.reply = Answer(200, {"rotate_breakglass_before": self.WANTED})
        self.beat()
        self.assertEqual(self.rotated, [self.WANTED])

    def test_not_due(self) -> None:
        """A password that is younger than the request stays; nonsense is nothing; break-glass may be off."""
        for value in ("2020-01-01T00:00:00Z", "soon", 5, None):
            self.reply = Answer(200, {"rotate_breakglass_before": value})
            self.beat()
        self.reply = Answer(200, {"rotate_breakglass_before": self.WANTED})
        self.beat(IDENTREE_BREAKGLASS_ENABLED="false")
        self.assertEqual(self.rotated, [])

    def test_certificate(self) -> None:
        """A host without secret shows its certificate."""
        pair = self.authority.issue("web01", "web01", client=True)
        self.beat(IDENTREE_SHARED_SECRET="", IDENTREE_CLIENT_CERT=pair.certificate, IDENTREE_CLIENT_KEY=pair.key)
        assert isinstance(self.server, SecureScriptedServer)
        self.assertEqual(self.server.peers, ["web01"])
        self.assertNotIn("x-shared-secret", self.server.requests[0].headers)
