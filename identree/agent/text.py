"""Pure text: cleaning what strangers wrote, and durations in the configuration's syntax."""

from __future__ import annotations

import os

# Characters that move the cursor, hide text or turn its direction (spec/host-agent section 5), and lone surrogates,
# which no encoder takes. Line separators become blanks like line feeds.
_DROPPED = (
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0x061C, 0x061C),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x2064),
    (0x2066, 0x2069),
    (0xD800, 0xDFFF),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
)
_SPACES = (0x09, 0x0A, 0x0D, 0x2028, 0x2029)

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

# Longer durations are mistakes; the bound keeps arithmetic finite.
_LONGEST_SECONDS = 1e9


def clean(text: str, limit: int = 500) -> str:
    """
    ``text`` as it may be shown on a terminal or sent to the server: one line, no control or direction characters,
    at most ``limit`` characters, no white space around it.
    """
    if text.isascii() and text.isprintable():
        return text.strip()[:limit]
    # More than the limit is looked at, so that dropped characters do not shorten the result; but not all of a huge one.
    out = []
    for char in text[: limit * 4]:
        code = ord(char)
        if code in _SPACES:
            out.append(" ")
        elif not any(low <= code <= high for low, high in _DROPPED):
            out.append(char)
    return "".join(out).strip()[:limit]


def shown(text: str, limit: int) -> str:
    """
    ``text`` as an approver may read it: what :func:`clean` would drop stands there as an escape, and what is left out
    at the end as an ellipsis, because a command that hides something must not look like one that does not.
    """
    text = text.strip()
    cut = len(text) > limit
    text = text[:limit]
    if not (text.isascii() and text.isprintable()):
        out = []
        for char in text:
            code = ord(char)
            if code in _SPACES or any(low <= code <= high for low, high in _DROPPED):
                out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
            else:
                out.append(char)
        text = "".join(out).strip()
        cut = cut or len(text) > limit
    return text[: limit - 1].rstrip() + "…" if cut else text


def duration(text: str) -> float | None:
    """
    Seconds in ``1m30s``, ``1.5s``, ``-2s`` or ``0``; None when it is not a duration. A number without unit is none.
    """
    sign = 1.0
    if text[:1] in ("+", "-"):
        sign = -1.0 if text[0] == "-" else 1.0
        text = text[1:]
    if text == "0":
        return 0.0
    if not text or len(text) > 64:
        return None
    total = 0.0
    while text:
        end = 0
        while end < len(text) and text[end] in "0123456789.":
            end += 1
        number, text = text[:end], text[end:]
        end = 0
        while end < len(text) and text[end] not in "0123456789.":
            end += 1
        unit, text = text[:end], text[end:]
        if unit not in _UNITS or number.count(".") > 1 or not number.strip("."):
            return None
        total += float(number) * _UNITS[unit]
    return sign * total if total <= _LONGEST_SECONDS else None


def note(line: str) -> None:
    """One line for the person through pam_exec, which forwards whole lines only: written at once, never buffered."""
    data = (line + "\n").encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        pass  # nobody listens any more
