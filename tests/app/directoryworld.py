"""A replica of the directory on a store in memory: what tests of its services stand on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from identree.app.directory import Directory, Mode
from identree.app.metrics import Metrics
from identree.app.posixids import PosixIds
from identree.app.publication import Publication
from identree.app.refresh import Refresh
from identree.app.uidmapfile import UidMapFile
from identree.directory.layout import Layout
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.storage.interface import Store

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
BASE = "dc=example,dc=com"
INTERVAL = 300.0


def user(name: str, **fields: Any) -> SourceUser:
    return SourceUser(id=f"id-{name}", username=name, first_name=name.title(), **fields)


def group(name: str, *members: str, **fields: Any) -> SourceGroup:
    return SourceGroup(id=f"id-{name}", name=name, member_ids=tuple(f"id-{member}" for member in members), **fields)


def people(*names: str, groups: tuple[SourceGroup, ...] = ()) -> Source:
    return Source(users=tuple(map(user, names)), groups=groups)


def inline(function: Callable[[], object]) -> Deferred[object]:
    return execute(function)


class ScriptedSource:
    """
    Answers what it is told to.

    :ivar answer: the next answers: a source, an exception, or a Deferred that a test fires itself.
    :ivar asked: how often.
    """

    def __init__(self, answer: Source | Exception | Deferred[Source]) -> None:
        self.answer = answer
        self.asked = 0

    async def fetch(self) -> Source:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, Deferred):
            return await self.answer
        return self.answer


class Replica:
    """
    :param directory_path: where this replica keeps its files.
    :ivar ids: fails when ``broken`` says so.
    """

    def __init__(
        self,
        store: Store,
        source: ScriptedSource,
        clock: Clock,
        directory_path: Path,
        *,
        max_shrink_percent: int = 30,
        uid_base: int = 200_000,
        layout: Layout | None = None,
    ) -> None:
        self.clock, self.store, self.source = clock, store, source
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, "test")
        self.layout = layout or Layout(base_dn=BASE)
        self.wall_offset = 0.0
        self.path = directory_path / "uidmap.json"
        self.file = UidMapFile(
            str(self.path), uid_base=uid_base, gid_base=uid_base, now_unix=self.now().timestamp(), in_thread=inline
        )
        self.directory = Directory(
            Mode.FULL, self.metrics, interval_seconds=INTERVAL, now=self.now, monotonic=clock.seconds
        )
        self.ids = PosixIds(store, self.file, clock, clock.seconds)
        self.publication = Publication(store, clock, now=self.now, monotonic=clock.seconds, in_thread=inline)
        self.refresh = Refresh(
            source,
            store,
            self.ids,
            self.publication,
            self.directory,
            lambda: self.layout,
            self.metrics,
            interval_seconds=INTERVAL,
            max_shrink_percent=max_shrink_percent,
            clock=clock,
            now=self.now,
            monotonic=clock.seconds,
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock.seconds() + self.wall_offset)

    def start(self) -> Replica:
        self.refresh.startService()
        return self

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    @property
    def names(self) -> list[str]:
        """Of the people who are served."""
        served = self.directory.served
        if served is None:
            return []
        return [
            dict(draft.attributes)["uid"][0].decode()
            for draft in served.built.drafts
            if draft.key.startswith("person:")
        ]

    @property
    def numbers(self) -> dict[str, int]:
        """By user name."""
        served = self.directory.served
        assert served is not None and served.numbers is not None
        return {person.username: served.numbers.uids[person.id] for person in served.source.users}

    @property
    def stamps(self) -> dict[str, tuple[int, int]]:
        """What hosts see of every entry's history, by DN."""
        snapshot = self.directory.snapshot
        assert snapshot is not None
        return {entry.draft.dn: (entry.usn, entry.created) for entry in snapshot.entries}


def started(work: Awaitable[Any]) -> Deferred[Any]:
    async def run() -> Any:
        return await work

    return Deferred.fromCoroutine(run())
