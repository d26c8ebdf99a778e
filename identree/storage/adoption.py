"""
Chains without a writer. A replica that is gone for good leaves events that its sinks have not got yet; a living one
takes them over. Who says nothing for :data:`GONE` is gone; a mistake repeats records and loses none.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from twisted.internet.defer import Deferred

from identree.core.audit import Sealed
from identree.storage import outbox
from identree.storage.outbox import Outbox, Publisher
from identree.storage.script import Do, Driver, Script
from identree.storage.times import seconds

# Every process says this often that it runs; one that has not for so long is gone.
ALIVE_SECONDS = 30.0
GONE = timedelta(minutes=5)
# Chains looked after at a time; the others wait.
MOST_ADOPTED = 4

_ALIVE = (
    "INSERT INTO chain_writers (instance, seen_at) VALUES (:instance, :now) "
    "ON CONFLICT (instance) DO UPDATE SET seen_at = excluded.seen_at, adopted_by = '', adopted_at = 0"
)
# One statement, so that of several who want a chain one gets it.
_ADOPT = """
UPDATE chain_writers SET adopted_by = :instance, adopted_at = :now WHERE instance IN (
    SELECT w.instance FROM chain_writers w
    WHERE w.instance <> :instance AND w.seen_at < :before
    AND (w.adopted_by = :instance OR w.adopted_at < :before)
    AND EXISTS (SELECT 1 FROM outbox o WHERE o.instance = w.instance)
    ORDER BY w.adopted_at DESC, w.instance LIMIT :limit
) AND (adopted_by = :instance OR adopted_at < :before) RETURNING instance
""".strip()


_DISOWN = "DELETE FROM chain_writers WHERE instance = :orphan AND adopted_by = :instance"


def alive(instance: str, now: datetime) -> Script[None]:
    yield Do(_ALIVE, {"instance": instance, "now": seconds(now)})


def adopt(instance: str, now: datetime) -> Script[list[str]]:
    """The chains that ``instance`` looks after from now on, until it is asked again, at most :data:`MOST_ADOPTED`."""
    values = {"instance": instance, "now": seconds(now), "before": seconds(now - GONE), "limit": MOST_ADOPTED}
    rows = yield _ADOPT, values
    return sorted(name for (name,) in rows)


def disown(instance: str, orphan: str) -> Script[None]:
    """Nothing is left of it to look after. Should its writer come back, it says so."""
    yield Do(_DISOWN, {"instance": instance, "orphan": orphan})


class Orphan(Outbox):
    """
    The feed of a chain that nobody writes any more.

    :param last: its last record.
    """

    def __init__(self, driver: Driver, publisher: Publisher, instance: str, last: int) -> None:
        super().__init__(driver, publisher)
        self._instance = instance
        self._last = last

    @property
    def instance(self) -> str:
        return self._instance

    @property
    def newest(self) -> int:
        return self._last

    async def reached(self, seq: int) -> None:
        if seq > self._last:
            await Deferred()  # until it is cancelled: nothing will come

    async def after(self, seq: int, limit: int) -> list[Sealed]:
        instance = self._instance
        return await self._driver.read(lambda: outbox.sealed_after(instance, seq, limit))
