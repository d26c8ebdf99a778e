"""The server's clock, as its answers show it (RFC 9110 section 5.6.7)."""

from __future__ import annotations

from identree.agent import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(text: str) -> float | None:
    """Unix seconds of ``Sun, 06 Nov 1994 08:49:37 GMT``; None for anything else, also for the obsolete forms."""
    words = text.split(" ")
    if len(text) != 29 or len(words) != 6 or words[0][3:] != "," or words[5] != "GMT" or words[2] not in _MONTHS:
        return None
    return places.instant(f"{words[3]}-{_MONTHS.index(words[2]) + 1:02d}-{words[1]}T{words[4]}Z")


def ahead(headers: Mapping[str, str], now: float) -> float | None:
    """
    How many seconds our clock is ahead of the server's; None when the answer does not say. Its date has whole seconds,
    and has been on the way: less than two seconds mean nothing.

    :param headers: names in lower case. :param now: unix seconds when the answer came.
    """
    date = http_date(headers.get("date", ""))
    return None if date is None else now - date
