"""The directory as others see it: age, health, status."""

from datetime import timedelta

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.directory import Directory, Loss, Mode, Refusal, Served
from identree.app.metrics import Metrics
from identree.directory.build import build
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source
from identree.directory.stamps import restamp
from tests.app.directoryworld import BASE, START, group, people, user
from tests.directory.test_archive import end


def served(source: Source) -> Served:
    numbers = Numbers(
        uids={person.id: 1000 + n for n, person in enumerate(source.users)},
        gids={one: 2000 + n for n, one in enumerate([*(g.id for g in source.groups), *(u.id for u in source.users)])},
    )
    layout = Layout(base_dn=BASE)
    built = end(build(source, numbers, layout))
    stamps = end(restamp(built.drafts, {}, 0, 1_800_000_000)).stamps
    snapshot = end(Snapshot.build(BASE, built.drafts, stamps))
    return Served(snapshot=snapshot, built=built, layout=layout, version=1, source=source, numbers=numbers)


class DirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = START
        self.registry = CollectorRegistry()
        self.directory = self.made(Mode.FULL)

    def made(self, mode: Mode) -> Directory:
        metrics = Metrics(CollectorRegistry() if mode is Mode.BRIDGE else self.registry, "test")
        return Directory(mode, metrics, interval_seconds=300, now=lambda: self.wall, monotonic=self.clock.seconds)

    def test_empty(self) -> None:
        """Before the first snapshot there is nothing, and that is not well, unless there is nothing to ask."""
        status = self.directory.status()
        self.assertEqual((status.ready, status.health, status.age_seconds), (False, "stale", None))
        self.assertEqual(self.made(Mode.BRIDGE).health(), "ok")

    def test_counts(self) -> None:
        """What is served and what is not is counted."""
        self.directory.swap(served(people("alice", "root", "bob", groups=(group("ops", "alice"), group("wheel")))))
        status = self.directory.status()
        self.assertEqual((status.people, status.groups, status.roles), (2, 1, 0))
        self.assertEqual(sorted(item.name for item in status.withheld), ["root", "wheel"])
        value = self.registry.get_sample_value
        self.assertEqual(value("identree_directory_withheld", {"kind": "person"}), 1)
        self.assertEqual(value("identree_directory_entries", {"kind": "group"}), 1)

    def test_clock_step(self) -> None:
        """The age follows the clock that does not step."""
        self.directory.swap(served(people("alice")))
        self.directory.confirmed(self.wall - timedelta(seconds=10))
        self.wall += timedelta(hours=5)
        self.clock.advance(20)
        self.assertEqual(self.directory.age_seconds(), 30)
        self.wall -= timedelta(hours=10)
        self.assertEqual(self.directory.age_seconds(), 30)

    def test_future(self) -> None:
        """A confirmation from the future, by another's clock, is one of now."""
        self.directory.swap(served(people("alice")))
        self.directory.confirmed(self.wall + timedelta(hours=1))
        self.assertEqual(self.directory.age_seconds(), 0)

    def test_boundary(self) -> None:
        """Stale begins after one and a half intervals."""
        self.directory.swap(served(people("alice")))
        self.directory.confirmed(self.wall)
        self.clock.advance(450)
        self.assertEqual(self.directory.health(), "ok")
        self.clock.advance(0.1)
        self.assertEqual(self.directory.health(), "stale")

    def test_trouble(self) -> None:
        """A failure is known with its time until the next success; a refusal, being an answer, ends a failure."""
        self.directory.failed("down")
        trouble = self.directory.status().trouble
        assert trouble is not None
        self.assertEqual((trouble.at, trouble.reason), (self.wall, "down"))
        refusal = Refusal(at=self.wall, losses=(Loss(what="people", before=9, lost=5),))
        self.directory.refused(refusal)
        status = self.directory.status()
        self.assertEqual((status.trouble, status.refusal, str(refusal)), (None, refusal, "5 of 9 people would vanish"))
        self.directory.succeeded()
        self.assertIsNone(self.directory.status().refusal)

    def test_same_names(self) -> None:
        """Of two with one name one is served and the other one is named as withheld."""
        self.directory.swap(served(Source(users=(user("alice"), user("Alice")))))
        self.assertEqual([item.source_id for item in self.directory.status().withheld], ["id-Alice"])
