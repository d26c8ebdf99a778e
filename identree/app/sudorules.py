"""
The sudo rules that administrators keep in the rules file, and what of them hosts are told (spec/ldap section 3.5).

A rule is judged when it is saved, by the same code that decides what is served: one that would never be served, or
that says with ``!`` what it does not grant, is refused. Items that would be left out narrow a rule; a person is asked
about them, a script is not, and the page shows them either way.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.statefiles import BadStateFile
from identree.core import events
from identree.core.challenge import HistoryEntry
from identree.core.errors import Forbidden, Invalid, NotFound, Refused
from identree.directory.build import RuleReport
from identree.directory.layout import NoAuthenticate
from identree.directory.rulesfile import MAX_RULES
from identree.directory.sudo import SudoRule, Verdict, check, group_verdicts, split
from identree.storage.interface import GraceChange, Store

# what the pages need to show a rule; they see the directory only through the application
__all__ = [
    "FIELDS",
    "FURTHER_FIELDS",
    "Judged",
    "Listing",
    "RuleExists",
    "RuleMissing",
    "RuleNarrowed",
    "RuleRefused",
    "RulesPort",
    "RulesUnavailable",
    "State",
    "SudoRule",
    "SudoRules",
    "Verdict",
    "split",
]

# Bytes of a field in UTF-8, characters of a group (spec/http-api sections 3 and 9.2).
FIELD_BYTES = 4096
GROUP_LENGTH = 256
# The fields that deployed forms send; one that is missing is empty.
FIELDS = ("group", "commands", "hosts", "run_as_user", "run_as_group", "options")
# Further ones, which only a form that has them changes. In the last each line is a command, commas included.
FURTHER_FIELDS = ("order", "not_before", "not_after", "description", "more_commands")
# Rules whose verdicts are remembered; the page shows a few dozen at a time, again and again.
REMEMBERED_VERDICTS = 2000
# Rules on one page: what is judged and drawn for one request.
PAGE_RULES = 50

# Rules looked through between two turns of the reactor; each may have six fields of 4 KiB.
SEARCHED_AT_ONCE = 50

# Looser than what is served: what deployed servers stored can still be deleted.
_GROUP = re.compile(r"[a-z_][a-z0-9_.-]*")

T = TypeVar("T")


class RulesPort(Protocol):
    """The rules file, as the one who serves it keeps it."""

    async def read(self) -> Sequence[SudoRule]:
        """
        What the file says now.

        :raise OSError, BadStateFile: it cannot be read, trusted or understood.
        """

    async def write(self, rules: Sequence[SudoRule]) -> None:
        """
        Replace the file; hosts are told the new rules from then on.

        :raise OSError, ValueError: it cannot be written, or not with these rules; nothing was changed.
        """


class RuleRefused(Invalid):
    """The rule cannot be saved as it is; ``verdicts`` say why, field by field."""

    key = "sudo_rule_refused"

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        super().__init__(", ".join(sorted({verdict.field for verdict in verdicts})))
        self.verdicts = tuple(verdicts)


class RuleNarrowed(RuleRefused):
    """The rule can be saved, but some of its items would not be served; a person has to accept that."""


class RuleExists(Refused):
    """The group has a rule already."""

    key = "sudo_rule_exists"


class RuleMissing(NotFound):
    """The group has no rule."""

    key = "sudo_rule_missing"


class RulesUnavailable(Exception):
    """The rules file cannot be read or written. Nothing was changed; ``str()`` says what is wrong with it."""


class State(Enum):
    """What hosts are told of a rule."""

    SERVED = "served"
    IN_PART = "in_part"
    WITHHELD = "withheld"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """
    One rule and what is served of it.

    :ivar verdicts: on what of it is not served; those of a rule that is not served say why.
    """

    rule: SudoRule
    verdicts: tuple[Verdict, ...]

    @property
    def state(self) -> State:
        if any(verdict.refuses for verdict in self.verdicts):
            return State.WITHHELD
        return State.IN_PART if self.verdicts else State.SERVED


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """
    A page of the rules.

    :ivar found: how many rules fit the search. :ivar total: how many there are.
    :ivar number: of this page, from 1. :ivar pages: how many there are, at least 1.
    """

    rules: tuple[Judged, ...]
    found: int
    total: int
    number: int
    pages: int


class SudoRules:
    """
    :param file: None where the rules come from PocketID groups; nothing can be changed here then.
    :param reports: the rules of groups as the directory that is served now has them; not asked for when there is a
        file.
    :param no_authenticate: the setting ``LDAP_SUDO_NO_AUTHENTICATE``.
    :param sliced: runs a generator to its end without holding the reactor (``identree.app.slices``).
    """

    _log = Logger()

    def __init__(
        self,
        *,
        file: RulesPort | None,
        reports: Callable[[], Sequence[RuleReport]],
        no_authenticate: Callable[[], NoAuthenticate],
        store: Store,
        now: Now,
        journal: Journal,
        sliced: Callable[[Generator[None, None, Any]], Awaitable[Any]],
    ) -> None:
        self._file = file
        self._reports = reports
        self._no_authenticate = no_authenticate
        self._store = store
        self._now = now
        self._journal = journal
        self._sliced = sliced
        # reading, deciding and writing are one step
        self._lock = DeferredLock()
        self._verdicts: OrderedDict[tuple[SudoRule, NoAuthenticate], tuple[Verdict, ...]] = OrderedDict()

    @property
    def editable(self) -> bool:
        return self._file is not None

    # -- looking ------------------------------------------------------------------------------------------------------
    async def listing(self, caller: Caller, *, search: str = "", number: int = 1) -> Listing:
        """
        Rules in the order in which they are served, judged.

        :param search: part of a group, command, host or other field, in any case.
        :param number: of the page; one that does not exist means the nearest.
        :raise Forbidden: not an administrator.
        :raise RulesUnavailable: the rules file cannot be read.
        """
        _must_be_admin(caller)
        rules = self._reports() if self._file is None else await self._read(self._file)
        listing: Listing = await self._sliced(self._list(rules, search.casefold(), number))
        return listing

    async def rule(self, caller: Caller, group: str) -> Judged:
        """
        The rule of a group, to be changed.

        :raise Forbidden: not an administrator.
        :raise RuleMissing: there is none, or it is not kept here.
        :raise RulesUnavailable: the rules file cannot be read.
        """
        _must_be_admin(caller)
        if self._file is None:
            raise RuleMissing
        rules = await self._read(self._file)
        rule = rules[_place(rules, group)]
        return Judged(rule=rule, verdicts=self._judge(rule))

    def _list(self, rules: Sequence[SudoRule | RuleReport], search: str, number: int) -> Generator[None, None, Listing]:
        found: list[Callable[[], Judged]] = []
        groups: set[str] = set()
        for count, one in enumerate(rules):
            if count % SEARCHED_AT_ONCE == 0:
                yield
            rule = one if isinstance(one, SudoRule) else one.rule
            if not search or any(search in text.casefold() for text in _texts(rule)):
                found.append(partial(self._judged, one, rule.group in groups))
            groups.add(rule.group)
        pages = max(1, -(-len(found) // PAGE_RULES))
        number = min(max(1, number), pages)
        judged = []
        for judge in found[(number - 1) * PAGE_RULES : number * PAGE_RULES]:
            judged.append(judge())
            yield
        return Listing(rules=tuple(judged), found=len(found), total=len(rules), number=number, pages=pages)

    def _judged(self, one: SudoRule | RuleReport, repeated: bool) -> Judged:
        if isinstance(one, RuleReport):
            return Judged(rule=one.rule, verdicts=one.checked.verdicts)
        verdicts = self._judge(one)
        return Judged(
            rule=one, verdicts=(_refusal("group", "repeated", one.group), *verdicts) if repeated else verdicts
        )

    def _judge(self, rule: SudoRule) -> tuple[Verdict, ...]:
        key = (rule, self._no_authenticate())
        verdicts = self._verdicts.get(key)
        if verdicts is None:
            verdicts = self._verdicts[key] = _verdicts(*key)
            if len(self._verdicts) > REMEMBERED_VERDICTS:
                self._verdicts.popitem(last=False)
        return verdicts

    # -- changing -----------------------------------------------------------------------------------------------------
    async def add(
        self, caller: Caller, fields: Mapping[str, str], *, narrowed: bool = True, address: str = ""
    ) -> SudoRule:
        """
        A new rule, behind the others.

        :param fields: by the names of :data:`FIELDS` and :data:`FURTHER_FIELDS`, as they were sent.
        :param narrowed: whether items that would not be served are accepted.
        :raise Forbidden: not an administrator.
        :raise RuleRefused: a field is not of the required form, or the rule would never be served.
        :raise RuleNarrowed: ``narrowed`` is not set, and it would matter.
        :raise RuleExists: the group has one.
        :raise RulesUnavailable, StorageUnavailable: nothing was changed.
        """
        _must_be_admin(caller)
        rule = _changed(SudoRule(group=""), fields)

        def change(rules: Sequence[SudoRule]) -> Sequence[SudoRule]:
            if any(other.group == rule.group for other in rules):
                raise RuleExists(rule.group)
            if len(rules) >= MAX_RULES:
                raise RuleRefused([_refusal("group", "too_many_rules", str(MAX_RULES))])
            self._must_be_served(rule, narrowed)
            return (*rules, rule)

        await self._apply("SUDO_RULE_ADDED", caller, rule.group, change, address)
        return rule

    async def update(
        self, caller: Caller, fields: Mapping[str, str], *, narrowed: bool = True, address: str = ""
    ) -> SudoRule:
        """
        Another content for a group's rule, at its place. As :meth:`add`, but:

        :raise RuleMissing: the group has none.
        """
        _must_be_admin(caller)
        changed = _changed(SudoRule(group=""), fields)

        def change(rules: Sequence[SudoRule]) -> Sequence[SudoRule]:
            nonlocal changed
            place = _place(rules, changed.group)
            # what deployed forms do not know stays as it is
            changed = _changed(rules[place], fields)
            self._must_be_served(changed, narrowed)
            return (*rules[:place], changed, *_others(rules[place + 1 :], changed.group))

        await self._apply("SUDO_RULE_UPDATED", caller, changed.group, change, address)
        return changed

    async def delete(self, caller: Caller, group: str, *, address: str = "") -> None:
        """
        :raise Forbidden: not an administrator.
        :raise RuleRefused: that is no group.
        :raise RuleMissing: the group has no rule.
        :raise RulesUnavailable, StorageUnavailable: nothing was changed.
        """
        _must_be_admin(caller)
        group = group.strip()
        problems = _group_problems(group)
        if problems:
            raise RuleRefused(problems)

        def change(rules: Sequence[SudoRule]) -> Sequence[SudoRule]:
            place = _place(rules, group)
            return (*rules[:place], *_others(rules[place + 1 :], group))

        await self._apply("SUDO_RULE_DELETED", caller, group, change, address)

    def _must_be_served(self, rule: SudoRule, narrowed: bool) -> None:
        verdicts = self._judge(rule)
        if any(verdict.refuses for verdict in verdicts):
            raise RuleRefused(verdicts)
        if verdicts and not narrowed:
            raise RuleNarrowed(verdicts)

    async def _apply(
        self,
        marker: str,
        caller: Caller,
        group: str,
        change: Callable[[Sequence[SudoRule]], Sequence[SudoRule]],
        address: str,
    ) -> None:
        if self._file is None:
            raise RuleMissing
        await self._to_the_end(self._write(self._file, caller, group, change, address))
        self._journal.info(marker, admin=caller.username, group=group, remote_addr=address)

    async def _write(
        self,
        file: RulesPort,
        caller: Caller,
        group: str,
        change: Callable[[Sequence[SudoRule]], Sequence[SudoRule]],
        address: str,
    ) -> None:
        """Write the file, then record that it changed; a change that cannot be recorded is taken back."""
        await self._lock.acquire()
        try:
            before = await self._read(file)
            after = change(before)
            # a database that is away is noticed before hosts are told anything
            await self._store.ping()
            await self._replace(file, after)
            try:
                await self._record(caller, group, address)
            except Exception:
                await self._restore(file, before)
                raise
        finally:
            self._lock.release()

    async def _record(self, caller: Caller, group: str, address: str) -> None:
        now = self._now()
        change = GraceChange(
            session=None,
            events=(
                events.SudoRuleModified(
                    at=now, username=caller.username, hostname=group, actor=caller.username, remote_addr=address
                ),
            ),
            history=(HistoryEntry(at=now, username=caller.username, action="sudo_rule_modified", hostname=group),),
        )
        # no session is touched: it is the transaction that writes history and event together
        await self._store.change_grace(caller.username, group, lambda _: change)

    async def _read(self, file: RulesPort) -> tuple[SudoRule, ...]:
        try:
            return tuple(await file.read())
        except (OSError, ValueError, BadStateFile) as problem:
            raise RulesUnavailable(str(problem)) from problem

    async def _replace(self, file: RulesPort, rules: Sequence[SudoRule]) -> None:
        try:
            await file.write(rules)
        except (OSError, ValueError, BadStateFile) as problem:
            self._log.error("the sudo rules file could not be written: {problem}", problem=problem)
            raise RulesUnavailable(str(problem)) from problem

    async def _restore(self, file: RulesPort, before: Sequence[SudoRule]) -> None:
        try:
            await file.write(before)
        except (OSError, ValueError, BadStateFile) as problem:
            self._log.error("a change of the sudo rules file is not recorded and stays: {problem}", problem=problem)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Klein cancels a handler when its client hangs up; between file and record nothing may stop."""
        waiting: Deferred[T] = Deferred()

        def over(result: T | Failure) -> None:
            if not waiting.called:
                waiting.callback(result)  # a failure goes to whoever waits
            elif isinstance(result, Failure) and not result.check(Refused):
                self._log.failure("a change of the sudo rules failed, and nobody waits for it", result)

        Deferred.fromCoroutine(work).addBoth(over)
        return await waiting


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden


def _place(rules: Sequence[SudoRule], group: str) -> int:
    for place, rule in enumerate(rules):
        if rule.group == group:
            return place
    raise RuleMissing(group)


def _others(rules: Sequence[SudoRule], group: str) -> tuple[SudoRule, ...]:
    """Without further rules for the group: one that was never served must not take the place of the one deleted."""
    return tuple(rule for rule in rules if rule.group != group)


def _verdicts(rule: SudoRule, no_authenticate: NoAuthenticate) -> tuple[Verdict, ...]:
    return (*group_verdicts(rule.group), *check(rule, no_authenticate).verdicts)


def _texts(rule: SudoRule) -> tuple[str, ...]:
    """Where a search looks."""
    return (
        rule.group,
        rule.commands,
        rule.hosts,
        rule.run_as_user,
        rule.run_as_group,
        rule.options,
        rule.description,
        *rule.more_commands,
    )


def _changed(rule: SudoRule, fields: Mapping[str, str]) -> SudoRule:
    """The rule with what was sent. :raise RuleRefused: something of it cannot stand in the file."""
    sent = {name: fields.get(name, "").strip() for name in FIELDS}
    sent |= {name: fields[name].strip() for name in FURTHER_FIELDS if name in fields}
    more = tuple(command for line in sent.pop("more_commands", "").splitlines() if (command := line.strip()))
    if "more_commands" not in fields:
        more = rule.more_commands
    problems = _group_problems(sent["group"])
    if not sent["commands"] and not (more and "more_commands" in fields):
        problems.append(_refusal("commands", "required"))
    for name, text in (*sent.items(), ("more_commands", " ".join(more))):
        if name == "group":
            continue
        if len(text.encode("utf-8", "replace")) > FIELD_BYTES:
            problems.append(_refusal(name, "too_long", str(FIELD_BYTES)))
        elif any(character in text for character in "\0\r\n"):
            problems.append(_refusal(name, "more_lines"))
    if problems:
        raise RuleRefused(problems)
    return replace(rule, **sent, more_commands=more, unknown_claims=())


def _group_problems(group: str) -> list[Verdict]:
    if not group:
        return [_refusal("group", "required")]
    if len(group) > GROUP_LENGTH or not _GROUP.fullmatch(group):
        return [_refusal("group", "bad_group")]
    return []


def _refusal(field: str, key: str, item: str = "") -> Verdict:
    return Verdict(field=field, item=item, key=key, refuses=True)
