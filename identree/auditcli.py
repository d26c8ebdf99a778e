"""
``identree audit``: verify logs, cut a span of time out of them, and look at what sinks would not take. A part of the
composition root: it knows the settings, the database and the sinks.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from identree.core import audit, durations
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings
from identree.sinks.exports import Export, Gone, Unreadable
from identree.sinks.extract import Extract
from identree.sinks.formats import FORMATS, NATIVE
from identree.storage.interface import Store

DONE, INCOMPLETE, FAILED = 0, 1, 2
# Records that are read from the database at a time.
BATCH = 500
# A log that is rotated while it is read is read again, so often.
MOST_ROTATIONS = 5
# Output is collected up to this before it is written.
OUTPUT_BYTES = 256 << 10
# What is amiss in the files is told up to this number of lines.
MOST_COMPLAINTS = 5

_DAYS = re.compile(r"([0-9]{1,6})d")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

Now = Callable[[], datetime]


def main(arguments: Sequence[str], now: Now = lambda: datetime.now(UTC)) -> int:  # noqa: TID251  a program of its own
    """Run one command; returns the exit status that its help names."""
    try:
        options = _parser(now()).parse_args(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    commands = {"verify": _verify, "export": _export, "parked": _parked}
    try:
        status = commands[options.command](options, now)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # whoever read has enough; the interpreter must not complain when it flushes at the end
        _silence()
        return DONE


def _silence() -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # not a file: nobody flushes it


# -- words ------------------------------------------------------------------------------------------------------------
def _parser(now: datetime) -> argparse.ArgumentParser:
    def instant(text: str) -> datetime:
        return _instant(text, now)

    parser = argparse.ArgumentParser(prog="identree audit")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = _command(
        commands,
        "verify",
        "check the hash chains of audit logs, and what signed checkpoints vouch for",
        "The files are JSON logs, rotated and gzipped ones too, or exports: from Splunk (JSON, CSV or raw), from Loki "
        "(logcli in any output mode, or the API's answer), what rsyslog wrote, or OCSF. Their order does not matter.",
        "exit status: 0 verified; 1 something is bad, and the first bad or missing record is named; 2 a file cannot be "
        "read, or the command's words are off",
    )
    verify.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a log or an export")
    verify.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="PUB.pem",
        help="public key of checkpoints; may be repeated, when the key was changed. Checkpoints that no given key has "
        "signed are bad; without --key signatures are not checked",
    )
    verify.add_argument(
        "--checkpoints",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="checkpoint records that were kept where identree cannot write, in any form that FILE may have; may be "
        "repeated. A log that was rewritten since, or cut off, is found",
    )
    verify.add_argument(
        "--max-age",
        type=_duration,
        metavar="DURATION",
        help="bad when a chain goes on for longer than this after its last checkpoint, for example 2h",
    )
    export = _command(
        commands,
        "export",
        "print the records of a span of time as JSON lines, in chain order, each once",
        "Without FILE they come from the JSON log with its rotated files (IDENTREE_AUDIT_LOG) and from the database, "
        "also while the server runs; with FILE from these alone, and no settings are needed. A time is RFC 3339 "
        "(2026-11-26T10:00:00Z), a day in UTC (2026-11-26), or a time ago (24h, 7d). Records between the first and the "
        "last of the span are printed even where a clock was set, so that the chain stays whole and verifies.",
        "exit status: 0 all is there; 1 printed, but something is missing or differs (standard error says what; "
        "identree audit verify says more); 2 nothing could be printed",
    )
    export.add_argument("files", nargs="*", metavar="FILE", type=Path, help="a log or an export")
    export.add_argument(
        "--from", dest="begin", type=instant, metavar="T", help="not before; the default is the beginning"
    )
    export.add_argument("--to", dest="end", type=instant, metavar="T", help="before, not at; the default is the end")
    export.add_argument("--instance", default="", metavar="ID", help="only this chain")
    export.add_argument(
        "--format", default=NATIVE.name, choices=sorted(FORMATS), help="how records are written; only cef is no JSON"
    )
    parked = _command(
        commands,
        "parked",
        "list the records that a sink would not take, as JSON lines",
        "They are offered again after a restart (docs/audit.md). Each line has sink, seq, instance, parked_at, "
        "reason and record.",
        "exit status: 0 all were listed, and there may be none; 2 the database cannot be read",
    )
    parked.add_argument("--sink", default="", metavar="NAME", help="only this one: syslog, splunk_hec or loki")
    return parser


def _command(commands: Any, name: str, what: str, how: str, statuses: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}. {how}", epilog=statuses
    )
    return parser


def _instant(text: str, now: datetime) -> datetime:
    """:raise argparse.ArgumentTypeError: it is none."""
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
        if _INSTANT.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        days = _DAYS.fullmatch(text)
        ago = timedelta(days=int(days[1])) if days else durations.parse(text)
        if ago >= timedelta():
            return now - ago
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no time; write 2026-11-26T10:00:00Z, 2026-11-26 (the day's beginning in UTC) or 24h (ago)"
    )


def _duration(text: str) -> timedelta:
    try:
        days = _DAYS.fullmatch(text)
        duration = timedelta(days=int(days[1])) if days else durations.parse(text)
        if duration >= timedelta():
            return duration
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no duration; write, for example, {durations.EXAMPLE}")


# -- verify -----------------------------------------------------------------------------------------------------------
def _verify(options: argparse.Namespace, now: Now) -> int:
    from identree.sinks.verify import verify

    return verify(
        options.files,
        sys.stdout,
        kept=options.checkpoints,
        keys=options.key,
        max_age=options.max_age,
        now=now(),
    )


# -- export -----------------------------------------------------------------------------------------------------------
def _export(options: argparse.Namespace, now: Now) -> int:
    if options.begin is not None and options.end is not None and options.begin >= options.end:
        _complain("--from must be before --to")
        return FAILED
    extract = Extract(options.begin, options.end, options.instance)
    reading = _Reading(extract)
    try:
        if options.files:
            reading.files([Export(path) for path in options.files])
        else:
            settings = _settings()
            if settings is None or not _read_own(settings, reading):
                return FAILED
        return _print_records(extract, reading, options.format)
    except BrokenPipeError:
        raise
    except (Unreadable, OSError) as problem:
        _complain(f"cannot read: {problem}")
        return FAILED
    except sqlite3.Error as problem:
        _complain(f"the records cannot be sorted: {problem}; SQLITE_TMPDIR names a directory with more space")
        return FAILED
    finally:
        extract.close()


class _Reading:
    """
    Takes records from files and the database to an extract.

    :ivar bad: places in the files where there should be a record and is none.
    """

    def __init__(self, extract: Extract) -> None:
        self._extract = extract
        self.bad = 0

    def files(self, exports: Sequence[Export]) -> None:
        """:raise Unreadable: a file is none that holds records."""
        self.look_at(exports)
        self.keep(exports)

    def look_at(self, exports: Sequence[Export]) -> None:
        for export in exports:
            for entry in export.entries():
                if entry.trouble is None:
                    try:
                        self._extract.look(audit.read(entry.record))
                    except audit.Malformed:
                        continue  # told when it is read to be kept

    def keep(self, exports: Sequence[Export], *, live: bool = False) -> None:
        """:param live: somebody writes to them, so a line without an end is on its way, and no trouble."""
        self.bad = 0
        for export in exports:
            for entry in export.entries():
                try:
                    if entry.trouble is not None:
                        raise entry.trouble
                    link = audit.read(entry.record)
                except audit.Malformed as trouble:
                    if not (live and entry.torn):
                        self._tell(f"{export.at(entry.line)}: this is no audit record: {trouble}")
                    continue
                self._extract.keep(link, entry.record)

    async def database(self, store: Store) -> None:
        """:raise StorageUnavailable: it cannot be read."""
        # twice, as the files; the numbers between which the span lies may be known only at the end
        for keeping in (False, True):
            for extent in await store.chains():
                after = extent.first - 1
                if keeping:
                    low, high = self._extract.spans().get(extent.instance, (0, -1))
                    if high < extent.first or low > extent.last:
                        continue
                    after = max(after, low - 1)
                while records := await store.chain_records(extent.instance, after, BATCH):
                    for record in records:
                        link = audit.read(record.plain)
                        if keeping:
                            self._extract.keep(link, record.plain)
                        else:
                            self._extract.look(link)
                    after = records[-1].seq
                    if keeping and after >= high:
                        break

    def _tell(self, what: str) -> None:
        self.bad += 1
        if self.bad <= MOST_COMPLAINTS:
            _complain(what)


def _read_own(settings: Settings, reading: _Reading) -> bool:
    """
    The JSON log and the database of this server; False, with the reason said, when the database cannot be read.

    :raise Unreadable, OSError: the log cannot be read.
    """
    log = _log_path(settings)
    unreadable = settings.audit_log_format == "cef" and bool(_rotated(log))
    if unreadable:
        _complain(f"{log} is written in CEF, which cannot be read back; only what the database still has is printed")
        log = None
    asked = whole = False
    for _ in range(MOST_ROTATIONS):
        files = _rotated(log)
        with suppress(Gone):
            reading.look_at(files)
            # the reactor runs once only, and the files come last: they tell what is in both
            if not asked and not _beside(
                settings, lambda store, reactor: reading.database(store), "name the log's files to do without it"
            ):
                return False
            asked = True
            reading.keep(files, live=True)
            whole = [file.identity for file in _rotated(log)] == [file.identity for file in files]
        if whole:
            break
    else:
        _complain(f"{log} was rotated each time that it was read; run it again, or stop the server")
    reading.bad += unreadable + (not whole)
    return asked


def _log_path(settings: Settings) -> Path | None:
    from identree.sinks.jsonl import parse_target

    target = parse_target(settings.audit_log)
    return target.path if target is not None else None


def _rotated(log: Path | None) -> list[Export]:
    """
    The log and what was rotated away, also what somebody has compressed, the oldest first.

    :raise Unreadable, OSError: one of them cannot be looked at.
    """
    if log is None:
        return []
    name = re.compile(re.escape(log.name) + r"(?:\.(?P<number>[0-9]{1,6}))?(?:\.gz)?")
    found: list[tuple[int, Path]] = []
    try:
        for path in log.parent.iterdir():
            match = name.fullmatch(path.name)
            if match is not None:
                found.append((int(match["number"] or 0), path))
    except FileNotFoundError:
        return []
    exports: list[Export] = []
    for _, path in sorted(found, reverse=True):
        try:
            exports.append(Export(path))
        except FileNotFoundError:  # rotated away a moment ago
            continue
    return exports


def _print_records(extract: Extract, reading: _Reading, format_name: str) -> int:
    write = FORMATS[format_name].text
    out = _Output(_binary_output())
    for record in extract.records():
        out.line(write(record))
    out.flush()
    if not extract.count:
        _complain("there is no record in that span")
    if reading.bad > MOST_COMPLAINTS:
        _complain(f"and {reading.bad - MOST_COMPLAINTS} more places without a record")
    for instance, first, last in extract.gaps:
        _complain(f"chain {instance!r}: seq {first}{f' to {last}' if last > first else ''} missing")
    if extract.differing is not None:
        instance, seq = extract.differing
        _complain(f"chain {instance!r}: two different records bear seq {seq}, of which one is printed")
    return INCOMPLETE if reading.bad or extract.gaps or extract.differing else DONE


# -- parked -----------------------------------------------------------------------------------------------------------
def _parked(options: argparse.Namespace, now: Now) -> int:
    settings = _settings()
    if settings is None:
        return FAILED
    out = _Output(_binary_output())

    async def listed(store: Store, reactor: object) -> None:
        after = ("", "", -1)
        while some := await store.parked_records(after, BATCH):
            for one in some:
                after = (one.record.instance, one.sink, one.record.seq)
                if not options.sink or one.sink == options.sink:
                    about = {
                        "sink": one.sink,
                        "seq": one.record.seq,
                        "instance": one.record.instance,
                        "parked_at": audit.timestamp(one.parked_at),
                        "reason": one.reason,
                    }
                    # the record as it was sealed, byte for byte
                    out.line(audit.plain(about).encode()[:-1] + b',"record":' + one.record.plain + b"}")

    if not _beside(settings, listed):
        return FAILED
    out.flush()
    return DONE


# -- around -----------------------------------------------------------------------------------------------------------
def _settings() -> Settings | None:
    """The server's settings; None, with the reasons said, when they cannot be read."""
    try:
        return load(os.environ)
    except SettingsError as mistakes:
        _complain(f"the settings cannot be used:\n{mistakes}")
        return None


def _beside(settings: Settings, work: Callable[[Store, Any], Any], remedy: str = "") -> bool:
    """
    Do it with the server's database; False, with the reason said, when that cannot be read. A database that is not
    there is not made.
    """
    from identree.core.errors import SchemaTooNew, StorageUnavailable
    from identree.directoryparts import beside_the_server
    from identree.storage.opening import SQLITE_NAMES
    from identree.storage.sqlite import parse_dsn

    try:
        if settings.database_driver.strip().lower() in SQLITE_NAMES:
            path = parse_dsn(settings.database_dsn).path
            if path:
                os.stat(path)
        beside_the_server(settings, work)
    except BrokenPipeError:
        raise
    except (StorageUnavailable, SchemaTooNew, audit.Malformed, ValueError, OSError) as problem:
        _complain(f"the database cannot be read: {problem}{f'; {remedy}' if remedy else ''}")
        return False
    return True


class _Output:
    """Lines on their way out, collected: a system call for each would be most of the work."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: list[bytes] = []
        self._size = 0

    def line(self, text: bytes) -> None:
        self._lines += (text, b"\n")
        self._size += len(text) + 1
        if self._size >= OUTPUT_BYTES:
            self.flush()

    def flush(self) -> None:
        self._out.write(b"".join(self._lines))
        self._out.flush()
        self._lines, self._size = [], 0


def _binary_output() -> BinaryIO:
    sys.stdout.flush()
    return sys.stdout.buffer


def _complain(what: str) -> None:
    """What a log holds may be forged, and must not command the terminal."""
    shown = (
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in what
    )
    print(f"identree: {''.join(shown)}", file=sys.stderr)
