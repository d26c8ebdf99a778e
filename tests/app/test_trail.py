"""Records of what strangers cause: bounded, counted, and never in anybody's way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.trail import (
    COLUMN_CHARACTERS,
    FROM_ALL,
    FROM_ONE_ADDRESS,
    MOST_OUTSTANDING,
    WINDOW_SECONDS,
    Trail,
)
from identree.core.errors import StorageUnavailable
from identree.core.events import ApprovalRefused, AuthenticationFailed, Event
from tests.app.world import START, now_result
from tests.fakes import memory_store


class HeldStore:
    """Takes records, and says that they are written when it is told to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.writing: list[Deferred[None]] = []

    async def record(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        done: Deferred[None] = Deferred()
        self.writing.append(done)
        await done

    def written(self) -> None:
        writing, self.writing = self.writing, []
        for done in writing:
            done.callback(None)


class TrailCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = memory_store()
        self.trail = self.made(self.store)
        self.lines: list[str] = []
        self.patch(Trail, "_log", Logger(observer=lambda event: self.lines.append(formatEvent(event))))

    def made(self, store: Any) -> Trail:
        return Trail(
            store=store, now=lambda: START + timedelta(seconds=self.clock.seconds()), monotonic=self.clock.seconds
        )

    def wrong(self, times: int = 1, address: str = "192.0.2.1", kind: type[Event] = AuthenticationFailed) -> None:
        for _ in range(times):
            self.trail.note(kind, reason="wrong", remote_addr=address)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(record.plain) for record in self.store.log.records]

    @property
    def reasons(self) -> list[str]:
        return [record["reason"] for record in self.records]


class LimitTests(TrailCase):
    def test_recorded(self) -> None:
        """All columns, and the time of it."""
        self.clock.advance(7)
        self.trail.note(
            ApprovalRefused,
            reason="a rule",
            remote_addr="192.0.2.1",
            username="alice",
            hostname="web01",
            code="ABCDEF-123456",
            actor="bob",
        )
        [record] = self.records
        columns = {
            "timestamp": "2026-01-02T03:04:12Z",
            "event": "approval_refused",
            "username": "alice",
            "hostname": "web01",
            "code": "ABCDEF-123456",
            "actor": "bob",
            "reason": "a rule",
            "remote_addr": "192.0.2.1",
        }
        self.assertEqual({name: record.get(name) for name in columns}, columns)

    def test_one_address(self) -> None:
        """An address gets so many records in a minute; others get theirs; afterwards it gets some again."""
        self.wrong(FROM_ONE_ADDRESS + 5)
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS)
        self.wrong(address="192.0.2.2")
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS + 1)
        self.clock.advance(WINDOW_SECONDS)
        self.wrong()
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS + 2)

    def test_network(self) -> None:
        """Of IPv6 the /64 network counts as one address."""
        for i in range(FROM_ONE_ADDRESS + 5):
            self.wrong(address=f"2001:db8::{i:x}")
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS)

    def test_all(self) -> None:
        """However many addresses there are, one kind gets so many records in a minute."""
        for i in range(FROM_ALL + 50):
            self.wrong(address=f"198.51.100.{i}")
        self.assertEqual(len(self.records), FROM_ALL)

    def test_kinds(self) -> None:
        """A flood of one kind leaves the others their room."""
        for i in range(FROM_ALL + 50):
            self.wrong(address=f"198.51.100.{i}")
        self.wrong(kind=ApprovalRefused, address="198.51.100.1")
        self.assertEqual(self.records[-1]["event"], "approval_refused")

    def test_long_texts(self) -> None:
        """A stranger's texts are cut."""
        self.trail.note(AuthenticationFailed, reason="wrong", remote_addr="192.0.2.1", hostname="x" * 10_000)
        self.assertEqual(self.records[0]["hostname"], "x" * COLUMN_CHARACTERS + "...")


class SurplusTests(TrailCase):
    def flood(self) -> None:
        """Five more than there are records for, in the 3rd second."""
        self.clock.advance(3)
        self.wrong(FROM_ONE_ADDRESS + 5)

    def test_told_by_the_next(self) -> None:
        """What got no record is told with the next one of the kind, once, with the time of the first."""
        self.flood()
        self.wrong(address="192.0.2.2")
        self.wrong(address="192.0.2.3")
        self.assertEqual(self.reasons[-2:], ["wrong; and 5 more of this kind since 2026-01-02T03:04:08Z", "wrong"])

    def test_not_by_another_kind(self) -> None:
        """Another kind says nothing about it."""
        self.flood()
        self.wrong(kind=ApprovalRefused)
        self.assertEqual(self.reasons[-1], "wrong")

    def test_summary(self) -> None:
        """When nothing follows it is told on its own after a minute, once."""
        self.flood()
        now_result(self.trail.summarise())
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS)
        self.clock.advance(WINDOW_SECONDS)
        now_result(self.trail.summarise())
        now_result(self.trail.summarise())
        self.assertEqual(len(self.records), FROM_ONE_ADDRESS + 1)
        last = self.records[-1]
        self.assertEqual((last["event"], last["username"]), ("authentication_failed", ""))
        self.assertEqual(last["reason"], "5 more of this kind since 2026-01-02T03:04:08Z, not recorded one by one")

    def test_before_the_end(self) -> None:
        """Before the server stops everything is told."""
        self.flood()
        now_result(self.trail.summarise(timedelta(0)))
        self.assertIn("5 more", self.reasons[-1])


class SlowStoreTests(TrailCase):
    def setUp(self) -> None:
        super().setUp()
        self.held = HeldStore()
        self.trail = self.made(self.held)

    def test_bounded(self) -> None:
        """While the database is slow only so many wait there; the others are counted."""
        for i in range(MOST_OUTSTANDING + 7):
            self.wrong(address=f"198.51.100.{i}")
        self.assertEqual(len(self.held.events), MOST_OUTSTANDING)
        self.held.written()
        self.wrong()
        self.assertIn("and 7 more", self.held.events[-1].reason)

    def test_summary_bounded(self) -> None:
        """A summary does not add to them."""
        for i in range(MOST_OUTSTANDING + 7):
            self.wrong(address=f"198.51.100.{i}")
        now_result(self.trail.summarise(timedelta(0)))
        self.assertEqual(len(self.held.events), MOST_OUTSTANDING)


class FailingStoreTests(TrailCase):
    def setUp(self) -> None:
        super().setUp()
        self.working = self.store.record

    async def broken(self, events: Sequence[Event]) -> None:
        raise StorageUnavailable("full", "the audit log cannot be written")

    def test_counted(self) -> None:
        """What cannot be recorded is told later, with what it was to tell itself; the caller hears nothing."""
        self.wrong(FROM_ONE_ADDRESS + 2)
        self.store.record = self.broken  # type: ignore[method-assign]
        self.wrong(address="192.0.2.2")
        self.store.record = self.working  # type: ignore[method-assign]
        self.wrong(address="192.0.2.3")
        self.assertIn("and 3 more", self.reasons[-1])

    def test_said_once(self) -> None:
        """One line, until it has worked again."""
        self.store.record = self.broken  # type: ignore[method-assign]
        self.wrong(3)
        self.assertEqual(len(self.lines), 1)
        self.assertIn("authentication_failed could not be recorded: full", self.lines[0])
        self.store.record = self.working  # type: ignore[method-assign]
        self.wrong()
        self.store.record = self.broken  # type: ignore[method-assign]
        self.wrong()
        self.assertEqual(len(self.lines), 2)
