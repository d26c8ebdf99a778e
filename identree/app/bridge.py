"""
Bridge mode: the directory is the rules file (spec/ldap sections 1 and 3.5).

The file is followed while we run, and replaced when an administrator changes a rule. It has no age: what it says is in
force until it says something else. A file that is broken later leaves the last good rules in force.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.app.atomicfile import remove_leftovers, replace_file
from identree.app.directory import Directory, Served
from identree.app.ports import Monotonic, Now
from identree.app.publication import Publication
from identree.app.settling import Settling, fire
from identree.app.slices import sliced
from identree.app.statefiles import BadStateFile, StateFile, read_state_file
from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.directory.archive import BadArchive
from identree.directory.build import build_bridge
from identree.directory.draft import Kind
from identree.directory.layout import Layout
from identree.directory.rulesfile import FILE_LIMIT, dump, parse
from identree.directory.snapshot import Snapshot
from identree.directory.sudo import SudoRule
from identree.storage.interface import Conflict, Store

T = TypeVar("T")
InThread = Callable[[Callable[[], object]], Awaitable[Any]]

PREFIX = ".sudorules-tmp-"
# How soon a change of the file, or of a setting, is served.
FOLLOW_SECONDS = 5.0
# How often another replica may publish while we do.
ATTEMPTS = 10


class Bridge(Service):
    """
    Reads the file when it is made, and so before anything is served.

    :param path: of the rules file.
    :param layout: as the settings are now.
    :param in_thread: runs a blocking function away from the reactor.
    """

    _log = Logger()

    def __init__(
        self,
        path: str,
        store: Store,
        publication: Publication,
        directory: Directory,
        layout: Callable[[], Layout],
        *,
        clock: IReactorTime,
        now: Now,
        monotonic: Monotonic,
        in_thread: InThread,
    ) -> None:
        """:raise BadStateFile: the file is there and must not be used."""
        self.setName("directory")
        self._path = path
        self._store = store
        self._publication = publication
        self._directory = directory
        self._layout = layout
        self._clock = clock
        self._monotonic = monotonic
        self._in_thread = in_thread
        for name in remove_leftovers(path, PREFIX, now().timestamp()):
            self._log.info("removed {name}, which a writer left behind", name=name)
        self._file: StateFile[tuple[SudoRule, ...]] = StateFile(path, FILE_LIMIT, parse, in_thread)
        # what is served and written is one step
        self._lock = DeferredLock()
        self._work: Deferred[None] | None = None
        self._wake: Deferred[None] | None = None
        self._settling = Settling(clock)
        self._heard = True
        self._differs = False
        self._unsubscribe: Callable[[], None] = lambda: None

    # -- from outside -------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        self._unsubscribe = self._store.subscribe(self._told)
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(lambda failure: self._log.failure("following the sudo rules has ended", failure))

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._unsubscribe()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        self._settling.settle()
        return work

    async def settled(self) -> None:
        """Until there is something to serve, or it takes too long."""
        await self._settling.wait()

    async def read(self) -> Sequence[SudoRule]:
        """
        What the file says now, which may be more than what is served.

        :raise BadStateFile: it cannot be trusted or understood.
        """

        def load() -> object:
            raw, _ = read_state_file(self._path, FILE_LIMIT)
            if raw is None and self._file():
                # taken for no rules, the next one written would be the only one
                raise BadStateFile(f"{self._path} is gone; put it back, or restart identree to go on without it")
            try:
                return parse(raw)
            except ValueError as problem:
                raise BadStateFile(f"{self._path}: {problem}") from problem

        rules: tuple[SudoRule, ...] = await self._in_thread(load)
        return rules

    async def write(self, rules: Sequence[SudoRule]) -> None:
        """
        Replace the file, and serve it from now on.

        :raise OSError: it could not be written; nothing was changed.
        :raise ValueError: the rules are too large for a file.
        """
        await self._in_thread(lambda: replace_file(self._path, dump(rules), PREFIX, make_directory=True))
        # a database that does not answer now is asked again by the loop
        await self._follow()

    # -- the loop -----------------------------------------------------------------------------------------------------
    def _told(self, live: Live) -> None:
        if live.event in ("directory_published", "resync"):
            self._heard = True
            if self._wake is not None:
                fire(self._wake)

    async def _run(self) -> None:
        try:
            # whoever is answered from within may stop us, which a coroutine that is running cannot hear
            while self.running:
                await self._follow()
                self._settling.settle()
                if not self.running:
                    return
                self._wake = Deferred()
                timer = self._clock.callLater(FOLLOW_SECONDS, fire, self._wake)
                try:
                    await self._wake
                finally:
                    self._wake = None
                    if timer.active():
                        timer.cancel()
        except CancelledError:
            return

    async def _follow(self) -> None:
        """Serve what the file says, if that is something else than what is served; what fails is tried again."""
        await self._lock.acquire()
        try:
            await self._file.refresh()
            served = self._directory.served
            same = served is not None and served.rules == self._file() and served.layout == self._layout()
            if same and not self._heard:
                await self._publication.drop_old()
                return
            await self._serve(publish=not same)
        except StorageUnavailable as problem:
            self._heard = True
            self._log.warn("directory: the rules are not served yet: {reason}", reason=problem.reason)
        except CancelledError:
            raise
        except Exception:
            self._heard = True
            self._log.failure("directory: serving the rules failed")
        finally:
            self._lock.release()

    async def _serve(self, *, publish: bool) -> None:
        """:param publish: what we have to say is new; otherwise only other replicas' stamps are looked at."""
        self._heard = False
        for _ in range(ATTEMPTS):
            try:
                await self._publication.read()
            except BadArchive as problem:
                self._log.error("directory: {problem}; it is replaced", problem=problem)
            edition = self._publication.edition
            served = self._directory.served
            rules, layout = self._file(), self._layout()
            if not publish and served is not None and served.version == edition.version:
                return
            built = await self._sliced(build_bridge(rules, layout, served.built if served else None))
            stamped = await self._publication.restamped(built.drafts)
            stamps = stamped.stamps
            different = bool(stamped.changed or stamped.gone)
            if different and not publish:
                if not self._differs:
                    self._log.warn(
                        "directory: {path} says something else than another replica's rules file; it must be the same "
                        "on all of them",
                        path=self._path,
                    )
                self._differs = True
                theirs = {key: edition.stamps[key] for key in stamped.changed if key in edition.stamps}
                stamps = {**stamps, **theirs}
            snapshot = await self._sliced(
                Snapshot.build(
                    layout.base_dn,
                    built.drafts,
                    stamps,
                    served.snapshot if served else None,
                    max(edition.usn, stamped.usn),
                )
            )
            if publish and (different or edition.version == 0):
                try:
                    roles = sum(draft.kind is Kind.ROLE for draft in built.drafts)
                    await self._publication.publish(built.drafts, stamped, None, None, people=0, groups=0)
                except Conflict:
                    continue
                self._differs = False
                self._log.info("directory: serving {roles} sudo rules from {path}", roles=roles, path=self._path)
            elif not different:
                self._publication.stamped(built.drafts)
                self._differs = False
            self._directory.swap(
                Served(
                    snapshot=snapshot,
                    built=built,
                    layout=layout,
                    version=self._publication.edition.version,
                    rules=rules,
                )
            )
            self._directory.succeeded()
            return
        raise StorageUnavailable("locked", "other replicas publish all the time")

    async def _sliced(self, work: Generator[None, None, T]) -> T:
        return await sliced(work, self._clock, self._monotonic)
