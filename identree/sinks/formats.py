"""
How a record is written for a receiver: identree's own form, or mapped to another one (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from identree.core import audit
from identree.core.audit import Sealed


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

FORMATS: dict[str, Format] = {NATIVE.name: NATIVE}
