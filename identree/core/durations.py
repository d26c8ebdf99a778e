"""
Durations as text: the syntax of settings and of the wire (spec/configuration section 2), and words for people.
"""

from __future__ import annotations

import re
from datetime import timedelta

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # micro sign
    "μs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
# 64-bit nanoseconds, as deployed versions count: about 292 years
_LIMIT = 2**63 - 1
_LENGTH = 100

EXAMPLE = "90s, 10m or 1h30m"


def parse(text: str) -> timedelta:
    """
    ``90s``, ``1h30m``, ``1.5s``, ``-2m``, ``0``: an optional sign, then numbers each with one of the units ``ns us µs
    ms s m h``, without blanks. What is smaller than a microsecond is cut off.

    :raise ValueError: anything else, also more than 292 years.
    """
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits == "0":
        return timedelta()
    if not digits or len(text) > _LENGTH:
        raise ValueError(f"not a duration such as {EXAMPLE}")
    total, position = 0, 0
    while position < len(digits):
        term = _TERM.match(digits, position)
        if term is None or not (term[1] or term[2]):
            raise ValueError(f"not a duration such as {EXAMPLE}")
        unit = _NANOSECONDS[term[3]]
        fraction = term[2] or ""
        total += int(term[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position = term.end()
    if total > _LIMIT:
        raise ValueError("longer than 292 years")
    duration = timedelta(microseconds=total // 1000)
    return -duration if text.startswith("-") else duration


def _decimal(value: int, digits: int) -> str:
    """``value`` / 10**digits without trailing zeros."""
    whole, fraction = divmod(value, 10**digits)
    return f"{whole}.{fraction:0{digits}d}".rstrip("0").rstrip(".") if fraction else str(whole)


def render(duration: timedelta) -> str:
    """The exact duration in the form that :func:`parse` reads: ``0s``, ``1.5ms``, ``2s``, ``1m30s``, ``1h0m0s``."""
    microseconds = duration // timedelta(microseconds=1)
    sign, microseconds = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
    if microseconds == 0:
        return "0s"
    if microseconds < 1_000:
        return f"{sign}{microseconds}µs"
    if microseconds < 1_000_000:
        return f"{sign}{_decimal(microseconds, 3)}ms"
    minutes, rest = divmod(microseconds, 60_000_000)
    seconds = _decimal(rest, 6) + "s"
    if minutes == 0:
        return sign + seconds
    if minutes < 60:
        return f"{sign}{minutes}m{seconds}"
    return f"{sign}{minutes // 60}h{minutes % 60}m{seconds}"


def words(seconds: int) -> str:
    """Remaining time: ``3h 12m``, ``3h``, ``47m``, ``12s``; nothing left is ``0s``. (spec/host-agent section 5.1)"""
    if seconds < 60:
        return f"{max(0, seconds)}s"
    hours, minutes = divmod(seconds // 60, 60)
    return " ".join(part for part in (f"{hours}h" if hours else "", f"{minutes}m" if minutes else "") if part)
