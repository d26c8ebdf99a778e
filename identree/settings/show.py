"""
What ``identree check-config`` prints: every setting in effect, and where its value is from. No secret.
"""

from __future__ import annotations

from identree.settings.mask import masked
from identree.settings.registry import SETTINGS, Setting, written
from identree.settings.values import Settings

# Longest value that is printed; the rest of a PEM text or a long list helps nobody.
WIDTH = 100


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


def show(settings: Settings) -> str:
    """
    Name, value and source of every setting, by group, then the warnings. Names have their prefix, so that a line can
    be copied into a file.
    """
    names = max(len(setting.variable) for setting in SETTINGS)
    values = {setting.name: shown_value(setting, settings) for setting in SETTINGS}
    # very long values do not push all sources out of sight
    width = min(max(map(len, values.values())), 48)
    lines: list[str] = []
    group = ""
    for setting in SETTINGS:
        if setting.group != group:
            group = setting.group
            lines += ([""] if lines else []) + [f"# {group}"]
        source = settings.source(setting.name)
        file = settings.secret_files.get(setting.name)
        where = f"{source}, from the file {file}" if file else source
        lines.append(f"{setting.variable:<{names}}  {values[setting.name]:<{width}}  {where}")
    if settings.warnings:
        lines += ["", "# Warnings", *(f"- {warning}" for warning in settings.warnings)]
    return "\n".join(line.rstrip() for line in lines)
