"""
Names and texts from outside, checked once at the door (spec/http-api section 3).

Every function returns the value as the rest of the program uses it, or raises :class:`Invalid` whose detail names the
field and says what would be right. Patterns match whole strings and ASCII only.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from identree.core.challenge import HostContext
from identree.core.errors import Invalid

# Characters, not bytes.
REASON_LENGTH = 500
COMMAND_LENGTH = 1024
CWD_LENGTH = 512
TTY_LENGTH = 64
REMOTE_HOST_LENGTH = 253
PATH_LENGTH = 512

_USERNAME = re.compile(r"[a-zA-Z0-9._-]{1,64}")
# one character more than a host name may have: the trailing dot that normalisation removes
_HOSTNAME = re.compile(r"[a-zA-Z0-9._-]{1,254}")
_CHALLENGE_ID = re.compile(r"[0-9a-fA-F]{32}")
_USER_CODE = re.compile(r"[A-HJ-NP-Z]{6}-[0-9]{6}")
# white space of the deployed versions; str.strip() would also take U+001C to U+001F, which are errors here
_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_CONTROL_BUT_TAB = re.compile(r"[\x00-\x08\x0a-\x1f]")
# C0, DEL, C1, line separators, and the invisible marks that can make a text look like another one: zero-width and
# direction marks, embeddings and overrides, isolates, byte order mark
_UNSHOWABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MALFORMED_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_LOCAL_WITH_QUERY = re.compile(r"/(?![/\\])[!-\[\]-~]*")


def username(text: str) -> str:
    """1 to 64 of ASCII letters, digits, dot, underscore, hyphen. :raise Invalid: (key ``invalid_username_format``)"""
    if not _USERNAME.fullmatch(text):
        raise Invalid("username: 1 to 64 letters, digits, dots, underscores and hyphens", key="invalid_username_format")
    return text


def normalised_hostname(text: str) -> str:
    """Lower case, one trailing dot removed; no check. ASCII letters only: other ones have no place in a name."""
    if not text.isascii():
        return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text).removesuffix(".")
    return text.lower().removesuffix(".")


def hostname(text: str) -> str:
    """
    The normalised host name: 1 to 253 of the characters that user names have.

    :raise Invalid: (key ``invalid_format``)
    """
    name = normalised_hostname(text) if _HOSTNAME.fullmatch(text) else ""
    # what still ends with a dot would be another name each time that it is normalised
    if not 1 <= len(name) <= 253 or name.endswith("."):
        raise Invalid("hostname: 1 to 253 letters, digits, dots, underscores and hyphens", key="invalid_format")
    return name


def optional_hostname(text: str) -> str:
    """As :func:`hostname`, and the empty string for a host without a name. :raise Invalid:"""
    return hostname(text) if text else ""


def challenge_id(text: str) -> str:
    """32 hex digits. Upper case passes and finds nothing, as ids have lower case. :raise Invalid:"""
    if not _CHALLENGE_ID.fullmatch(text):
        raise Invalid("challenge id: 32 hexadecimal digits", key="missing_fields")
    return text


def user_code(text: str) -> str:
    """Six capitals without I and O, a hyphen, six digits. :raise Invalid:"""
    if not _USER_CODE.fullmatch(text):
        raise Invalid("code: six letters, a hyphen, six digits, as in ABCDEF-123456", key="missing_fields")
    return text


def reason(text: str) -> str:
    """
    A justification: white space around it removed, cut at 500 characters; may be empty.

    :raise Invalid: it has a control character (below U+0020) other than TAB.
    """
    cut = text.strip(_SPACE)[:REASON_LENGTH]
    if _CONTROL_BUT_TAB.search(cut):
        raise Invalid("reason: plain text on one line, without control characters")
    return _LONE_SURROGATE.sub("\ufffd", cut)


def decision_reason(text: str) -> str:
    """As :func:`reason`, but an invalid one counts as absent: a decision never fails for its reason."""
    try:
        return reason(text)
    except Invalid:
        return ""


def _told(field: str, text: str, limit: int) -> str:
    trimmed = text.strip(" ")
    if len(trimmed) > limit:
        # cutting here would hide the end of a command from the person who approves it
        raise Invalid(f"{field}: at most {limit} characters")
    if _UNSHOWABLE.search(trimmed):
        raise Invalid(f"{field}: text without control, invisible or direction characters")
    return trimmed


def host_context(command: str = "", cwd: str = "", tty: str = "", remote_host: str = "") -> HostContext:
    """
    What the host tells about the command. Nothing is changed but spaces around it: what an approver reads is what the
    host sent, so that a text which could be misread is refused instead of repaired. The agent cuts and escapes.

    Limits in characters: command 1024, cwd 512, tty 64, remote_host 253.

    :raise Invalid: naming the field.
    """
    return HostContext(
        command=_told("command", command, COMMAND_LENGTH),
        cwd=_told("cwd", cwd, CWD_LENGTH),
        tty=_told("tty", tty, TTY_LENGTH),
        remote_host=_told("remote_host", remote_host, REMOTE_HOST_LENGTH),
    )


def local_path(text: str) -> str:
    """
    The form field ``from``: where to go after an action. Percent-decoded once; anything but a plain local path (no
    host, query, fragment, backslash; at most 512 characters) means ``/``. The result is percent-encoded, fit for a
    ``Location``. (spec/http-api section 8)
    """
    if len(text) > PATH_LENGTH or _MALFORMED_ESCAPE.search(text):
        return "/"
    path = unquote_to_bytes(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    if not path.startswith("/"):
        return "/"
    path = re.sub(r"[\x00-\x20\x7f]", "", path)
    if path.startswith("//") or any(c in path for c in "?#\\"):
        return "/"
    return quote(path, safe="/!$&'()*+,;=:@~")


def return_path(text: str) -> str:
    """
    Where a person wanted to go before the login, as the browser asked for it: path and query, still percent-encoded.
    Anything that could leave this site, or is not printable ASCII, or is longer than 512 characters, means ``/``.
    """
    return text if len(text) <= PATH_LENGTH and _LOCAL_WITH_QUERY.fullmatch(text) and "#" not in text else "/"
