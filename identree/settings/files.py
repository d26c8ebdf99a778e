"""
Reading the two configuration files (spec/configuration section 1).
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time

# A configuration or secret file beyond this is a mistake, in bytes.
MAX_FILE = 1024 * 1024
# Longest line of identree.conf, in bytes.
MAX_LINE = 64 * 1024

# A value as a file has it: text, or the items of a list.
Raw = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    """
    :ivar mode: permission bits.
    """

    raw: bytes
    mode: int = 0o600


# Reads a whole file. :raise FileNotFoundError: it is not there. :raise OSError: any other reason.
Read = Callable[[str], File]


def read_file(path: str) -> File:
    """Read a file of bounded size. :raise OSError:"""
    # not blocking: a FIFO without writer would stop the start for ever
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise IsADirectoryError("is a directory")
        raw = file.read(MAX_FILE + 1) or b""
        if len(raw) > MAX_FILE:
            raise OSError(f"is larger than {MAX_FILE} bytes")
        return File(raw, stat.S_IMODE(os.fstat(descriptor).st_mode))


def no_files(path: str) -> File:
    """For tests and for the demonstration: a machine without configuration files."""
    raise FileNotFoundError(path)


def parse_conf(raw: bytes) -> dict[str, str]:
    """
    ``KEY=VALUE`` lines; the last of several counts.

    :raise ValueError: not UTF-8, or a line of more than 64 KiB.
    """
    values: dict[str, str] = {}
    for number, line_bytes in enumerate(raw.split(b"\n"), 1):
        if len(line_bytes) > MAX_LINE:
            raise ValueError(f"line {number} is longer than {MAX_LINE} bytes")
        try:
            line = line_bytes.decode().strip()
        except UnicodeDecodeError:
            raise ValueError(f"line {number} is not UTF-8") from None
        if line.startswith("#"):
            continue
        key, equals, value = line.removeprefix("export ").partition("=")
        if not equals:
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[key.strip()] = value
    return values


def parse_toml(raw: bytes) -> tuple[dict[str, Raw], str]:
    """
    ``section.key`` -> value, and a warning or the empty string. What is not TOML is read line by line, as deployed
    versions did: they wrote bare digits with leading zeros, for instance.

    :raise ValueError: not UTF-8.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        return read_lines(text), f"is not valid TOML ({e}); it was read line by line"
    return flatten(document), ""


def flatten(document: Mapping[str, object]) -> dict[str, Raw]:
    values: dict[str, Raw] = {}
    for section, content in document.items():
        if isinstance(content, dict):
            for key, value in content.items():
                values[f"{section}.{key}"] = _raw(value)
        else:
            values[section] = _raw(content)
    return values


def _raw(value: object) -> Raw:
    if isinstance(value, list):
        return tuple(text for text in (_text(item).strip() for item in value) if text)
    return _text(value).strip()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)


def read_lines(text: str) -> dict[str, Raw]:
    """The reader of deployed versions, but for a comment sign inside a list's quotes."""
    values: dict[str, Raw] = {}
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.partition(" #")[0].strip().strip("[]").strip()
            continue
        key, equals, value = line.partition("=")
        if equals:
            values[f"{section}.{key.strip()}"] = _line_value(value.strip())
    return values


def _line_value(text: str) -> Raw:
    if text.startswith('"'):
        return _quoted(text, 1)[0].strip()
    if text.startswith("["):
        return _items(text)
    return text.partition(" #")[0].strip()


# the escapes of scalars; within lists a backslash only protects
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def _quoted(text: str, position: int, escapes: Mapping[str, str] = _ESCAPES) -> tuple[str, int]:
    """The text up to the closing double quote, and the position after it (or the end, where there is none)."""
    characters = []
    while position < len(text) and text[position] != '"':
        character = text[position]
        if character == "\\" and position + 1 < len(text):
            position += 1
            character = escapes.get(text[position], text[position])
        characters.append(character)
        position += 1
    return "".join(characters), position + 1


def _items(text: str) -> tuple[str, ...]:
    items: list[str] = []
    bare, position = "", 1
    while position < len(text) and text[position] != "]":
        character = text[position]
        if character == '"' and not bare.strip():
            item, position = _quoted(text, position + 1, {})
            items.append(item.strip())
            bare = ""
            continue
        if character == "'" and not bare.strip():
            end = text.find("'", position + 1)
            end = len(text) if end < 0 else end
            items.append(text[position + 1 : end].strip())
            bare, position = "", end + 1
            continue
        if character == ",":
            items.append(bare.strip())
            bare = ""
        else:
            bare += character
        position += 1
    items.append(bare.strip())
    return tuple(item for item in items if item)
