"""A rules file in memory, and long work without turns of a reactor."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from identree.directory.rulesfile import dump
from identree.directory.sudo import SudoRule


class MemoryRules:
    """
    A :class:`~identree.app.sudorules.RulesPort`.

    :ivar broken: raised instead of reading; ``full``: instead of writing.
    :ivar held: what writing waits for.
    """

    def __init__(self, *rules: SudoRule) -> None:
        self.rules: tuple[SudoRule, ...] = rules
        self.written: list[tuple[SudoRule, ...]] = []
        self.broken: Exception | None = None
        self.full: Exception | None = None
        self.held: Deferred[None] | None = None

    async def read(self) -> Sequence[SudoRule]:
        if self.broken is not None:
            raise self.broken
        return self.rules

    async def write(self, rules: Sequence[SudoRule]) -> None:
        if self.held is not None:
            await self.held
        if self.full is not None:
            raise self.full
        dump(rules)
        self.rules = tuple(rules)
        self.written.append(self.rules)


async def at_once(work: Generator[None, None, Any]) -> Any:
    """``sliced`` without turns."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value
