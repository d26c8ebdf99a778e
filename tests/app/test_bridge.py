"""Bridge mode: the rules file is the directory."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.bridge import PREFIX, Bridge
from identree.app.directory import Directory, Mode
from identree.app.metrics import Metrics
from identree.app.publication import Publication
from identree.app.statefiles import BadStateFile
from identree.core.errors import StorageUnavailable
from identree.directory.layout import Layout
from identree.directory.rulesfile import dump
from identree.directory.sudo import SudoRule
from tests.app.directoryworld import BASE, START, inline, started
from tests.fakes import memory_store


def rule(group: str, commands: str = "ALL") -> SudoRule:
    return SudoRule(group=group, commands=commands)


class BridgeTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.clock = Clock()
        self.store = memory_store(self.clock)
        self.addCleanup(lambda: self.successResultOf(started(self.store.stop())))
        self.path = self.root / "sudorules.json"
        self.write([rule("ops"), rule("dev")])

    def write(self, rules: Sequence[SudoRule], path: Path | None = None) -> None:
        path = path or self.path
        fresh = path.with_suffix(".new")
        fresh.write_bytes(dump(rules))
        fresh.chmod(0o600)
        fresh.rename(path)

    def bridge(self, path: Path | None = None, layout: Layout | None = None) -> tuple[Bridge, Directory]:
        directory = Directory(
            Mode.BRIDGE,
            Metrics(CollectorRegistry(), "test"),
            interval_seconds=300,
            now=lambda: START,
            monotonic=self.clock.seconds,
        )
        publication = Publication(
            self.store, self.clock, now=lambda: START, monotonic=self.clock.seconds, in_thread=inline
        )
        bridge = Bridge(
            str(path or self.path),
            self.store,
            publication,
            directory,
            lambda: layout or Layout(base_dn=BASE),
            clock=self.clock,
            now=lambda: START,
            monotonic=self.clock.seconds,
            in_thread=inline,
        )
        self.addCleanup(lambda: bridge.running and bridge.stopService())
        return bridge, directory

    def started(self, *arguments: Any) -> tuple[Bridge, Directory]:
        bridge, directory = self.bridge(*arguments)
        bridge.startService()
        return bridge, directory

    def roles(self, directory: Directory) -> dict[str, int]:
        """Names of what is served, with change numbers."""
        assert directory.snapshot is not None
        return {
            entry.draft.dn.partition(",")[0]: entry.usn
            for entry in directory.snapshot.entries
            if entry.draft.dn.startswith("cn=")
        }

    def test_served(self) -> None:
        """The rules are served at the start; they have no age and are never stale."""
        _, directory = self.started()
        self.assertEqual(list(self.roles(directory)), ["cn=ops", "cn=dev"])
        self.clock.advance(100_000)
        self.assertEqual((directory.health(), directory.age_seconds(), directory.status().roles), ("ok", None, 2))

    def test_no_file(self) -> None:
        """No file is no rules, and a directory nevertheless."""
        self.path.unlink()
        _, directory = self.started()
        self.assertEqual((self.roles(directory), directory.ready), ({}, True))

    def test_broken_at_start(self) -> None:
        """A file that is broken stops the start."""
        self.path.write_text("[{]")
        self.assertRaises(BadStateFile, self.bridge)

    def test_followed(self) -> None:
        """A changed file is served within seconds; only the changed rule gets a new change number."""
        _, directory = self.started()
        before = self.roles(directory)
        self.write([rule("ops"), rule("dev", "/usr/bin/apt")])
        self.clock.advance(5)
        after = self.roles(directory)
        self.assertEqual(after["cn=ops"], before["cn=ops"])
        self.assertGreater(after["cn=dev"], max(before.values()))

    def test_broken_later(self) -> None:
        """A file that breaks leaves the last good rules in force."""
        _, directory = self.started()
        before = self.roles(directory)
        self.path.write_text("[{]")
        self.clock.advance(5)
        self.assertEqual(self.roles(directory), before)

    def test_restart(self) -> None:
        """Change numbers survive a restart."""
        bridge, directory = self.started()
        before = self.roles(directory)
        stopping = bridge.stopService()
        assert stopping is not None
        self.successResultOf(stopping)
        self.assertEqual(self.roles(self.started()[1]), before)

    def test_write(self) -> None:
        """A written rule is in the file, for its owner's eyes only, and served at once."""
        bridge, directory = self.started()
        self.successResultOf(started(bridge.write([rule("ops"), rule("web")])))
        self.assertEqual(list(self.roles(directory)), ["cn=ops", "cn=web"])
        self.assertEqual(self.path.read_bytes(), dump([rule("ops"), rule("web")]))
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(os.listdir(self.root), ["sudorules.json"])
        self.assertEqual(self.successResultOf(started(bridge.read())), (rule("ops"), rule("web")))

    def test_write_makes_directory(self) -> None:
        """The directory is made when there is none."""
        bridge, _ = self.started(self.root / "new" / "rules.json")
        self.successResultOf(started(bridge.write([rule("ops")])))
        self.assertEqual((self.root / "new").stat().st_mode & 0o777, 0o700)

    def test_unwritable(self) -> None:
        """A write that fails changes nothing: not the file, not what is served."""
        bridge, directory = self.started()
        before = self.roles(directory)
        self.path.unlink()
        self.path.mkdir()
        self.failureResultOf(started(bridge.write([rule("web")])), OSError)
        self.assertEqual((self.roles(directory), os.listdir(self.root)), (before, ["sudorules.json"]))

    def test_read_broken(self) -> None:
        """Whoever wants to edit a file that is broken is told so."""
        bridge, _ = self.started()
        self.path.write_text("[{]")
        self.failureResultOf(started(bridge.read()), BadStateFile)

    def test_read_lost(self) -> None:
        """A file that vanished is not one without rules: whoever adds one must not lose the others."""
        bridge, _ = self.started()
        self.path.unlink()
        failure = self.failureResultOf(started(bridge.read()), BadStateFile)
        self.assertIn("is gone", str(failure.value))

    def test_leftovers(self) -> None:
        """What a writer left behind is removed at the start."""
        leftover = self.root / f"{PREFIX}x"
        leftover.touch()
        os.utime(leftover, (1, 1))
        self.bridge()
        self.assertFalse(leftover.exists())

    def test_replicas(self) -> None:
        """Replicas with the same rules show the same change numbers."""
        _, a = self.started()
        b_path = self.root / "b.json"
        self.write([rule("ops"), rule("dev")], b_path)
        _, b = self.started(b_path)
        self.assertEqual(self.roles(a), self.roles(b))
        for path in (self.path, b_path):
            self.write([rule("ops", "/bin/true"), rule("dev")], path)
        self.clock.advance(5)
        self.assertEqual(self.roles(a), self.roles(b))

    def test_replicas_differ(self) -> None:
        """Replicas with different rules do not publish in turns for ever."""
        self.started()
        b_path = self.root / "b.json"
        self.write([rule("web")], b_path)
        self.started(b_path)
        self.clock.pump([5] * 3)
        version = self.successResultOf(started(self.store.directory())).version
        self.clock.pump([5] * 10)
        self.assertEqual(self.successResultOf(started(self.store.directory())).version, version)

    def test_database_away(self) -> None:
        """Rules that cannot be stamped wait for the database, and are served when it is back."""
        _, directory = self.started()
        publish = self.store.publish_directory

        async def broken(*arguments: Any) -> None:
            raise StorageUnavailable("locked")

        self.store.publish_directory = broken  # type: ignore[method-assign, assignment]
        self.write([rule("web")])
        self.clock.advance(5)
        self.assertEqual(list(self.roles(directory)), ["cn=ops", "cn=dev"])
        self.store.publish_directory = publish  # type: ignore[method-assign]
        self.clock.advance(5)
        self.assertEqual(list(self.roles(directory)), ["cn=web"])
