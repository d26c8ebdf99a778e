"""
The directory that is served, as everybody else sees it: LDAP, pages, health, metrics and the command line.

The services that fill it (:mod:`identree.app.refresh`, :mod:`identree.app.bridge`) swap one reference. Whoever needs
more than one look at it takes the reference once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from twisted.logger import Logger

from identree.app.metrics import Metrics
from identree.app.ports import Monotonic, Now
from identree.directory.build import Built
from identree.directory.draft import Kind
from identree.directory.eligibility import Withheld
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.snapshot import Snapshot
from identree.directory.source import Source
from identree.directory.sudo import SudoRule

# Older than this many intervals, the directory is stale: one refresh may fail and be made good (spec/ldap section 10).
STALE_INTERVALS = 1.5

NO_SOURCE = Source()
OK, STALE = "ok", "stale"


class Mode(Enum):
    """Where the directory comes from (spec/ldap section 1)."""

    FULL = "full"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """
    All that belongs to one snapshot.

    :ivar source: people and groups that it was built from; empty in bridge mode.
    :ivar rules: the rules file that it was built from; empty in full mode.
    :ivar version: of the publication; the same on all replicas.
    """

    snapshot: Snapshot
    built: Built
    layout: Layout
    version: int
    source: Source = NO_SOURCE
    numbers: Numbers | None = None
    rules: tuple[SudoRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A refresh that failed, and why; ``reason`` is for people."""

    at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How much of one kind would vanish: ``lost`` of the ``before``."""

    what: str
    before: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """
    A smaller directory that waits until an administrator accepts it.

    :ivar at: when the source was last seen like that.
    :ivar losses: those that are too large.
    """

    at: datetime
    losses: tuple[Loss, ...]

    def __str__(self) -> str:
        return "; ".join(f"{loss.lost} of {loss.before} {loss.what} would vanish" for loss in self.losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """
    For pages, the self-check and ``identree directory``.

    :ivar ready: whether there is something to serve.
    :ivar groups: without private groups.
    :ivar roles: sudo rules.
    :ivar usn: change number of the latest change.
    :ivar confirmed_at: when the source last confirmed what is served; None: never, and in bridge mode.
    :ivar trouble: the last refresh failed so; None after a success.
    :ivar withheld: what is not served, or only in part, and why.
    """

    mode: Mode
    ready: bool
    health: str
    people: int = 0
    groups: int = 0
    roles: int = 0
    version: int = 0
    usn: int = 0
    confirmed_at: datetime | None = None
    age_seconds: float | None = None
    trouble: Trouble | None = None
    refusal: Refusal | None = None
    withheld: tuple[Withheld, ...] = ()


def entry_counts(built: Built) -> dict[Kind, int]:
    """Of people, groups (without private ones) and sudo rules that are served; without a look at every entry."""
    roles = sum(report.served for report in built.rules)
    return {Kind.PERSON: len(built.people), Kind.GROUP: len(built.groups), Kind.ROLE: roles}


class Directory:
    """
    :param interval_seconds: between refreshes; decides when the directory is stale.
    """

    _log = Logger()

    def __init__(
        self, mode: Mode, metrics: Metrics, *, interval_seconds: float, now: Now, monotonic: Monotonic
    ) -> None:
        self.mode = mode
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._now = now
        self._monotonic = monotonic
        self._served: Served | None = None
        self._listeners: dict[object, Callable[[Snapshot], None]] = {}
        self._confirmed_at: datetime | None = None
        # the same instant on the clock that does not step
        self._confirmed = -math.inf
        self._trouble: Trouble | None = None
        self._refusal: Refusal | None = None
        self._counts: dict[Kind, int] = {}
        metrics.directory_age.set_function(lambda: self.age_seconds() or 0.0)

    # -- for those who read -------------------------------------------------------------------------------------------
    @property
    def snapshot(self) -> Snapshot | None:
        """None until there is one: answer "busy"."""
        return None if self._served is None else self._served.snapshot

    @property
    def served(self) -> Served | None:
        """The snapshot with all that it was made of."""
        return self._served

    @property
    def ready(self) -> bool:
        return self._served is not None

    def age_seconds(self) -> float | None:
        """Since the source last confirmed what is served; None: it never did, and in bridge mode."""
        if self._served is None or self._confirmed_at is None:
            return None
        return max(0.0, self._monotonic() - self._confirmed)

    def health(self) -> str:
        """
        For the check ``ldap_sync``: ``ok`` or ``stale``.

        Local rules have no age. Otherwise stale is what was not confirmed in time, whoever's fault it is, and what was
        never read; a directory kept from before a restart has the age that it had.
        """
        if self.mode is Mode.BRIDGE:
            return OK
        age = self.age_seconds()
        return OK if age is not None and age <= STALE_INTERVALS * self._interval_seconds else STALE

    def status(self) -> Status:
        """As of now."""
        served = self._served
        if served is None:
            return Status(
                mode=self.mode, ready=False, health=self.health(), trouble=self._trouble, refusal=self._refusal
            )
        return Status(
            mode=self.mode,
            ready=True,
            health=self.health(),
            people=self._counts.get(Kind.PERSON, 0),
            groups=self._counts.get(Kind.GROUP, 0),
            roles=self._counts.get(Kind.ROLE, 0),
            version=served.version,
            usn=served.snapshot.usn,
            confirmed_at=self._confirmed_at,
            age_seconds=self.age_seconds(),
            trouble=self._trouble,
            refusal=self._refusal,
            withheld=served.built.withheld,
        )

    def subscribe(self, listener: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Be told of each new snapshot, after the swap; returns the function that ends it."""
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    # -- for those who fill it ----------------------------------------------------------------------------------------
    def swap(self, served: Served) -> None:
        """From now on this one."""
        before = self._served
        self._served = served
        counts = self._counts = entry_counts(served.built)
        withheld: dict[str, int] = {"person": 0, "group": 0, "role": 0}
        for item in served.built.withheld:
            withheld[item.kind.value] = withheld.get(item.kind.value, 0) + 1
        for kind in (Kind.PERSON, Kind.GROUP, Kind.ROLE):
            self._metrics.directory_entries.labels(kind.value).set(counts[kind])
            self._metrics.directory_withheld.labels(kind.value).set(withheld[kind.value])
        self._metrics.directory_usn.set(served.snapshot.usn)
        if before is None or before.built is not served.built:
            self._report(served, before)
        for key, listener in list(self._listeners.items()):
            if key not in self._listeners:
                continue
            try:
                listener(served.snapshot)
            except Exception:
                # the snapshot is in force; one deaf listener must not keep the others from it
                self._log.failure("a listener of the directory failed")

    def confirmed(self, at: datetime | None) -> None:
        """The source stands behind what is served, as of ``at``; None: there is no source to ask."""
        self._confirmed_at = at
        if at is not None:
            # by the wall clock of whoever asked; a clock that differs makes it no younger than now
            self._confirmed = self._monotonic() - max(0.0, (self._now() - at).total_seconds())

    def succeeded(self) -> None:
        """The last refresh did what it should."""
        self._trouble = self._refusal = None

    def failed(self, reason: str) -> None:
        """The last refresh did not."""
        self._trouble = Trouble(at=self._now(), reason=reason)

    def refused(self, refusal: Refusal | None) -> None:
        """A smaller directory waits for acceptance, so the source has answered; None: none does any more."""
        self._refusal = refusal
        if refusal is not None:
            self._trouble = None

    def _report(self, served: Served, before: Served | None) -> None:
        """What is not served, once for each snapshot that says something new about it."""
        known = frozenset(before.built.withheld) if before is not None else frozenset()
        new = [item for item in served.built.withheld if item not in known]
        for item in new[:MOST_REPORTED]:
            self._log.warn("directory: {item}", item=f"{item.kind.value} {item.name!r}: {item.text()}")
        if len(new) > MOST_REPORTED:
            self._log.warn("directory: {more} more are withheld; see the directory page", more=len(new) - MOST_REPORTED)


# Log lines of one refresh about what is withheld.
MOST_REPORTED = 50
