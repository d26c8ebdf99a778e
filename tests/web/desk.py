"""What administrators see of the directory, over fakes: for tests of its pages and for people who look at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from identree.app.directory import Mode, Served, Status
from identree.app.directoryadmin import DirectoryAdmin
from identree.app.sudorules import SudoRules
from identree.directory.build import RuleReport
from identree.directory.layout import NoAuthenticate
from identree.directory.sudo import SudoRule
from identree.web.directory import DirectoryDesk
from tests.app.memoryrules import MemoryRules, at_once
from tests.web.house import House

T = TypeVar("T")

OPS = SudoRule(group="ops", commands="/usr/bin/apt,/usr/bin/systemctl restart nginx", hosts="web1,web2")
DBA = SudoRule(group="dba", commands="/usr/bin/psql", run_as_user="postgres")


class Desk:
    """
    :ivar file: None for rules that come from PocketID.
    :ivar refreshes: what was asked for: whether a smaller directory was accepted.
    """

    def __init__(self, *rules: SudoRule, full: bool = False) -> None:
        self.file: MemoryRules | None = None if full else MemoryRules(*rules)
        self.reports: Sequence[RuleReport] = ()
        self.mode: NoAuthenticate = "false"
        self.served: Served | None = None
        self.state = Status(mode=Mode.FULL if full else Mode.BRIDGE, ready=True, health="ok")
        self.refreshes: list[bool] = []
        self.refreshing: Any = None

    def __call__(self, house: House) -> DirectoryDesk:
        return DirectoryDesk(
            sudo_rules=SudoRules(
                file=self.file,
                reports=lambda: self.reports,
                no_authenticate=lambda: self.mode,
                store=house.store,
                now=house.now,
                journal=house.journal,
                sliced=at_once,
            ),
            admin=DirectoryAdmin(
                directory=self,
                refresh=self._refresh,
                in_thread=self._in_thread,
                clock=house.reactor,
                journal=house.journal,
            ),
        )

    def status(self) -> Status:
        return self.state

    async def _refresh(self, accept_shrink: bool) -> None:
        self.refreshes.append(accept_shrink)
        if self.refreshing is not None:
            await self.refreshing

    @staticmethod
    async def _in_thread(work: Callable[[], T]) -> T:
        return work()
