"""
``identree escrow show`` and ``identree escrow rekey``: the local escrow back end's passwords from the command line.

``show`` is for the day when no server runs: with this back end the passwords are in the server's own database, and
nothing else has them. One is printed only after it is on record that it was.

``rekey`` gives all of them another encryption key. A password is replaced only by one that has been opened again with
the new key, and only if the database still has the one that was read. So the command may be stopped at any time and
begun again, beside a running server: the old key opens what is not done yet, and each run first looks which is which.
"""

from __future__ import annotations

import argparse
import os
import secrets
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from identree.clients.escrow.local import NONCE_BYTES, SealingKey, Unreadable
from identree.core import names
from identree.core.challenge import HistoryEntry, Live
from identree.core.errors import Invalid, SchemaTooNew, StorageUnavailable
from identree.core.escrow import checked_hostname, infisical_name, item_title, place_of, web_link
from identree.core.events import Event, RevealedBreakglass
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings
from identree.storage.interface import MOST_RESEALED, Ciphertext, EscrowRecord, Resealed
from identree.storage.sqlite import parse_dsn

KEY_FILE_BYTES = 4096
# Hosts named in the report of what cannot be read; the others are counted.
MOST_NAMED = 50
# A running server may seal more passwords with the old key meanwhile; more rounds than this mean that it does so faster
# than they can be changed, or that the database changes back what was written.
MOST_ROUNDS = 10
# Of a password that is shown: how the record tells it from one that the hosts page showed.
SHOWN_BY = " (identree escrow show)"
# Hosts that may have been meant, when the one that was named has no password.
MOST_SIMILAR = 5
# What a password is found and opened with. Mistakes in other settings must not hide it on the day when it is needed.
_SHOW_NEEDS = frozenset(
    {
        "DATABASE_DRIVER",
        "DATABASE_DSN",
        "ESCROW_BACKEND",
        "ESCROW_COMMAND",
        "ESCROW_ENCRYPTION_KEY",
        "ESCROW_HKDF_SALT",
        "ESCROW_ROTATE_AFTER_REVEAL",
    }
)


class Texts(Protocol):
    """Of the store, what is needed here."""

    async def ciphertexts(self, after: str = "", limit: int = 100) -> list[Ciphertext]: ...

    async def replace_ciphertexts(self, changes: Sequence[Resealed]) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    What a run has done.

    :ivar changed: passwords that have the new key since this run.
    :ivar good: all that the new key opens, read back from the database after the last change.
    :ivar unreadable: host names whose passwords no key opens, at most :data:`MOST_NAMED`, and how many there are.
    :ivar left: still under an old key: to be changed, in a dry run.
    """

    changed: int
    good: int
    unreadable: tuple[str, ...]
    unreadable_count: int
    left: int


async def rekey(
    store: Texts,
    *,
    old: Sequence[SealingKey],
    new: SealingKey,
    random_bytes: Callable[[int], bytes],
    dry_run: bool = False,
) -> Report:
    """
    Until a whole round through the database finds nothing under an old key, so that the last one is also the proof.

    :raise StorageUnavailable: what was done stays done; begin again.
    :raise RuntimeError: a password that was sealed cannot be opened again, or the database will not keep it; nothing
        was lost.
    """
    changed = 0
    for _ in range(MOST_ROUNDS):
        after, good, left, count = "", 0, 0, 0
        unreadable: list[str] = []
        while rows := await store.ciphertexts(after, MOST_RESEALED):
            after = rows[-1].hostname
            changes: list[Resealed] = []
            for row in rows:
                if _opened(row, [new]) is not None:
                    good += 1
                    continue
                password = _opened(row, old)
                if password is None:
                    count += 1
                    unreadable += [row.hostname] if len(unreadable) < MOST_NAMED else []
                    continue
                changes.append(_resealed(row, password, new, random_bytes))
            left += len(changes)
            if changes and not dry_run:
                changed += len(await store.replace_ciphertexts(changes))
        report = Report(changed=changed, good=good, unreadable=tuple(unreadable), unreadable_count=count, left=left)
        if dry_run or not left:
            return report
    raise RuntimeError(
        f"after {MOST_ROUNDS} rounds {report.left} passwords are still under the old key; is the server storing new "
        "ones all the time? Begin again, or stop it first"
    )


def _opened(row: Ciphertext, keys: Sequence[SealingKey]) -> str | None:
    for key in keys:
        try:
            return key.open(row.hostname, row.text)
        except Unreadable:
            continue
    return None


def _resealed(row: Ciphertext, password: str, new: SealingKey, random_bytes: Callable[[int], bytes]) -> Resealed:
    text = new.seal(row.hostname, password, random_bytes(NONCE_BYTES))
    try:
        same = new.open(row.hostname, text) == password
    except Unreadable:
        same = False
    if not same:
        raise RuntimeError(
            f"the password of {row.hostname} could not be read back with the new key; it was left as it is"
        )
    return Resealed(hostname=row.hostname, before=row.text, after=text)


# -- showing one ------------------------------------------------------------------------------------------------------
class Records(Protocol):
    """Of the store, what showing a password needs."""

    async def escrow_record(self, hostname: str) -> EscrowRecord | None: ...

    async def escrow_records(self, after: str = "", limit: int = 1000) -> list[EscrowRecord]: ...

    async def ciphertext(self, hostname: str) -> str | None: ...

    async def record_reveal(
        self,
        entry: HistoryEntry,
        event: Event,
        rotate_at: datetime | None,
        live: Sequence[Live],
        *,
        outside: bool = False,
    ) -> None: ...


class NotShown(Exception):
    """There is no password to show, and none is on record as shown; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    Who wants to see which password, and why.

    :ivar hostname: normalised.
    :ivar account: whose request it is.
    :ivar reason: of valid form, not empty.
    :ivar rotates: the host is to replace the password afterwards.
    :ivar terminal: a person's terminal is to show it, which obeys control characters.
    """

    hostname: str
    account: str
    reason: str
    rotates: bool
    terminal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """:ivar escrowed_at: when the host stored it."""

    password: str = field(repr=False)
    escrowed_at: datetime


async def show(store: Records, key: SealingKey, request: Request, now: datetime) -> Shown:
    """
    A host's password. It is on record (history, an event for the next server's audit chain, the host's rotation) in one
    commit, before anybody has it.

    :raise NotShown: see there.
    :raise StorageUnavailable: it cannot be recorded, so it is not shown.
    """
    record = await store.escrow_record(request.hostname)
    if record is None:
        raise NotShown(await _none_of(store, request.hostname))
    text = await store.ciphertext(record.hostname)
    if text is None:
        raise NotShown(
            f"the password of {record.hostname} is not in the database; it was stored with another back end, so look "
            "there"
        )
    try:
        password = key.open(record.hostname, text)
    except Unreadable as problem:
        raise NotShown(
            f"the password of {record.hostname} cannot be read: {problem}; check IDENTREE_ESCROW_ENCRYPTION_KEY and "
            "IDENTREE_ESCROW_HKDF_SALT, which must be those of the server"
        ) from None
    if not password:
        raise NotShown(f"what is stored for {record.hostname} is an empty password; rotate it on the host")
    if request.terminal and not password.isprintable():
        # the host chose it, and may not be what it was
        raise NotShown(
            f"the password of {record.hostname} has control characters, which a terminal would obey; write it to a "
            "file, with --print and > FILE"
        )
    reason = request.reason[: names.REASON_LENGTH - len(SHOWN_BY)] + SHOWN_BY
    about: dict[str, Any] = {
        "at": now,
        "username": request.account,
        "hostname": request.hostname,
        "actor": request.account,
        "reason": reason,
    }
    # later than the second in which it was stored, or the host takes it for one that is new enough
    rotate_at = max(now, record.escrowed_at + timedelta(seconds=1)) if request.rotates else None
    await store.record_reveal(
        HistoryEntry(action="revealed_breakglass", **about),
        RevealedBreakglass(**about),
        rotate_at,
        [Live(event="host_changed", username=request.account)],
        outside=True,
    )
    return Shown(password=password, escrowed_at=record.escrowed_at)


async def _none_of(store: Records, hostname: str) -> str:
    """That there is no password of the host, with the hosts that may have been meant."""
    below = f"{hostname}."
    found = [one.hostname for one in await store.escrow_records(hostname, MOST_SIMILAR)]
    similar = [name for name in found if name.startswith(below)]
    first = hostname.partition(".")[0]
    if first != hostname and await store.escrow_record(first) is not None:
        similar.append(first)
    meant = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return f"there is no password of {hostname} in this database{meant}"


# -- the commands -----------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str]) -> int:
    """
    Run one; returns the exit status. Of ``rekey``: 0 all passwords have the new key, 1 some have not, 2 nothing could
    be done. Of ``show``: 0 it is on standard output, 1 there is none that could be shown, 2 it could not begin.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    return _show(options) if options.command == "show" else _rekey(options)


def _show(options: argparse.Namespace) -> int:
    from identree.directoryparts import beside_the_server
    from identree.registrycli import account

    try:
        request = _request(options)
        settings = _settings_to_show(request.hostname)
        key = SealingKey.derived(settings.escrow_encryption_key, settings.escrow_hkdf_salt)
    except (Invalid, ValueError) as problem:
        _say(f"identree escrow show: {problem}")
        return 2
    request = replace(request, account=account(), rotates=settings.escrow_rotate_after_reveal)
    try:
        shown: Shown = beside_the_server(
            settings,
            lambda store, reactor: show(store, key, request, datetime.fromtimestamp(reactor.seconds(), UTC)),
        )
    except (StorageUnavailable, SchemaTooNew) as problem:
        _say(f"identree escrow show: the database cannot be used, so nothing is shown: {problem}")
        return 1
    except (NotShown, ValueError, OSError) as problem:
        _say(f"identree escrow show: {problem}")
        return 1
    _say(
        f"Password of {request.hostname}, stored {shown.escrowed_at:%Y-%m-%d %H:%M:%S} UTC. It is on record that "
        f"{request.account} was shown it."
    )
    _say(
        "The host replaces it at its next contact with a server that has this database."
        if request.rotates
        else "It stays: IDENTREE_ESCROW_ROTATE_AFTER_REVEAL=false. Rotate it when it is not needed any more."
    )
    try:
        print(shown.password, flush=True)
    except (OSError, UnicodeEncodeError) as problem:
        _say(f"identree escrow show: standard output cannot be written ({_why(problem)}); run it again")
        # Python would complain once more at the end
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    return 0


def _request(options: argparse.Namespace) -> Request:
    """:raise Invalid, ValueError: the words of the command are off; says how."""
    hostname = checked_hostname(names.hostname(options.host))
    reason = names.reason(options.reason)
    if not reason:
        raise Invalid("--reason: say why the password is needed; it goes on record")
    terminal = sys.stdout.isatty()
    if not terminal and not options.print:
        raise Invalid("standard output is not a terminal, and may be kept somewhere; if that is meant, add --print")
    return Request(hostname=hostname, account="", reason=reason, rotates=True, terminal=terminal)


def _settings_to_show(hostname: str) -> Settings:
    """:raise Invalid: they lead to no password of the local back end; says what to do, or where to look."""
    try:
        settings = load(os.environ)
    except SettingsError as mistakes:
        settings = mistakes.settings
        if _SHOW_NEEDS & mistakes.wrong.keys() or not (settings.escrow_backend or settings.escrow_command):
            raise Invalid(f"the settings cannot be used:\n{mistakes}") from None
        _say(f"identree: these settings are wrong, which does not matter here:\n{mistakes}")
    if settings.escrow_backend != "local" or settings.escrow_command:
        raise Invalid(_elsewhere(settings, hostname))
    if settings.database_driver == "sqlite":
        path = parse_dsn(settings.database_dsn).path
        if not os.path.exists(path):
            # it would be made, and the server might not be able to use what this account has made
            raise Invalid(f"there is no database {path}; set IDENTREE_DATABASE_DSN to the server's, or to a copy of it")
    return settings


def _elsewhere(settings: Settings, hostname: str) -> str:
    """Where the password is, if not here."""
    backend, place = settings.escrow_backend, place_of(hostname, settings.escrow_vault_map, settings.escrow_path)
    if settings.escrow_command:
        return (
            "IDENTREE_ESCROW_COMMAND stores the passwords, and only what it calls can show them; look there for "
            f"BREAKGLASS_HOSTNAME={hostname}"
        )
    if not backend:
        return (
            "no escrow back end is set (IDENTREE_ESCROW_BACKEND), so the password is only with whom rotate-breakglass "
            "has printed it for"
        )
    item = {
        "vault": f"the field password of {place.strip('/')}/{hostname}",
        "1password-connect": f"the item {item_title(hostname)} of the vault {place}",
        "bitwarden": f"the secret {item_title(hostname)} of {place}",
        "infisical": f"the secret {infisical_name(hostname)} of {place}, in /",
    }.get(backend, f"what it has of {hostname}")
    link = web_link(backend, url=settings.escrow_url, web_url=settings.escrow_web_url, place=place, hostname=hostname)
    return (
        f"the passwords are not in identree's database but with {backend}. Look at {settings.escrow_url} for {item}"
        + (f"\n{link}" if link else "")
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _why(problem: Exception) -> str:
    return (problem.strerror or "") if isinstance(problem, OSError) else "its encoding lacks some of the characters"


def _rekey(options: argparse.Namespace) -> int:
    try:
        settings = load(os.environ)
    except SettingsError as mistakes:
        print(f"identree: the settings cannot be used:\n{mistakes}", file=sys.stderr)
        return 2
    try:
        current_salt = settings.escrow_hkdf_salt
        key = settings.escrow_encryption_key
        current = SealingKey.derived(key, current_salt) if key else None
        new_salt = current_salt if options.new_salt is None else options.new_salt
        new = SealingKey.derived(_read_key(options.new_key_file), new_salt)
        old = [current] if current is not None else []
        if options.old_key_file:
            old_salt = current_salt if options.old_salt is None else options.old_salt
            old.append(SealingKey.derived(_read_key(options.old_key_file), old_salt))
        elif options.old_salt is not None:
            raise ValueError("--old-salt goes with --old-key-file")
    except (OSError, ValueError) as problem:
        print(f"identree: {_reason(problem)}", file=sys.stderr)
        return 2
    keys = [one for one in old if one != new]
    if not keys:
        print(
            "identree: the new key is the one that is set already, or no old one is known. To change what is still "
            "under an older one, name that with --old-key-file",
            file=sys.stderr,
        )
        return 2
    return _run(
        settings,
        keys,
        new,
        dry_run=options.dry_run,
        other_salt=new_salt != current_salt,
        set_already=current == new,
    )


def _run(
    settings: Settings,
    old: Sequence[SealingKey],
    new: SealingKey,
    *,
    dry_run: bool,
    other_salt: bool,
    set_already: bool,
) -> int:
    from identree.directoryparts import beside_the_server

    try:
        report: Report = beside_the_server(
            settings,
            lambda store, reactor: rekey(store, old=old, new=new, random_bytes=secrets.token_bytes, dry_run=dry_run),
        )
    except (StorageUnavailable, SchemaTooNew, RuntimeError, ValueError, OSError) as problem:
        print(f"identree: {problem}\nWhat is done stays done; run the same command again.", file=sys.stderr)
        return 2
    if dry_run:
        print(f"{report.left} passwords would get the new key, {report.good} have it already")
    else:
        print(f"{report.changed} passwords have got the new key; {report.good} have it in all, each one read back")
    if report.unreadable_count:
        more = report.unreadable_count - len(report.unreadable)
        names = ", ".join(report.unreadable) + (f" and {more} more" if more else "")
        print(
            f"identree: {report.unreadable_count} can be opened by none of the keys and were left as they are: "
            f"{names}.\nIf an older key still exists, run this again with --old-key-file; otherwise rotate the "
            "passwords of these hosts.",
            file=sys.stderr,
        )
    if not dry_run and not set_already:
        print(
            "Now set IDENTREE_ESCROW_ENCRYPTION_KEY to the new key"
            + (" and IDENTREE_ESCROW_HKDF_SALT to the new salt" if other_salt else "")
            + ", and restart the server (all replicas).\nThen run this once more with --old-key-file: it changes what "
            "was stored between now and the restart.\nKeep the old key for as long as you keep backups of the database."
        )
    return 1 if report.unreadable_count else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="identree escrow",
        description="Passwords of the local escrow back end. Keys are read from files, never from the command line, "
        "where everybody on the machine could see them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "show",
        help="print the password of a host, also while no server runs; it goes on record first",
        description="Standard output has the password and nothing else. The next server that runs on this database "
        "takes the record into its audit stream, and has the host replace the password.",
    )
    one.add_argument("host", metavar="HOST")
    one.add_argument("--reason", required=True, metavar="TEXT", help="why it is needed; it goes on record")
    one.add_argument("--print", action="store_true", help="also where standard output is no terminal")
    one = commands.add_parser(
        "rekey",
        help="seal all passwords with another key; safe to interrupt and to repeat, the server may run",
        description="The key that is set now opens what is there. A password is replaced only after it was read back "
        "with the new key.",
    )
    one.add_argument("--new-key-file", required=True, metavar="FILE", help="has the new key: 32 characters or more")
    one.add_argument(
        "--new-salt", metavar="HEX", help="the new IDENTREE_ESCROW_HKDF_SALT, 16 bytes or more; as set now if left out"
    )
    one.add_argument(
        "--old-key-file", metavar="FILE", help="another key that opens passwords, besides the one that is set"
    )
    one.add_argument("--old-salt", metavar="HEX", help="its salt; as set now if left out, empty for the fixed one")
    one.add_argument("--dry-run", action="store_true", help="only say how many passwords have which key")
    return parser


def _read_key(path: str) -> str:
    """:raise OSError, ValueError: the file has no usable key; says why, without quoting it."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        raw = file.read(KEY_FILE_BYTES + 1)
    if len(raw) > KEY_FILE_BYTES:
        raise ValueError(f"{path} is longer than {KEY_FILE_BYTES} bytes; it must have the key and nothing else")
    try:
        key = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; a key such as from openssl rand -hex 32 is needed") from None
    if key != key.strip() or not key.isprintable():
        # files of settings lose white space at the ends, and the server would derive another key
        raise ValueError(
            f"{path}: the key must be one line without white space at its ends and without control characters"
        )
    if stat.S_ISREG(mode) and mode & 0o077:
        print(f"identree: {path} can be read by others; chmod 600 is advised", file=sys.stderr)
    try:
        SealingKey.derived(key, "")
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    return key


def _reason(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return f"{problem.filename} cannot be read: {problem.strerror}"
    return str(problem)
