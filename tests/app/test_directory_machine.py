"""Whatever happens, in whatever order: numbers never move, change numbers never fall, replicas agree."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.ports import SourceUnavailable
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.directory.source import Source
from tests.app.directoryworld import Replica, ScriptedSource, group, started, user
from tests.fakes import memory_store

NAMES = st.sampled_from([f"p{n}" for n in range(8)])


class _Failing:
    """A database call that fails, before or after it has done its work, a given number of calls from now."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self.after: int | None = None
        self.done_first = False

    async def __call__(self, *arguments: Any) -> Any:
        fails = False
        if self.after is not None:
            fails = self.after == 0
            self.after = None if fails else self.after - 1
        if fails and not self.done_first:
            raise StorageUnavailable("unreachable")
        result = await self.work(*arguments)
        if fails:
            raise StorageUnavailable("unreachable")
        return result


class DirectoryMachine(RuleBasedStateMachine):
    """Two replicas over one database; everybody else does what he likes."""

    @initialize()
    def start(self) -> None:
        self.temporary = TemporaryDirectory()
        self.clock = Clock()
        self.store = memory_store(self.clock)
        self.failing: dict[str, _Failing] = {}
        for name in ("add_posix_ids", "publish_directory", "save_directory_pieces", "confirm_directory"):
            self.failing[name] = _Failing(getattr(self.store, name))
            setattr(self.store, name, self.failing[name])
        self.people: dict[str, str] = {"p0": ""}
        self.ever: dict[tuple[str, str], int] = {}
        self.usn = 0
        self.source = ScriptedSource(Source())
        self._tell()
        self.replicas = [self._replica(0), self._replica(1)]

    def teardown(self) -> None:
        for replica in getattr(self, "replicas", ()):
            replica.refresh.stopService()
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    def _replica(self, number: int) -> Replica:
        path = Path(self.temporary.name) / str(number)
        path.mkdir(exist_ok=True)
        return Replica(self.store, self.source, self.clock, path, max_shrink_percent=100).start()

    def _tell(self) -> None:
        users = tuple(user(name, email=email) for name, email in self.people.items())
        self.source.answer = Source(users=users, groups=(group("ops", *list(self.people)[:3]),))

    @rule(name=NAMES, email=st.sampled_from(["", "a@x", "b@x"]))
    def comes(self, name: str, email: str) -> None:
        self.people[name] = email
        self._tell()

    @rule(name=NAMES)
    def goes(self, name: str) -> None:
        self.people.pop(name, None)
        self._tell()

    @rule()
    def down(self) -> None:
        self.source.answer = SourceUnavailable("down")

    @rule(which=st.integers(0, 1))
    def refreshes(self, which: int) -> None:
        started(self.replicas[which].refresh.now())

    @rule(which=st.integers(0, 1))
    def hears(self, which: int) -> None:
        self.replicas[which].refresh._told(Live(event="directory_published", username=""))

    @rule(seconds=st.sampled_from([0, 1, 60, 300]))
    def passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(which=st.integers(0, 1))
    def restarts(self, which: int) -> None:
        self.replicas[which].refresh.stopService()
        self.replicas[which] = self._replica(which)

    @rule(which=st.integers(0, 1), step=st.integers(-5000, 5000))
    def clock_steps(self, which: int, step: int) -> None:
        self.replicas[which].wall_offset += step

    @rule(
        name=st.sampled_from(["add_posix_ids", "publish_directory", "save_directory_pieces", "confirm_directory"]),
        after=st.integers(0, 2),
        done_first=st.booleans(),
    )
    def database_fails(self, name: str, after: int, done_first: bool) -> None:
        self.failing[name].after, self.failing[name].done_first = after, done_first

    @rule()
    def agree(self) -> None:
        """When everything works again, both serve the same to the last byte."""
        for failing in self.failing.values():
            failing.after = None
        self._tell()
        for replica in self.replicas:
            started(replica.refresh.now())
        self.hears(0)
        self.hears(1)
        first, second = self.replicas
        assert first.stamps == second.stamps
        assert first.numbers == second.numbers
        assert set(first.numbers) == set(self.people)
        assert first.directory.served is not None and second.directory.served is not None
        assert first.directory.served.built.drafts == second.directory.served.built.drafts

    @invariant()
    def numbers_stay(self) -> None:
        rows = self.store.connection.execute("SELECT kind, source_id, number FROM posix_ids").fetchall()
        now = {(kind, id): number for kind, id, number in rows}
        assert self.ever.items() <= now.items()
        self.ever = now
        for replica in self.replicas:
            served = replica.directory.served
            if served is not None and served.numbers is not None:
                for person in served.source.users:
                    assert now["uid", person.id] == served.numbers.uids[person.id]

    @invariant()
    def change_numbers_rise(self) -> None:
        state = self.store.connection.execute("SELECT usn FROM directory_state").fetchall()
        if state:
            assert state[0][0] >= self.usn
            self.usn = state[0][0]
            for replica in self.replicas:
                if replica.directory.snapshot is not None:
                    assert replica.directory.snapshot.usn <= self.usn


class DirectoryMachineTests(SynchronousTestCase):
    def test_machine(self) -> None:
        """The machine finds no way to break a promise."""
        run_state_machine_as_test(
            DirectoryMachine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
        )
