"""The composition root: what is built from settings, and what stops the start."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from twisted.application.service import IServiceMaker
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase, TestCase

from identree.app.statefiles import BadStateFile
from identree.service import Keeper, Options, _say_what_is_missing, build
from identree.settings.load import load, no_files
from tests.e2e.server import free_port


class Directory:
    """A state directory and the settings of a server that lives in it."""

    def __init__(self, case: Any) -> None:
        directory = TemporaryDirectory()
        case.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.port = free_port()
        self.environ = {
            "IDENTREE_LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "IDENTREE_EXTERNAL_URL": f"http://127.0.0.1:{self.port}",
            "IDENTREE_SHARED_SECRET": "service-shared-0123456789abcdef0",
            "IDENTREE_SESSION_SECRET": "service-session-0123456789abcdef",
            "IDENTREE_DATABASE_DSN": str(self.path / "identree.db"),
            "IDENTREE_HOST_REGISTRY_FILE": str(self.path / "hosts.json"),
            "IDENTREE_APPROVAL_POLICIES_FILE": str(self.path / "policies.json"),
            "IDENTREE_SESSION_STATE_FILE": str(self.path / "sessions.json"),
            "IDENTREE_AUDIT_LOG": f"file:{self.path / 'audit.jsonl'}",
            "IDENTREE_LDAP_ENABLED": "false",
            "IDENTREE_DEV_LOGIN": "true",
        }

    def build(self, **more: str) -> Any:
        return build(load({**self.environ, **more}, read=no_files), real_reactor, give_up=lambda problem: None)


class PluginTests(SynchronousTestCase):
    def test_found(self) -> None:
        """``twistd`` and ``twist`` find the plugin by its name."""
        self.assertIn("identree", [maker.tapname for maker in getPlugins(IServiceMaker)])  # type: ignore[attr-defined]


class OptionsTests(SynchronousTestCase):
    def test_mistakes(self) -> None:
        """All mistakes are one usage error, before anything runs."""
        with patch.dict(os.environ, {"IDENTREE_CHALLENGE_TTL": "soon"}, clear=True):
            refused = self.assertRaises(usage.UsageError, Options().parseOptions, [])
        self.assertIn("IDENTREE_CHALLENGE_TTL", str(refused))
        self.assertIn("IDENTREE_EXTERNAL_URL", str(refused))


class BadStateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Directory(self)

    def test_bad_policies(self) -> None:
        """Nor is a policy file that means something else than it says."""
        path = self.directory.path / "policies.json"
        path.write_text('{"policies":[{"name":"night","match_hosts":["*"],"allowed_hours":"25:00-26:00"}]}')
        path.chmod(0o600)
        self.assertIn(
            "night", str(self.assertRaises(BadStateFile, self.directory.build, IDENTREE_POLICY_SOURCE="file"))
        )

    def test_client_certificates_asked_for(self) -> None:
        """What this version cannot do is refused where it would be relied on."""
        problem = self.assertRaises(
            ValueError, self.directory.build, IDENTREE_MTLS_CA_CERT=str(self.directory.path / "ca.crt")
        )
        self.assertIn("IDENTREE_MTLS", str(problem))


class AbsentFeatureTests(SynchronousTestCase):
    def test_said_at_start(self) -> None:
        """Every configured feature that this version does not have is named; none when none is configured."""
        directory = Directory(self)
        for environ, count in (({"IDENTREE_API_KEYS": "k" * 32}, 1), ({}, 0)):
            lines: list[str] = []
            log = Logger(observer=lambda event, lines=lines: lines.append(formatEvent(event)))  # type: ignore[misc]
            _say_what_is_missing(load({**directory.environ, **environ}, read=no_files), log)
            self.assertEqual(len(lines), count, lines)


class RunTests(TestCase):
    async def test_bad_registry(self) -> None:
        """A host registry that cannot be understood stops the start; it is never an empty one."""
        directory = Directory(self)
        (directory.path / "hosts.json").write_text("{nonsense")
        (directory.path / "hosts.json").chmod(0o600)
        given_up: Deferred[str] = Deferred()
        root = build(load(directory.environ, read=no_files), real_reactor, give_up=given_up.callback)
        root.startService()
        self.assertIn("hosts.json", await given_up)
        await root.stopService()

    async def test_starts_and_stops(self) -> None:
        """It listens when it is ready, answers, and is gone when stopped; the state is for its owner only."""
        directory = Directory(self)
        server = directory.build()
        server.startService()
        await server.started
        status = await deferToThread(_status, directory.port)
        self.assertEqual(status, 200)
        await server.stopService()
        with self.assertRaises(OSError):
            await deferToThread(_status, directory.port)
        self.assertEqual((directory.path / "identree.db").stat().st_mode & 0o777, 0o600)
        self.assertEqual((directory.path / "audit.jsonl").stat().st_mode & 0o027, 0)

    async def test_stopped_at_once(self) -> None:
        """To be asked to stop before it is ready is no failure: nothing is said, and nobody is told to give up."""
        directory = Directory(self)
        told: list[str] = []
        server = build(load(directory.environ, read=no_files), real_reactor, give_up=told.append)
        server.startService()
        await server.stopService()
        self.assertEqual((told, self.flushLoggedErrors()), ([], []))

    async def test_no_room(self) -> None:
        """A state directory that cannot be written makes the server unwell, and the log names it."""
        directory = Directory(self)
        gone = directory.path / "gone"
        server = directory.build(IDENTREE_SESSION_STATE_FILE=str(gone / "sessions.json"))
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        server.startService()
        await server.started
        end = real_reactor.seconds() + 30  # type: ignore[attr-defined]
        lines: list[str] = []
        while not lines and real_reactor.seconds() < end:  # type: ignore[attr-defined]
            await deferToThread(_status, directory.port)
            lines = [line for event in events if "disk" in (line := formatEvent(event))]
        await server.stopService()
        self.assertEqual(
            lines,
            [f"health: disk is not_writable: the directory {gone} cannot be written: No such file or directory"],
        )

    async def test_no_database(self) -> None:
        """A database that cannot be opened is told, and nothing listens."""
        directory = Directory(self)
        told: Deferred[str] = Deferred()
        settings = load(
            {**directory.environ, "IDENTREE_DATABASE_DSN": str(directory.path / "none" / "identree.db")}, read=no_files
        )
        server = build(settings, real_reactor, give_up=told.callback)
        server.startService()
        self.assertIn("identree.db", await told)
        with self.assertRaises((OSError, ConnectionRefusedError)):
            await deferToThread(_status, directory.port)
        await server.stopService()


class KeeperTests(SynchronousTestCase):
    def test_a_failing_round_is_not_the_last(self) -> None:
        """A failure is logged, and the next round comes."""
        clock, rounds = Clock(), []

        async def work() -> None:
            rounds.append(clock.seconds())
            if len(rounds) == 1:
                raise OSError("not now")

        keeper = Keeper("test", 10, work, clock)
        keeper.startService()
        clock.advance(10)
        clock.advance(10)
        keeper.stopService()
        clock.advance(10)
        self.assertEqual(rounds, [10, 20])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


def _status(port: int) -> int:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()
