"""
The host's own record, in syslog (facility authpriv, ident ``identree``): who asked, what came of it, and why.

One line per event, ``key=value``; never a secret, never a whole challenge id.
"""

from __future__ import annotations

import sys

from identree.agent.text import clean

# Set by the configuration's IDENTREE_SYSLOG.
enabled = True


def line(**fields: object) -> str:
    """``user=alice result=approved challenge=00112233``; values with blanks are quoted."""
    words = []
    for key, value in fields.items():
        text = clean(str(value), 300)
        if not text:
            continue
        if " " in text or '"' in text or "=" in text:
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        words.append(f"{key}={text}")
    return " ".join(words)


def record(*, serious: bool = False, **fields: object) -> None:
    """:param serious: a warning, for what looks like an attack or a broken set-up."""
    import syslog

    _send(syslog.LOG_WARNING if serious else syslog.LOG_INFO, line(**fields))


def bug() -> None:
    """The exception that is being handled, with its traceback."""
    import syslog
    import traceback

    for text in "".join(traceback.format_exception(*sys.exc_info())[-40:]).splitlines()[-60:]:
        _send(syslog.LOG_ERR, clean(text.replace("  ", "\u00b7 "), 400))


def _send(priority: int, text: str) -> None:
    if not enabled:
        return
    import syslog

    syslog.openlog("identree", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(priority, text)
