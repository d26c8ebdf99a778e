"""
Records in ArcSight's Common Event Format (CEF:0): a header of seven fields between bars, then pairs of key and value.
``docs/audit.md`` shows the keys.

CEF has no room for every character: control characters become spaces, so the chain cannot be verified from it. ``cs1``
and ``cs2`` name the record in a log that can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address

from identree.core.audit import Sealed
from identree.sinks.ocsf import Severity, entity_name, meaning, milliseconds, number

# What every line begins with: a torn one is known by it.
BEGINS = b"CEF:0|identree|identree|"

# CEF counts from 0 to 10: low up to 3, medium up to 6, high up to 8.
SEVERITIES = {Severity.INFORMATIONAL: 1, Severity.LOW: 3, Severity.MEDIUM: 5, Severity.HIGH: 8}

# Line ends are escaped before; C0, DEL, C1 and the two line separators of Unicode have no escape.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEADER = re.compile(r"CEF:0\|identree\|identree\|(?:(?:[^|\\]|\\.)*\|){4}")
# A bare equals sign stands only between a key and its value.
_EQUALS = re.compile(r"(?<!\\)=")
_ESCAPED = re.compile(r"\\(.)")
_LINE_ENDS = {"n": "\n", "r": "\r"}


def header(text: str) -> str:
    """A field of the header: bars and backslashes escaped, no line ends."""
    return _CONTROL.sub(" ", text).replace("\\", "\\\\").replace("|", "\\|")


def value(text: str) -> str:
    """A value of the extension: equals signs, backslashes and line ends escaped."""
    text = text.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n").replace("\r", "\\r")
    return _CONTROL.sub(" ", text)


def text(record: Sealed) -> bytes:
    """The record as one line of CEF, without the newline."""
    values: dict[str, str] = json.loads(record.plain)
    means = meaning(values)
    fields = "|".join(
        (
            "CEF:0|identree|identree",
            header(values["version"]),
            header(values["event"]),
            header(means.title),
            str(SEVERITIES[means.severity]),
        )
    )
    extension: list[tuple[str, str]] = [("rt", str(milliseconds(values["timestamp"])))]
    extension += _custom("cn1", "seq", str(record.seq))
    extension += _custom("cs3", "instance", record.instance)
    extension.append(("externalId", number(record)))
    extension.append(("suser", values.get(means.actor, "")))
    if means.has_user:
        extension.append(("duser", values["username"]))
    if means.has_host:
        extension.append(("dhost", values.get("hostname", "")))
    extension += _source(values)
    extension.append(("outcome", "failure" if means.failed else "success"))
    extension.append(("reason", values.get("reason", "")))
    extension += _custom("cs4", "code", values.get("code", ""))
    if means.entity is not None:
        extension += _custom("cs5", means.entity.type.name, entity_name(values, means.entity))
    extension += _custom("cs6", "request_id", values.get("request_id", ""))
    extension += _custom("cs1", "prev_hash", values.get("prev_hash", ""))
    extension += _custom("cs2", "hash", record.hash)
    return f"{fields}|{' '.join(f'{key}={value(content)}' for key, content in extension if content)}".encode()


def place(line: bytes) -> tuple[str, int] | None:
    """The chain and number of a line that :func:`text` wrote; None when it is no such line."""
    try:
        whole = line.decode()
    except UnicodeDecodeError:
        return None
    match = _HEADER.match(whole)
    if match is None:
        return None
    pairs = _pairs(whole[match.end() :])
    seq = pairs.get("cn1", "")
    if pairs.get("cn1Label") != "seq" or not (seq.isascii() and seq.isdecimal() and len(seq) <= 20):
        return None
    return pairs.get("cs3", ""), int(seq)


def _custom(key: str, label: str, content: str) -> list[tuple[str, str]]:
    """One of CEF's free keys, which says by a second one what it holds."""
    return [(f"{key}Label", label), (key, content)] if content else []


def _source(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """Of the dictionary's addresses ``src`` holds IPv4 only; IPv6 has a key of its own."""
    address = values.get("remote_addr", "")
    try:
        if isinstance(ip_address(address), IPv6Address):
            return _custom("c6a2", "Source IPv6 Address", address)
    except ValueError:
        return [("shost", address)]
    return [("src", address)]


def _pairs(extension: str) -> dict[str, str]:
    """Keys and values, unescaped. A value ends before the last space in front of the next key."""
    first, *rest = _EQUALS.split(extension)
    pairs: dict[str, str] = {}
    key = first
    for count, part in enumerate(rest, 1):
        content, _, following = part.rpartition(" ") if count < len(rest) else (part, "", "")
        pairs[key] = _ESCAPED.sub(lambda match: _LINE_ENDS.get(match[1], match[1]), content)
        key = following
    return pairs
