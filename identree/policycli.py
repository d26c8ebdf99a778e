"""
``identree policy``: approval policies from the command line (docs/policies.md). A part of the composition root.

Exit status: 0, 1 where something is not as it should be, 2 where the words or a file cannot be used.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from identree.app.statefiles import BadStateFile, read_state_file
from identree.core.errors import SchemaTooNew, StorageUnavailable
from identree.core.events import ConfigChanged
from identree.core.policy import Policies
from identree.core.policycheck import run
from identree.core.policyreplay import Asked, replay
from identree.core.policywarnings import warnings
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings
from identree.storage.interface import Conflict

FILE_BYTES = 4 << 20
LONGEST_DAYS = 3650
PAGE = 500

USAGE = """\
usage: identree policy check FILE                    load a policy file and say what is probably a mistake in it
       identree policy test FILE [--policies FILE]   run assertions about policies; without --policies about those that
                                                     the file has, else those in force
       identree policy replay [--days 30] DRAFT      what past requests would have met with the draft
       identree policy export [--version N]          the policies in force, or an older version, as a policy file
       identree policy import FILE                   put a policy file in force, as a new version
       identree policy history                       the versions that were saved"""


class _Usage(Exception):
    """The words of the command are off."""


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        work = _COMMANDS[command]
    except KeyError:
        _say(f"identree policy: there is no command {command}\n{USAGE}")
        return 2
    try:
        return work(rest)
    except _Usage as problem:
        _say(f"identree policy {command}: {problem}\n{USAGE}")
    except (BadStateFile, ValueError, OSError) as problem:
        _say(f"identree policy {command}: {problem}")
    except SettingsError as mistakes:
        _say(f"identree: the settings cannot be used:\n{mistakes}")
    except (StorageUnavailable, SchemaTooNew) as problem:
        _say(f"identree policy {command}: the database cannot be used, nothing was changed: {problem}")
    return 2


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _sorted_out(words: Sequence[str], options: Sequence[str], files: int) -> tuple[list[str], dict[str, str]]:
    """:param files: how many words there have to be beside the options."""
    found, values, rest = [], {}, list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if name in options:
            if not value:
                if not rest:
                    raise _Usage(f"{name} needs a value")
                value = rest.pop(0)
            values[name] = value
        elif word.startswith("--"):
            raise _Usage(f"unknown option {word}")
        else:
            found.append(word)
    if len(found) != files:
        raise _Usage("which file?" if len(found) < files else "too many words")
    return found, values


def _read(path: str) -> bytes:
    """
    A file of the person's own: its permissions are that person's business.

    :raise ValueError: it cannot be used.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(FILE_BYTES + 1)
    except OSError as problem:
        raise ValueError(f"{path}: {problem.strerror}") from None
    if len(raw) > FILE_BYTES:
        raise ValueError(f"{path} is larger than {FILE_BYTES} bytes")
    return raw


def _parsed(path: str) -> Policies:
    try:
        return Policies.parse(_read(path))
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def _check(words: Sequence[str]) -> int:
    [path], _ = _sorted_out(words, (), 1)
    policies = _parsed(path)
    found = warnings(policies)
    for warning in found:
        print(f"{warning.policy}: {warning.text}")
    print(f"{len(policies)} policies, {len(found)} warnings")
    return 0


def _test(words: Sequence[str]) -> int:
    [path], values = _sorted_out(words, ("--policies",), 1)
    raw = _read(path)
    policies = _parsed(values["--policies"]) if "--policies" in values else None
    if policies is None and b'"policies"' not in raw:
        policies = _with_store(lambda store, settings: _in_force(store, settings))
    try:
        results = run(raw, policies, datetime.now(UTC))
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    failed = 0
    for result in results:
        print(f"{'FAILED' if result.failures else 'ok'}  {result.name}")
        for failure in result.failures:
            print(f"        {failure}")
        failed += bool(result.failures)
    print(f"{len(results)} tests, {failed} failed")
    return 1 if failed else 0


def _replay(words: Sequence[str]) -> int:
    [path], values = _sorted_out(words, ("--days",), 1)
    text = values.get("--days", "30")
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= LONGEST_DAYS):
        raise _Usage(f"--days: a number from 1 to {LONGEST_DAYS}")
    draft = _parsed(path)
    since = datetime.now(UTC) - timedelta(days=int(text))

    async def work(store: Any, settings: Settings) -> int:
        present = await _in_force(store, settings)
        groups = await _groups(store)
        requests = await _requests(store, since)
        found = replay(requests, present, draft, lambda hostname: groups.get(hostname, ""))
        print(f"{found.requests} requests of the last {text} days; {found.different} would have met something else")
        for change, count in found.counts:
            print(f"{count:8}  {change}")
        if found.shown:
            print()
        for one in found.shown:
            at = one.asked.at.strftime("%Y-%m-%dT%H:%M:%SZ")
            print(f"{at}  {one.asked.username}@{one.asked.hostname or '-'}  {'; '.join(one.changes)}")
        if any(policy.match_commands for policy in (*present, *draft)):
            _say("Audit records do not have commands: policies with match_commands were asked as for unknown ones.")
        return 0

    return int(_with_store(work))


def _export(words: Sequence[str]) -> int:
    _files, values = _sorted_out(words, ("--version",), 0)

    async def work(store: Any, settings: Settings) -> int:
        if "--version" not in values:
            sys.stdout.write((await _in_force(store, settings)).to_json())
            return 0
        number = values["--version"]
        saved = await store.policies(int(number)) if number.isascii() and number.isdigit() else None
        if saved is None:
            _say(f"identree policy export: there is no version {number}")
            return 1
        sys.stdout.write(saved.document)
        return 0

    return int(_with_store(work))


def _import(words: Sequence[str]) -> int:
    [path], _ = _sorted_out(words, (), 1)
    policies = _parsed(path)

    async def work(store: Any, settings: Settings) -> int:
        from identree.registrycli import account

        if settings.policy_source == "file":
            _say("identree policy import: IDENTREE_POLICY_SOURCE=file: the policy file counts; change that instead")
            return 1
        newest = await store.policies()
        seen = newest.version if newest is not None else 0
        now, who = datetime.now(UTC), account()
        event = ConfigChanged(at=now, username=who, actor="policies_imported", reason=f"version {seen + 1}")
        try:
            saved = await store.save_policies(
                policies.to_json(),
                seen=seen,
                author=who,
                note=f"imported {path}"[:200],
                now=now,
                events=[event],
                outside=True,
            )
        except Conflict:
            _say("identree policy import: somebody else has saved just now; nothing was changed, run it again")
            return 1
        print(f"version {saved.version}: {len(policies)} policies; running servers take it up within seconds")
        return 0

    return int(_with_store(work))


def _history(words: Sequence[str]) -> int:
    _sorted_out(words, (), 0)

    async def work(store: Any, settings: Settings) -> int:
        for one in await store.policy_versions(limit=500):
            print(f"{one.version:6}  {one.at.strftime('%Y-%m-%dT%H:%M:%SZ')}  {one.author}  {one.note}")
        return 0

    return int(_with_store(work))


# -- the database -----------------------------------------------------------------------------------------------------
def _with_store(work: Callable[[Any, Settings], Awaitable[Any]]) -> Any:
    from identree.directoryparts import beside_the_server

    settings = load(os.environ)

    async def whole(store: Any, reactor: Any) -> Any:
        return await work(store, settings)

    return beside_the_server(settings, whole)


async def _in_force(store: Any, settings: Settings) -> Policies:
    """As a server with these settings has them."""
    if settings.policy_source != "file":
        saved = await store.policies()
        if saved is not None:
            return Policies.parse(saved.document.encode()).with_version(saved.version)
    if not settings.approval_policies_file:
        return Policies.empty()
    raw, _ = read_state_file(settings.approval_policies_file, FILE_BYTES)
    return Policies.empty() if raw is None else Policies.parse(raw)


async def _groups(store: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    after = ""
    while True:
        page = await store.registry_page(after, PAGE)
        found.update((entry.name, entry.group) for entry in page.entries)
        if len(page.entries) < PAGE:
            return found
        after = page.entries[-1].name


async def _requests(store: Any, since: datetime) -> list[Asked]:
    """Those that the database's audit records still have, of all replicas."""
    found: list[Asked] = []
    for chain in await store.chains():
        after = chain.first - 1
        while True:
            records = await store.chain_records(chain.instance, after, PAGE)
            for record in records:
                asked = _asked(json.loads(record.plain))
                if asked is not None and asked.at >= since:
                    found.append(asked)
            if len(records) < PAGE:
                break
            after = records[-1].seq
    return sorted(found, key=lambda one: (one.at, one.code))


def _asked(values: Mapping[str, Any]) -> Asked | None:
    if values.get("event") not in ("challenge_created", "auto_approved"):
        return None
    hostname = str(values.get("hostname", ""))
    return Asked(
        at=datetime.fromisoformat(str(values["timestamp"])),
        username=str(values.get("username", "")),
        hostname="" if hostname == "(unknown)" else hostname,
        code=str(values.get("code", "")),
    )


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "check": _check,
    "test": _test,
    "replay": _replay,
    "export": _export,
    "import": _import,
    "history": _history,
}
