"""
``identree add-host``, ``change-host``, ``remove-host``, ``list-hosts``, ``rotate-host-secret`` and ``enrol``: the host
registry from the command line, beside a running server or without one (spec/host-agent section 15).

Standard output has the secret, the token or the list and nothing else, so that scripts can take it; all other text goes
to standard error. The exit status is 0 or 1.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from identree.app.statefiles import BadStateFile
from identree.core import durations
from identree.core.errors import Invalid, Refused, SchemaTooNew, StorageUnavailable
from identree.core.hosts import FirstHost, HostExists, RegistryOff, UnknownHost
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings

if TYPE_CHECKING:
    from identree.app.registry import By, LiveRegistry, Registrar

T = TypeVar("T")

USAGE: Mapping[str, str] = {
    "add-host": "identree add-host HOST [--users alice,bob] [--group LABEL] [--yes]",
    "change-host": "identree change-host HOST [--users alice,bob] [--group LABEL | --no-group]",
    "remove-host": "identree remove-host HOST",
    "list-hosts": "identree list-hosts [--json]",
    "rotate-host-secret": "identree rotate-host-secret HOST",
    "enrol": "identree enrol HOST [--users alice,bob] [--group LABEL] [--ttl 1h] [--again] [--yes]",
}
HELP: Mapping[str, str] = {
    "add-host": "Register a host and print the secret that it has to itself. Without --users everybody may ask there.",
    "change-host": "Change who may ask on a registered host (--users '*': everybody), or its group.",
    "remove-host": "Refuse a host from now on: its secret and its certificate count no longer.",
    "list-hosts": "Print the registered hosts.",
    "rotate-host-secret": "Print a new secret for a host; the one that it has is void at once.",
    "enrol": "Print a token with which a host can fetch a secret of its own, once, at /api/enrol. With --again also a "
    "host that is registered: its secret is replaced then.",
}
# Options that have a value, and those that have none.
_VALUES: Mapping[str, frozenset[str]] = {
    "add-host": frozenset({"--users", "--group"}),
    "change-host": frozenset({"--users", "--group"}),
    "enrol": frozenset({"--users", "--group", "--ttl"}),
}
_SWITCHES: Mapping[str, frozenset[str]] = {
    "add-host": frozenset({"--yes"}),
    "change-host": frozenset({"--no-group"}),
    "list-hosts": frozenset({"--json"}),
    "enrol": frozenset({"--again", "--yes"}),
}
_LONGEST_ANSWER = 100

FIRST = """\
No host was ever registered. With the first one the registry comes into force: from then on every host that is not
registered is refused, also those that know the shared secret. Register the others right after, with identree add-host
or identree enrol. To prepare the registry before it comes into force, set IDENTREE_HOST_REGISTRY=off meanwhile."""


class _Usage(Exception):
    """The words of the command are off; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The words of a command, sorted out."""

    host: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    switches: frozenset[str] = frozenset()

    @property
    def users(self) -> list[str] | None:
        text = self.values.get("--users")
        return None if text is None else [name.strip() for name in text.split(",")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """What a command works with, once the database is open."""

    settings: Settings
    registry: LiveRegistry
    registrar: Registrar
    by: By


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the commands; returns the exit status."""
    try:
        words = _sorted_out(command, arguments)
    except _Usage as problem:
        _say(f"identree {command}: {problem}\nusage: {USAGE[command]}")
        return 1
    if words is None:
        print(f"usage: {USAGE[command]}\n\n{HELP[command]}")
        return 0
    try:
        settings = load(os.environ)
    except SettingsError as mistakes:
        _say(f"identree: the settings cannot be used:\n{mistakes}")
        return 1
    try:
        return _with_registry(settings, command, lambda desk: _COMMANDS[command](desk, words))
    except Refused as refusal:
        _say(f"identree {command}: {_reason(refusal)}")
    except (StorageUnavailable, SchemaTooNew) as problem:
        _say(f"identree {command}: the database cannot be used, nothing was changed: {problem}")
    except BadStateFile as problem:
        _say(
            f"identree {command}: the host registry of an earlier version has to be taken over first, and cannot be: "
            f"{problem}"
        )
    except (ValueError, OSError) as problem:
        _say(f"identree {command}: {problem}")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _sorted_out(command: str, arguments: Sequence[str]) -> _Words | None:
    """None: help is wanted. Words after the host are ignored, as they always were. :raise _Usage:"""
    valued, switches = _VALUES.get(command, frozenset()), _SWITCHES.get(command, frozenset())
    values: dict[str, str] = {}
    given: set[str] = set()
    hosts: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            return None
        if not word.startswith("-"):
            hosts.append(word)
        elif name in valued:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise _Usage(f"{name} needs a value")
                value = rest.pop(0)
            if not value:
                raise _Usage(f"{name} needs a value")
            values[name] = value
        elif word in switches:
            given.add(word)
        else:
            raise _Usage(f"unknown option {name}")
    if not hosts and command != "list-hosts":
        raise _Usage("which host?")
    if command == "change-host" and not values and not given:
        raise _Usage("nothing to change")
    if "--group" in values and "--no-group" in given:
        raise _Usage("--group or --no-group?")
    return _Words(host=hosts[0] if hosts else "", values=values, switches=frozenset(given))


def _reason(refusal: Refused) -> str:
    if isinstance(refusal, HostExists):
        return f"{refusal.detail} is registered already; see identree rotate-host-secret and identree enrol --again"
    if isinstance(refusal, UnknownHost):
        return f"{refusal.detail} is not registered; identree list-hosts shows who is"
    if isinstance(refusal, FirstHost):
        return f"nothing was changed.\n{FIRST}\nIf that is what you want, run the command again with --yes."
    if isinstance(refusal, RegistryOff):
        return "the registry is switched off (IDENTREE_HOST_REGISTRY=off), so hosts have no secrets of their own"
    return refusal.detail or refusal.key


# -- the database -----------------------------------------------------------------------------------------------------
def _with_registry(settings: Settings, command: str, work: Callable[[_Desk], Awaitable[int]]) -> int:
    from twisted.internet.defer import Deferred
    from twisted.internet.threads import deferToThreadPool

    from identree.app.registry import By, LiveRegistry, Registrar, RegistryFile
    from identree.directoryparts import beside_the_server
    from identree.storage.store import SqlStore

    async def whole(store: SqlStore, reactor: Any) -> int:
        def in_thread(function: Callable[[], Any]) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), function)

        registry = LiveRegistry(
            store=store,
            mode=settings.host_registry,
            file=RegistryFile(settings.host_registry_file),
            clock=reactor,
            in_thread=in_thread,
            takes_events=False,
        )
        await registry.load()
        if registry.taken_over:
            _say(f"{registry.taken_over} hosts of {settings.host_registry_file} were taken over into the database")
        registrar = Registrar(
            store=store,
            registry=registry,
            now=lambda: datetime.fromtimestamp(reactor.seconds(), UTC),
            token=secrets.token_hex,
            outside=True,
        )
        by = By(name=account(), reason=f"identree {command}")
        status = await work(_Desk(settings=settings, registry=registry, registrar=registrar, by=by))
        if registry.file_trouble and command != "list-hosts":
            _say(
                f"The database has the change. The export {settings.host_registry_file} was not written "
                f"({registry.file_trouble}); a running server does it."
            )
        return status

    return beside_the_server(settings, whole)


def account() -> str:
    """Whose command it is, for the audit record: the account of this process, or who became root by sudo."""
    uid = os.getuid()
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
        return os.environ.get("SUDO_USER", "")[:64] or name if uid == 0 else name
    return f"uid {uid}"


# -- the commands -----------------------------------------------------------------------------------------------------
async def _confirmed(words: _Words, work: Callable[[bool], Awaitable[T]]) -> T:
    """:param work: told whether the host may be the first one. :raise FirstHost: it is, and nobody agreed."""
    if "--yes" in words.switches:
        return await work(True)
    try:
        return await work(False)
    except FirstHost:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
    sys.stderr.write(f"{FIRST}\nGo on? [y/N] ")
    sys.stderr.flush()
    # nothing else waits in this process
    answer = sys.stdin.readline(_LONGEST_ANSWER)
    if answer.strip().lower() not in ("y", "yes"):
        raise FirstHost
    return await work(True)


def _give(text: str, remedy: str) -> int:
    """
    The one line of standard output.

    :param remedy: what to do when it cannot be written, since the text is nowhere else.
    """
    try:
        print(text, flush=True)
    except OSError as problem:
        _say(f"identree: standard output cannot be written ({problem.strerror}); {remedy}")
        # Python would complain once more at the end
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    return 0


def _client_conf(host: str, secret: str) -> str:
    # on a terminal the line can be copied; elsewhere standard error is often kept, and is no place for a secret
    both = sys.stdout.isatty() and sys.stderr.isatty()
    line = f"IDENTREE_SHARED_SECRET={secret if both else '<what standard output has>'}"
    return f"In /etc/identree/client.conf of {host}:\n  {line}"


def _users(users: Sequence[str]) -> str:
    return "everybody (*)" if "*" in users else ", ".join(users) or "nobody"


async def _add(desk: _Desk, words: _Words) -> int:
    group = words.values.get("--group", "")
    entry, secret = await _confirmed(
        words, lambda first: desk.registrar.add(words.host, words.users, group, desk.by, first=first)
    )
    _say(f"Host registered: {entry.name}\nUsers: {_users(sorted(entry.users))}")
    if entry.group:
        _say(f"Group: {entry.group}")
    _say(_client_conf(entry.name, secret))
    if desk.settings.host_registry == "off":
        _say("The registry is switched off (IDENTREE_HOST_REGISTRY=off): the secret counts once it is on.")
    return _give(secret, f"run identree rotate-host-secret {entry.name}")


async def _change(desk: _Desk, words: _Words) -> int:
    group = "" if "--no-group" in words.switches else words.values.get("--group")
    await desk.registrar.change(words.host, words.users, group, desk.by)
    entry = desk.registry.stored.entry(words.host)
    if entry is not None:
        _say(f"{entry.name}: users {_users(sorted(entry.users))}; group {entry.group or 'none'}")
    return 0


async def _remove(desk: _Desk, words: _Words) -> int:
    name = await desk.registrar.remove(words.host, desk.by)
    _say(f"Host removed: {name}")
    if not len(desk.registry.stored) and desk.settings.host_registry == "auto":
        _say(
            "No host is registered any more, and now every host is refused. To let all hosts in by the shared secret, "
            "set IDENTREE_HOST_REGISTRY=off and restart identree."
        )
    return 0


async def _list(desk: _Desk, words: _Words) -> int:
    entries = desk.registry.stored.entries
    if "--json" in words.switches:
        listed = [
            {
                "hostname": entry.name,
                "users": sorted(entry.users),
                "group": entry.group,
                "registered_at": _iso(entry.registered_at),
                "cert_expires_at": _iso(entry.certificate_ends),
            }
            for entry in entries
        ]
        return _give(json.dumps(listed, indent=2), "run it again")
    if not entries:
        _say("No hosts are registered.")
        return 0
    return _give("\n".join(map(_line, entries)), "run it again")


def _line(entry: Any) -> str:
    date = entry.registered_at.strftime("%Y-%m-%d") if entry.registered_at else "0001-01-01"
    return f"{entry.name}  users={','.join(sorted(entry.users))}  registered={date}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")


async def _rotate(desk: _Desk, words: _Words) -> int:
    name, secret = await desk.registrar.rotate(words.host, desk.by)
    _say(f"New secret for {name}; the old one is void.")
    _say(_client_conf(name, secret))
    return _give(secret, f"run identree rotate-host-secret {name} again")


async def _enrol(desk: _Desk, words: _Words) -> int:
    from identree.app.registry import DEFAULT_LIFE, expires_text

    life = DEFAULT_LIFE
    if "--ttl" in words.values:
        try:
            life = durations.parse(words.values["--ttl"])
        except ValueError as problem:
            raise Invalid(f"--ttl: {problem}") from None
    token, text = await _confirmed(
        words,
        lambda first: desk.registrar.enrolment_token(
            words.host,
            desk.by,
            users=words.users,
            group=words.values.get("--group", ""),
            life=life,
            again="--again" in words.switches,
            first=first,
        ),
    )
    _say(
        f"Enrolment token for {token.hostname}, good once, until {expires_text(token.expires_at)}.\n"
        f"The host gets its own secret for it at {desk.settings.external_url}/api/enrol"
    )
    return _give(text, f"run identree enrol {token.hostname} again")


_COMMANDS: Mapping[str, Callable[[_Desk, _Words], Awaitable[int]]] = {
    "add-host": _add,
    "change-host": _change,
    "remove-host": _remove,
    "list-hosts": _list,
    "rotate-host-secret": _rotate,
    "enrol": _enrol,
}
