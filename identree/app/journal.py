"""
The server's own log of security events (spec/audit-and-metrics section 14).

Log shippers match on the leading upper-case word of the message and on attribute names, so both are contract. The
observer that writes the line prints ``attributes`` in their order.
"""

from __future__ import annotations

from twisted.logger import Logger, LogLevel

# A challenge id is a secret handle: only this much of it is ever logged.
SHOWN_ID_CHARACTERS = 8


class Journal:
    """One line per security event, with named attributes. No secret, token or query string ever goes in."""

    _log = Logger(namespace="identree")

    def __init__(self, log: Logger | None = None) -> None:
        if log is not None:
            self._log = log

    def info(self, message: str, **attributes: object) -> None:
        self._log.emit(LogLevel.info, "{message}", message=message, attributes=attributes)

    def warn(self, message: str, **attributes: object) -> None:
        self._log.emit(LogLevel.warn, "{message}", message=message, attributes=attributes)

    def error(self, message: str, **attributes: object) -> None:
        self._log.emit(LogLevel.error, "{message}", message=message, attributes=attributes)


def short(challenge_id: str) -> str:
    return challenge_id[:SHOWN_ID_CHARACTERS]
