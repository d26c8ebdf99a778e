"""
Values as they may be shown: without the secrets that hide inside of URLs and connection strings.
"""

from __future__ import annotations

import re

MASK = "***"

# user:password@ in a URL, up to the last @: a password may hold an @ or a slash that nobody encoded, and hiding too
# much is the better mistake
_USER_INFO = re.compile(r"(?<=://)(\S*)@")
# password=..., also quoted in the manner of libpq, and as a parameter of a URL
_KEY_VALUE = re.compile(
    r"(?i)((?:password|passwd|sslpassword|token|secret|api_?key)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)"
)


def masked(text: str) -> str:
    """``text`` with every password of a URL, a query or a ``key=value`` string replaced by asterisks."""

    def user_info(match: re.Match[str]) -> str:
        user, colon, _ = match[1].partition(":")
        return f"{user}:{MASK}@" if colon else f"{user}@"

    return _KEY_VALUE.sub(rf"\g<1>{MASK}", _USER_INFO.sub(user_info, text))
