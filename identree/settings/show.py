"""
What ``identree check-config`` prints: every setting in effect, and where its value is from. No secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from identree.settings.mask import masked
from identree.settings.registry import PREFIX, SETTINGS, Setting, written
from identree.settings.values import DEFAULT, Settings

# Longest value that is printed; the rest of a PEM text or a long list helps nobody.
WIDTH = 100

_VARIABLE = re.compile(PREFIX + r"[A-Z0-9_]+")


def shown_value(setting: Setting, settings: Settings) -> str:
    """The value on one line: secrets as ``set`` or ``not set``, passwords inside of others as asterisks."""
    value = getattr(settings, setting.attribute)
    if setting.name == "DATABASE_DSN":
        return masked(value) or "not set"
    if setting.name == "API_KEYS":
        return f"{len(value)} set" if value else "not set"
    if setting.secret:
        return "set" if value else "not set"
    text = masked(written(setting, value))
    text = "".join(character if character.isprintable() else " " for character in text)
    return (text if len(text) <= WIDTH else text[:WIDTH] + "…") or "-"


def show(settings: Settings, wrong: Mapping[str, str] = MappingProxyType({})) -> str:
    """
    Name, value and source of every setting, by group, then the warnings. Names have their prefix, so that a line can
    be copied into a file.

    :param wrong: settings that are marked with a question mark instead of a value, and where they are from.
    """
    names = max(len(setting.variable) for setting in SETTINGS)
    values = {setting.name: "?" if setting.name in wrong else shown_value(setting, settings) for setting in SETTINGS}
    # very long values do not push all sources out of sight
    width = min(max(map(len, values.values())), 48)
    lines: list[str] = []
    group = ""
    for setting in SETTINGS:
        if setting.group != group:
            group = setting.group
            lines += ([""] if lines else []) + [f"# {group}"]
        source = wrong.get(setting.name) or settings.source(setting.name)
        file = settings.secret_files.get(setting.name)
        where = f"{source}, from the file {file}" if file else source
        if setting.name in wrong:
            where += ": wrong" if source != DEFAULT else ": missing"
        lines.append(f"{setting.variable:<{names}}  {values[setting.name]:<{width}}  {where}")
    # what follows from a value that does not count is no warning
    doubtful = {setting.variable for setting in SETTINGS if setting.name in wrong}
    warnings = [warning for warning in settings.warnings if doubtful.isdisjoint(_VARIABLE.findall(warning))]
    if warnings:
        lines += ["", "# Warnings", *(f"- {warning}" for warning in warnings)]
    return "\n".join(line.rstrip() for line in lines)
