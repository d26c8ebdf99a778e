"""
How a record is written for a receiver: identree's own form, or mapped to another one (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from identree.core import audit
from identree.core.audit import Sealed
from identree.sinks import cef, ocsf


@dataclass(frozen=True, slots=True)
class Format:
    """
    :ivar text: a record as one line of UTF-8, without the newline, for the JSON log and for Splunk.
    :ivar wire: the same for syslog and Loki, where identree's own form is the C-form.
    :ivar is_json: whether ``text`` is a JSON object, which Splunk wants as such.
    :ivar begins: what every such line begins with.
    :ivar place: the chain and number of a line of the JSON log; None when it is no such line.
    """

    name: str
    text: Callable[[Sealed], bytes]
    wire: Callable[[Sealed], bytes]
    is_json: bool
    begins: bytes
    place: Callable[[bytes], tuple[str, int] | None]


def _native_place(line: bytes) -> tuple[str, int] | None:
    try:
        link = audit.read(line)
    except audit.Malformed:
        return None
    return link.instance, link.seq


NATIVE = Format(
    name="native",
    text=lambda record: record.plain,
    wire=lambda record: record.canonical,
    is_json=True,
    begins=b'{"seq":',
    place=_native_place,
)

OCSF = Format(name="ocsf", text=ocsf.text, wire=ocsf.text, is_json=True, begins=ocsf.BEGINS, place=ocsf.place)

CEF = Format(name="cef", text=cef.text, wire=cef.text, is_json=False, begins=cef.BEGINS, place=cef.place)

FORMATS: dict[str, Format] = {form.name: form for form in (NATIVE, OCSF, CEF)}


def place(line: bytes) -> tuple[str, int] | None:
    """
    The chain and number of a line of the JSON log, in whatever format: the setting may have been changed in the middle
    of a file. None when it is no record.
    """
    for form in FORMATS.values():
        if line.startswith(form.begins):
            return form.place(line)
    return None


def begins(line: bytes) -> bool:
    """Whether a whole line of some format begins like this."""
    return any(line.startswith(form.begins) for form in FORMATS.values())


def may_begin(start: bytes) -> bool:
    """Whether a line of some format begins like this; ``start`` may be shorter than what tells them apart."""
    return any(start.startswith(form.begins) or form.begins.startswith(start) for form in FORMATS.values())
