"""
``sudorules.json``: the rules of bridge mode (spec/ldap section 3.5).

Fields that the deployed servers did not know come after theirs and only when they are set, so that a file without them
is the same to both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from identree.directory.sudo import SudoRule, numbered

# Bytes; the deployed limit.
FILE_LIMIT = 4 * 1024 * 1024
# Rules that may be saved; a file that has more already is served.
MAX_RULES = 1000

# Key in the file, field of the rule, in the order of the file.
_KEYS = (
    ("group", "group"),
    ("hosts", "hosts"),
    ("commands", "commands"),
    ("runAsUser", "run_as_user"),
    ("runAsGroup", "run_as_group"),
    ("options", "options"),
    ("order", "order"),
    ("notBefore", "not_before"),
    ("notAfter", "not_after"),
    ("description", "description"),
)
_ALWAYS = ("group", "commands")
_KNOWN = frozenset(key for key, _ in _KEYS)
_MORE_COMMANDS = re.compile(r"commands([0-9]+)", re.ASCII)
# Characters of an unknown key that are repeated.
SHOWN_KEY = 64


def parse(raw: bytes | None) -> tuple[SudoRule, ...]:
    """
    The rules of a file; None is no file, hence no rules.

    An unknown key is an error: ``Hosts`` or ``notafter``, passed over, would leave a rule that allows more than was
    written.

    :raise ValueError: naming the rule by its number, from 1, and the field.
    """
    if raw is None:
        return ()
    if len(raw) > FILE_LIMIT:
        raise ValueError(f"it is larger than {FILE_LIMIT} bytes")
    try:
        document = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"it is not valid JSON: {problem}") from None
    if document is None:
        return ()
    if not isinstance(document, list):
        raise ValueError("it must be a list of rules")
    return tuple(_rule(number, item) for number, item in enumerate(document, 1))


def _rule(number: int, item: Any) -> SudoRule:
    if not isinstance(item, dict):
        raise ValueError(f"rule {number} must be an object")
    fields: dict[str, str] = {}
    for key, field in _KEYS:
        value = item.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"rule {number}: {key} must be a string")
        fields[field] = value
    more: dict[str, str] = {}
    for key, value in item.items():
        if _MORE_COMMANDS.fullmatch(key) and value is not None:
            if not isinstance(value, str):
                raise ValueError(f"rule {number}: {key} must be a string")
            more[key] = value
        elif key not in _KNOWN and value is not None:
            keys = ", ".join(known for known, _ in _KEYS)
            raise ValueError(
                f"rule {number}: the key {key[:SHOWN_KEY]!r} is not known; there are {keys}, and commands1, commands2 "
                "and so on"
            )
    # a rule without a name is kept, as the deployed servers kept it, and never served
    return SudoRule(
        group=fields.pop("group", ""),
        more_commands=numbered(_MORE_COMMANDS, more),
        unknown_claims=(),
        **fields,
    )


def dump(rules: Sequence[SudoRule]) -> bytes:
    """
    The file: two spaces, no final newline, ``group`` and ``commands`` always and other fields only with a value.

    :raise ValueError: more than :data:`MAX_RULES`, two for one group, or too large to be read again.
    """
    if len(rules) > MAX_RULES:
        raise ValueError(f"at most {MAX_RULES} rules can be kept")
    seen: set[str] = set()
    document = []
    for number, rule in enumerate(rules, 1):
        if rule.group in seen:
            raise ValueError(f"rule {number}: there is a rule for {rule.group} already")
        seen.add(rule.group)
        item: dict[str, str] = {}
        for key, field in _KEYS:
            value: str = getattr(rule, field)
            if value or key in _ALWAYS:
                item[key] = value
        for count, command in enumerate(rule.more_commands, 1):
            item[f"commands{count}"] = command
        document.append(item)
    raw = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    if len(raw) > FILE_LIMIT:
        raise ValueError(f"the rules take more than {FILE_LIMIT} bytes")
    return raw
