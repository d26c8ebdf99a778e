"""
``identree escrow rekey``: give the passwords of the local escrow back end another encryption key.

A password is replaced only by one that has been opened again with the new key, and only if the database still has the
one that was read. So the command may be stopped at any time and begun again, beside a running server: the old key opens
what is not done yet, and each run first looks which is which.
"""

from __future__ import annotations

import argparse
import os
import secrets
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from identree.clients.escrow.local import NONCE_BYTES, SealingKey, Unreadable
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings
from identree.storage.interface import MOST_RESEALED, Ciphertext, Resealed

KEY_FILE_BYTES = 4096
# Hosts named in the report of what cannot be read; the others are counted.
MOST_NAMED = 50
# A running server may seal more passwords with the old key meanwhile; more rounds than this mean that it does so faster
# than they can be changed, or that the database changes back what was written.
MOST_ROUNDS = 10


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


# -- the command ------------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit status: 0 all passwords have the new key, 1 some have not, 2 nothing could be done."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as done:
        return int(done.code or 0)
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
    from identree.core.errors import SchemaTooNew, StorageUnavailable
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
