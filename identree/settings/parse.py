"""
From text to the value of a setting, by its kind (spec/configuration section 2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from identree.core import durations
from identree.core.addresses import parse_networks
from identree.settings.files import Raw
from identree.settings.registry import Kind, Setting

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INT = re.compile(r"[+-]?[0-9]{1,18}")
_SIZE = re.compile(r"([0-9]{1,15})[ \t]*(kb|mb|gb)?", re.IGNORECASE)
_UNITS = {"": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30}
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")
_LISTEN = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]*):([0-9]{1,5})")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


def _bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("is neither true nor false")


def _int(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError("is not a whole number")
    return int(text)


def _size(text: str) -> int:
    size = _SIZE.fullmatch(text)
    if size is None:
        raise ValueError("is not a size: a number of bytes, or a number with KB, MB or GB")
    return int(size[1]) * _UNITS[(size[2] or "").lower()]


def _duration(text: str) -> object:
    try:
        return durations.parse(text)
    except ValueError as e:
        raise ValueError(f"is {e}" if str(e).startswith(("not", "longer")) else str(e)) from None


def _time(text: str) -> datetime:
    time = _TIME.fullmatch(text)
    if time is not None:
        try:
            return datetime.fromisoformat(time[1] + time[2].replace("Z", "+00:00")).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("is not a time with date and offset")


def _map(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("is not a JSON object of texts")
    return MappingProxyType(value)


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if _UNPRINTABLE.search(text) or url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ValueError("is not a URL that begins with http:// or https:// and names a host")
    return text


def _listen(text: str) -> str:
    listen = _LISTEN.fullmatch(text)
    if listen is None or int(listen[1]) > 65_535:
        raise ValueError("is not host:port; the host may be empty, and IPv6 stands in brackets")
    return text


def _networks(text: str) -> object:
    try:
        return parse_networks(split(text))
    except ValueError as e:
        raise ValueError(f"has a mistake: {e}") from None


def _path(text: str) -> str:
    if "\0" in text or "\n" in text:
        raise ValueError("is not a path")
    return text


def _choice(setting: Setting, text: str) -> str:
    wanted = text.strip().lower() if setting.folded else text
    wanted = dict(setting.aliases).get(wanted, wanted)
    if wanted not in setting.choices:
        raise ValueError(f"is not one of {', '.join(setting.choices)}")
    return wanted


def split(text: str) -> tuple[str, ...]:
    """Items between commas, trimmed, empty ones dropped; there is no quoting."""
    return tuple(item for item in (piece.strip() for piece in text.split(",")) if item)


def default(setting: Setting) -> Any:
    """The default as a value of the kind's type."""
    return _networks(setting.default) if setting.kind is Kind.NETWORKS else setting.default


_PARSERS: dict[Kind, Callable[[str], Any]] = {
    Kind.TEXT: str,
    Kind.PATH: _path,
    Kind.BOOL: _bool,
    Kind.TRISTATE: _bool,
    Kind.INT: _int,
    Kind.DURATION: _duration,
    Kind.SIZE: _size,
    Kind.LIST: split,
    Kind.NETWORKS: _networks,
    Kind.TIME: _time,
    Kind.MAP: _map,
    Kind.URL: _url,
    Kind.LISTEN: _listen,
}


def parse(setting: Setting, raw: Raw) -> tuple[Any, bool]:
    """
    The value, and whether it is another one than was written, because of the bounds.

    :raise ValueError: a half-sentence that goes on after the value, and that does not repeat it.
    """
    if setting.kind is Kind.LIST and not isinstance(raw, str):
        return raw, False
    text = raw if isinstance(raw, str) else ",".join(raw)
    if not text and setting.blank_counts:
        return "", False
    value = _choice(setting, text) if setting.kind is Kind.CHOICE else _PARSERS[setting.kind](text)
    if (setting.minimum is not None and value < setting.minimum) or (
        setting.maximum is not None and value > setting.maximum
    ):
        raise ValueError(f"is out of bounds ({setting.bounds})")
    if setting.adjust is None:
        return value, False
    adjusted = setting.adjust(value)
    return adjusted, adjusted != value
