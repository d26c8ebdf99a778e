"""What people wrote, made harmless for the markup of each receiver. Pure."""

from __future__ import annotations

import re

from identree.core.notices import one_line

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>@])")


def slack(text: str) -> str:
    """Slack's three control characters, the only ones that have an escape there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def slack_plain(text: str) -> str:
    """The same where Slack would take asterisks and the like for formatting: a zero-width space breaks them."""
    return re.sub(r"([*_~`])", "\u200b\\1\u200b", slack(text))


def markdown(text: str) -> str:
    """Backslashes before all that CommonMark, Discord and Teams could take for markup."""
    return _MARKDOWN.sub(r"\\\1", text)


def code(text: str) -> str:
    """For inside of single backticks, which know no escape."""
    return text.replace("`", "'")


def cut(text: str, most: int) -> str:
    """At most ``most`` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def cleaned(raw: bytes, secrets: tuple[str, ...], most: int) -> str:
    """The beginning of what a receiver said, in one line, without hidden characters and without our secrets."""
    text = raw[: most * 4].decode("utf-8", "replace")
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return one_line(text, most)
