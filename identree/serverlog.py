"""
The server's log: one line per event on standard error, as ``key=value`` or as JSON
(spec/audit-and-metrics section 14). Standard output is left to the audit log.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import IO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from zope.interface import implementer

from identree.core import durations
from identree.core.requests import current

_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARN", "error": "ERROR", "critical": "ERROR"}
_THRESHOLDS = {"debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error"}
# Most values, found with one look; and what makes a printable value need quotes: these, or that there is nothing.
_PLAIN = re.compile(r"[!#-<>-~]+", re.ASCII)
_SPECIAL = re.compile(r'[ ="]|\A\Z')
# A single line never grows beyond this; what is longer was not meant for a log.
LONGEST_VALUE_CHARACTERS = 8192


def keep_standard_streams() -> None:
    """
    Open on ``/dev/null`` what of descriptors 0 to 2 was closed by who started us. Otherwise the next file that is
    opened takes the number, and the log or the audit records would be written into the database.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def level_named(text: str) -> str | None:
    """The log level of ``IDENTREE_LOG_LEVEL``, or None when there is no such level."""
    return _THRESHOLDS.get(text.lower())


@implementer(ILogObserver)
class LineObserver:
    """
    Writes events as lines.

    :param as_json: one JSON object per line instead of ``key=value``.
    """

    def __init__(self, out: IO[str], *, as_json: bool = False) -> None:
        self._out = out
        self._encode: Callable[[dict[str, str]], str] = _json_line if as_json else _logfmt_line

    def __call__(self, event: LogEvent) -> None:
        try:
            self._out.write(self._encode(_fields(event)) + "\n")
            self._out.flush()
        except (OSError, ValueError):
            # there is nowhere left to say it
            return


def observer(level: str, *, as_json: bool, out: IO[str] | None = None) -> ILogObserver:
    """An observer for everything of ``level`` and above."""
    threshold = LogLevelFilterPredicate(LogLevel.levelWithName(_THRESHOLDS.get(level.lower(), "info")))
    # what Twisted itself says about each connection is of no use to an operator
    for noisy in ("twisted.web", "twisted.internet.protocol", "txpostgres"):
        threshold.setLogLevelForNamespace(noisy, LogLevel.warn)
    return FilteringLogObserver(LineObserver(out or sys.stderr or open(os.devnull, "w"), as_json=as_json), [threshold])


def _fields(event: LogEvent) -> dict[str, str]:
    at = datetime.fromtimestamp(event.get("log_time", 0.0), UTC).astimezone()
    level = getattr(event.get("log_level"), "name", "info")
    fields = {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _LEVELS.get(level, "INFO"),
        # the journal's lines are most of all lines, and are text already
        "msg": _text(event.get("message", "")) if event.get("log_format") == "{message}" else formatEvent(event),
    }
    for name, value in event.get("attributes", {}).items():
        fields[name] = _text(value)
    failure = event.get("log_failure")
    if failure is not None and "stack" not in fields:
        fields["err"] = f"{failure.type.__name__}: {failure.getErrorMessage()}"
        fields["stack"] = failure.getTraceback()
    request_id = current.get()
    if request_id:
        fields.setdefault("request_id", request_id)
    return {name: value[:LONGEST_VALUE_CHARACTERS] for name, value in fields.items()}


def _text(value: object) -> str:
    """As the contract has it: lists as ``[a b]``, durations as ``1m30s``, truth as ``true``."""
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_text, value)) + "]"
    if isinstance(value, timedelta):
        return durations.render(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _logfmt_line(fields: dict[str, str]) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: str) -> str:
    """Quoted with backslash escapes where it would not read back as one word; letters of any script are no reason."""
    if _PLAIN.fullmatch(value) or (value.isprintable() and not _SPECIAL.search(value)):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _json_line(fields: dict[str, str]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
