"""
The approval policies in force: from the database, with versions, or from the file that an operator keeps
(design section 3, spec/notifications-and-policy section 7).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from identree.app.health import InThread
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.statefiles import BadStateFile, Signature, StateFile, read_state_file
from identree.core import durations, verdict
from identree.core.challenge import Challenge, HistoryEntry, Live
from identree.core.errors import Forbidden, Invalid, NotFound, PoliciesChanged, PoliciesFromFile, Refused
from identree.core.events import ConfigChanged
from identree.core.policy import MAX_POLICIES, Policies, Requirement
from identree.core.verdict import Approver
from identree.storage.interface import Conflict, PolicyVersion, Store

POLICY_BYTES = 4 << 20
DATABASE, FILE = "database", "file"
# A form without a version is applied to the newest one; between two attempts somebody else may have saved again.
ATTEMPTS = 5
# Names of those who may approve that a preview shows.
MOST_NAMES = 50
# The author of what was taken over from a file.
FROM_FILE = "file"

# From the fields as they are now to those that shall be; raises Invalid for what cannot be done.
Edit = Callable[[list[dict[str, object]]], list[dict[str, object]]]


class UnknownPolicy(NotFound):
    """There is no policy of this name."""

    key = "policies_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """
    What a request would meet.

    :ivar people: who may approve it, and of those whom the policy asks for, who may not and why: name and the key of
        the refusal, empty when there is none. None: there is no directory that knows.
    :ivar more: how many others.
    """

    username: str
    hostname: str
    host_group: str
    command: str
    at: datetime
    requirement: Requirement
    people: tuple[tuple[str, str], ...] | None
    more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """
    What the page shows.

    :ivar saved: of the version in force; None: there is none, or they come from a file.
    :ivar problem: why what is stored is not in force; empty: it is.
    """

    policies: Policies
    editable: bool
    saved: PolicyVersion | None
    history: Sequence[PolicyVersion] = ()
    problem: str = ""


@dataclass(slots=True)
class _Known:
    """:ivar signature: of the file that was seen last."""

    signature: Signature = None
    said: str = ""
    problem: str = ""
    saved: PolicyVersion | None = field(default=None)


class PolicyBook:
    """
    Callable: the policies in force. Before :meth:`load` there are none and nobody can ask.

    :param source: ``database`` or ``file``.
    :param path: of the policy file; empty: there is none.
    :param group: the group of a host in the registry.
    :param roster: as for ``Decisions``.
    :param in_thread: runs a blocking function away from the reactor.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self,
        *,
        store: Store,
        source: str,
        path: str,
        now: Now,
        in_thread: InThread,
        journal: Journal,
        group: Callable[[str], str] = lambda hostname: "",
        roster: Callable[[frozenset[str]], Sequence[Approver]] = lambda groups: (),
        trouble: Callable[[bool], None] = lambda bad: None,
    ) -> None:
        """:raise BadStateFile: the file is there and must not be used."""
        self._store = store
        self._path = path
        self._now = now
        self._in_thread = in_thread
        self._journal = journal
        self._group = group
        self._roster = roster
        self._trouble = trouble
        self._policies = Policies.empty()
        self._known = _Known()
        self._file: StateFile[Policies] | None = None
        if source == FILE and path:
            self._file = StateFile(path, POLICY_BYTES, _parsed, in_thread)
            self._policies = self._file()
        self.editable = source == DATABASE

    def __call__(self) -> Policies:
        return self._policies

    # -- following ----------------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """
        What counts from the start on. Where the database has nothing yet, a policy file is taken over.

        :raise BadStateFile: the file that would be taken over must not be used.
        :raise ValueError: what is stored cannot be understood: without policies everybody could approve everything.
        :raise StorageUnavailable: the database cannot be asked.
        """
        if not self.editable:
            self._journal.info("POLICY engine loaded", policies=len(self._policies), source=FILE)
            return
        saved = await self._store.policies()
        if saved is None:
            saved = await self._take_over()
        if saved is not None:
            await self._use(saved)
        self._journal.info("POLICY engine loaded", policies=len(self._policies), version=self._policies.version)

    async def _take_over(self) -> PolicyVersion | None:
        raw, signature = await self._read()
        self._known.signature = signature
        if raw is None:
            return None
        try:
            policies = await self._parse(raw)
        except ValueError as problem:
            raise BadStateFile(f"{self._path}: {problem}") from problem
        try:
            return await self._store.save_policies(
                policies.to_json(),
                seen=0,
                author=FROM_FILE,
                note="taken over from the policy file",
                now=self._now(),
                events=[self._event(FROM_FILE, "policies_imported", "version 1", "")],
            )
        except Conflict:
            # another replica was faster
            return await self._store.policies()

    async def _read(self) -> tuple[bytes | None, Signature]:
        if not self._path:
            return None, None
        found: tuple[bytes | None, Signature] = await self._in_thread(
            partial(read_state_file, self._path, POLICY_BYTES)
        )
        return found

    async def refresh(self) -> None:
        """To be called every few seconds, and when somebody has saved. Trouble leaves the last good policies."""
        if self._file is not None:
            if await self._file.refresh():
                self._policies = self._file()
            return
        if not self.editable:
            return
        saved = await self._store.policies()
        if saved is not None and saved.version != self._policies.version:
            try:
                await self._use(saved)
            except ValueError as problem:
                self._say(f"version {saved.version} cannot be used: {problem}. The last good one stays in force")
        elif saved is not None:
            self._say("")
        await self._look_at_file()

    def heard(self, live: Live) -> None:
        """Subscribe this to the store."""
        if live.event in ("policies_changed", "resync") and self.editable:
            Deferred.fromCoroutine(self.refresh()).addErrback(
                lambda failure: self._log.warn("policies: {why}", why=failure.getErrorMessage())
            )

    async def _use(self, saved: PolicyVersion) -> None:
        """:raise ValueError: it cannot be understood."""
        self._set(saved, await self._parse(saved.document.encode()))

    def _set(self, saved: PolicyVersion, policies: Policies) -> None:
        if saved.version < self._policies.version:
            # read before another one was saved here
            return
        self._policies = policies.with_version(saved.version)
        self._known.saved = saved
        self._say("")

    async def _parse(self, raw: bytes) -> Policies:
        """A thousand policies take longer than the reactor may wait. :raise ValueError: they cannot be understood."""
        policies: Policies = await self._in_thread(partial(Policies.parse, raw))
        return policies

    def _say(self, problem: str) -> None:
        if problem and problem != self._known.problem:
            self._log.error("policies: {problem}", problem=problem)
        self._known.problem = problem
        self._trouble(bool(problem))

    async def _look_at_file(self) -> None:
        """A file that changes while the database counts is an edit that somebody believes in: it is said, once."""
        try:
            raw, signature = await self._read()
        except BadStateFile as problem:
            if str(problem) != self._known.said:
                self._known.said = str(problem)
                self._log.warn("policies: {problem}; it does not count, the database does", problem=problem)
            return
        if raw is None or signature == self._known.signature:
            return
        self._known.signature = signature
        try:
            differs = await self._in_thread(partial(_differ, raw, self._policies))
        except ValueError:
            differs = True
        if differs:
            self._log.warn(
                "policies: {path} differs from the policies in force and does not count; import it on the policies "
                "page or with identree policy import, or set IDENTREE_POLICY_SOURCE=file",
                path=self._path,
            )

    # -- looking ------------------------------------------------------------------------------------------------------
    async def sight(self, caller: Caller, before: int | None = None) -> Sight:
        """:raise Forbidden: not an administrator."""
        _must_be_admin(caller)
        history = await self._store.policy_versions(before, HISTORY_LINES) if self.editable else []
        return Sight(
            policies=self._policies,
            editable=self.editable,
            saved=self._known.saved,
            history=history,
            problem=self._known.problem,
        )

    async def version(self, caller: Caller, number: int) -> PolicyVersion:
        """:raise UnknownPolicy: there is no such version, or not any more."""
        _must_be_admin(caller)
        found = await self._store.policies(number) if self.editable else None
        if found is None:
            raise UnknownPolicy
        return found

    def preview(
        self,
        username: str,
        hostname: str,
        *,
        command: str = "",
        at: datetime | None = None,
        draft: Policies | None = None,
    ) -> Preview:
        """
        What a request would meet, and who could approve it.

        :param draft: instead of the policies in force.
        """
        policies, when = draft or self._policies, at or self._now()
        group = self._group(hostname)
        required = policies.requirement(username, hostname, group, when, command)
        roster = list(self._roster(policies.approver_groups))
        people: tuple[tuple[str, str], ...] | None = None
        more = 0
        if roster:
            owner = Approver(username=username, is_admin=False)
            known = [person for person in roster if person.username == username]
            others = [person for person in roster if person.username != username]
            judged = [(person.username, _obstacle(required, person, username)) for person in (*known, *others)]
            if not known:
                judged.insert(0, (username, _obstacle(required, owner, username)))
            people, more = tuple(judged[:MOST_NAMES]), max(0, len(judged) - MOST_NAMES)
        return Preview(
            username=username,
            hostname=hostname,
            host_group=group,
            command=command,
            at=when,
            requirement=required,
            people=people,
            more=more,
        )

    async def draft(self, fields: object) -> Policies:
        """
        Policies that are not in force, for :meth:`preview`.

        :param fields: a list of objects as in a policy file.
        :raise ValueError: they cannot be understood.
        """
        policies: Policies = await self._in_thread(partial(Policies.from_fields, fields))
        return policies

    # -- changing -----------------------------------------------------------------------------------------------------
    async def add(
        self, caller: Caller, fields: Mapping[str, object], *, seen: int | None = None, address: str = ""
    ) -> str:
        """
        A new policy, the last one. Returns its name.

        :param seen: the version that the caller has looked at; None: whatever is in force.
        :raise Invalid: it cannot be understood, or its name is taken; ``detail`` says what would be right.
        :raise Forbidden, PoliciesFromFile, PoliciesChanged: see there.
        """
        name = str(fields.get("name", ""))

        def edit(present: list[dict[str, object]]) -> list[dict[str, object]]:
            if any(one["name"] == name for one in present):
                raise Invalid(f"policy already exists: {name}")
            if len(present) >= MAX_POLICIES:
                raise Invalid(f"there are {MAX_POLICIES} policies already")
            return [*present, dict(fields)]

        await self._change(caller, edit, "policy_added", name, f"added {name}", seen, address)
        return name

    async def update(
        self, caller: Caller, name: str, fields: Mapping[str, object], *, seen: int | None = None, address: str = ""
    ) -> str:
        """Instead of the policy of this name, at its place; returns its name now."""
        wanted = str(fields.get("name", ""))

        def edit(present: list[dict[str, object]]) -> list[dict[str, object]]:
            at = _place(present, name)
            if wanted != name and any(one["name"] == wanted for one in present):
                raise Invalid(f"policy already exists: {wanted}")
            return [*present[:at], dict(fields), *present[at + 1 :]]

        await self._change(caller, edit, "policy_updated", wanted, f"changed {name}", seen, address)
        return wanted

    async def delete(self, caller: Caller, name: str, *, seen: int | None = None, address: str = "") -> None:
        def edit(present: list[dict[str, object]]) -> list[dict[str, object]]:
            at = _place(present, name)
            return [*present[:at], *present[at + 1 :]]

        await self._change(caller, edit, "policy_deleted", name, f"deleted {name}", seen, address)

    async def move(
        self, caller: Caller, name: str, position: int, *, seen: int | None = None, address: str = ""
    ) -> None:
        """To this place in the written order, counted from 0."""

        def edit(present: list[dict[str, object]]) -> list[dict[str, object]]:
            at = _place(present, name)
            rest = [*present[:at], *present[at + 1 :]]
            to = max(0, min(position, len(rest)))
            return [*rest[:to], present[at], *rest[to:]]

        await self._change(caller, edit, "policies_reordered", name, f"moved {name}", seen, address)

    async def import_document(self, caller: Caller, raw: bytes, *, seen: int | None = None, address: str = "") -> int:
        """A whole policy file instead of what there is. Returns how many policies it has."""
        if len(raw) > POLICY_BYTES:
            raise Invalid(f"the file is larger than {POLICY_BYTES} bytes")
        try:
            policies = await self._parse(raw)
        except ValueError as problem:
            raise Invalid(str(problem)) from None
        await self._change(
            caller, lambda present: policies.fields(), "policies_imported", "", "imported a file", seen, address
        )
        return len(policies)

    async def revert(self, caller: Caller, number: int, *, seen: int | None = None, address: str = "") -> None:
        """The policies of an older version, as a new one."""
        _must_be_admin(caller)
        if not self.editable:
            raise PoliciesFromFile
        document = (await self.version(caller, number)).document
        try:
            policies = await self._parse(document.encode())
        except ValueError as problem:
            raise Invalid(str(problem)) from None
        note = f"version {number} again"
        await self._change(
            caller, lambda present: policies.fields(), "policies_reverted", f"version {number}", note, seen, address
        )

    async def _change(
        self, caller: Caller, edit: Edit, word: str, subject: str, note: str, seen: int | None, address: str
    ) -> None:
        _must_be_admin(caller)
        if not self.editable:
            raise PoliciesFromFile
        for _ in range(ATTEMPTS):
            await self.refresh()
            before = self._policies
            if self._known.problem:
                raise PoliciesChanged
            if seen is not None and seen != before.version:
                raise PoliciesChanged
            try:
                policies, document = await self._in_thread(partial(_edited, before, edit))
            except ValueError as problem:
                raise Invalid(str(problem)) from None
            version = before.version + 1
            try:
                saved = await self._store.save_policies(
                    document,
                    seen=before.version,
                    author=caller.username,
                    note=note,
                    now=self._now(),
                    events=[self._event(caller.username, word, subject or f"version {version}", address)],
                    history=[HistoryEntry(at=self._now(), username=caller.username, action="config_changed")],
                )
            except Conflict:
                continue
            self._set(saved, policies)
            self._journal.info(
                "POLICY_CHANGED", user=caller.username, what=word, policy=subject, version=version, remote_addr=address
            )
            return
        raise PoliciesChanged

    def _event(self, username: str, word: str, subject: str, address: str) -> ConfigChanged:
        return ConfigChanged(at=self._now(), username=username, actor=word, reason=subject, remote_addr=address)


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
# Versions that the page shows at once.
HISTORY_LINES = 20


def _differ(raw: bytes, policies: Policies) -> bool:
    """:raise ValueError: the file cannot be understood."""
    return Policies.parse(raw).fields() != policies.fields()


def _edited(before: Policies, edit: Edit) -> tuple[Policies, str]:
    """The policies, and how they are stored. :raise ValueError: they cannot be understood."""
    policies = Policies.from_fields(edit(before.fields()))
    return policies, policies.to_json()


def _parsed(raw: bytes | None) -> Policies:
    return Policies.empty() if raw is None else Policies.parse(raw)


def _place(present: Sequence[Mapping[str, object]], name: str) -> int:
    for number, one in enumerate(present):
        if one["name"] == name:
            return number
    raise UnknownPolicy


def _obstacle(required: Requirement, person: Approver, owner: str) -> str:
    """The key of the refusal that a fresh sign-in would not help against; empty: the approval would count."""
    challenge = Challenge(
        id="",
        user_code="",
        username=owner,
        hostname="",
        reason="",
        created_at=_NEVER,
        expires_at=_NEVER,
        policy_name="",
        require_admin=required.require_admin,
        forbid_self_approval=required.forbid_self_approval,
        approver_groups=required.approver_groups,
    )
    if not verdict.may_see(challenge, person):
        return "not_authorized_message"
    try:
        verdict.may_approve(challenge, person, required, _NEVER, owner_disabled=False)
    except Refused as refusal:
        return refusal.key
    return "" if required.window_ok else "outside_approval_window"


def _must_be_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise Forbidden


def preview_json(preview: Preview) -> dict[str, object]:
    """The answer of ``GET /api/policy/preview`` (spec/http-api section 11)."""
    required = preview.requirement
    value: dict[str, object] = {
        "auto_approve_grace": required.auto_approve_grace,
        "min_approvals": required.min_approvals,
        "policy_name": required.policy_name,
        "require_admin": required.require_admin,
        "time_window_ok": required.window_ok,
    }
    if required.window:
        value["allowed_window"] = required.window
    if required.break_glass_bypass:
        value["break_glass_bypass"] = True
    if preview.host_group:
        value["host_group"] = preview.host_group
    if required.notify_channels:
        value["notify_channels"] = list(required.notify_channels)
    if required.require_fresh is not None:
        value["require_fresh_oidc"] = durations.render(required.require_fresh)
    if required.forbid_self_approval:
        value["forbid_self_approval"] = True
    if required.approver_groups:
        value["approver_groups"] = list(required.approver_groups)
    if required.max_grace is not None:
        value["max_grace"] = durations.render(required.max_grace)
    return value


def preview_in_full(preview: Preview) -> dict[str, object]:
    """The answer of ``POST /api/policy/preview``: also why, and who could approve."""
    explanation = json.loads(preview.requirement.explanation.to_json())
    return {
        **preview_json(preview),
        "at": preview.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "because": explanation["because"],
        "asks": explanation["asks"],
        "who": None
        if preview.people is None
        else [{"username": name, "may": not key, "why_not": key} for name, key in preview.people],
        "who_more": preview.more,
    }
