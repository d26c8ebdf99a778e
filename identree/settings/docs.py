"""
``python -m identree.settings.docs PATH`` writes the documentation of all settings from the registry.
"""

from __future__ import annotations

import sys
from pathlib import Path

from identree.settings.registry import AGENT_NAMES, DEAD_NAMES, PREFIX, SETTINGS, Kind, Live, Setting, written

_INTRODUCTION = """\
# Configuration

This page is made from the registry in `identree/settings/registry.py` by `make docs`; change it there.

`identree check-config` prints every setting in effect with its source, secrets masked, and reports all mistakes at
once. The server refuses to start with a mistake: each line of the report names the variable, what is wrong with its
value, and an example of a right one.

## Where values come from

The first of these that has a value wins:

1. the environment of the process; a variable set to nothing counts as unset (but for `IDENTREE_LDAP_LISTEN_ADDR`,
   where nothing is a value and closes the listener),
2. `/etc/identree/identree.conf`; a line `KEY=` without a value hides what the TOML file says: the default counts,
3. the TOML file: `IDENTREE_TOML_CONFIG_FILE`, else `/etc/identree/identree.toml`, else a `config.toml` beside it as old
   versions wrote it,
4. the default.

Files that are missing are empty. All are read once, at start. Only settings with a TOML name can stand in the TOML
file: no secret can.

`identree.conf` has one `KEY=VALUE` per line, with the full names of this page. Lines that begin with `#` are comments;
`export ` before a key and one pair of quotes around a value are removed; nothing else has a meaning. The server does
not start when others than the owner may write to the file, and warns when everybody can read it.

### Secrets from files

Every secret (marked **secret** below, the database's DSN among them) can be read from a file instead: give its path in
the variable with `_FILE` at the end, for instance `IDENTREE_SHARED_SECRET_FILE=/run/secrets/shared`. Line ends at the
end of the file are removed. A file that cannot be read is a mistake, and so are both variables in one place.

## How values are written

| Type | Written as |
|---|---|
| bool | `1 t T TRUE true True` or `0 f F FALSE false False` |
| bool or unset | the same, or nothing |
| int | digits, with an optional sign |
| duration | numbers with units, without blanks: `90s`, `1h30m`; units `ns us ms s m h`; or `0`. No days |
| size | bytes, or a number with `KB`, `MB` or `GB` (powers of 1024): `100MB` |
| list | items between commas; in TOML an array |
| list of networks | as a list: `10.0.0.0/8, ::1/128` |
| time | date, time and offset: `2026-01-15T00:00:00Z` |
| JSON map | a JSON object of texts: `{"production": "vault-1"}` |
| URL | `http://` or `https://` and a host |
| listen address | `host:port`; an empty host means all interfaces, IPv6 stands in brackets: `[::1]:8090` |
| choice | one of the texts named; upper and lower case matter unless stated |

The column *Change* says when a change made on the settings page counts: *live* at once, *restart* at the next start,
*part* partly at once; settings with *-* cannot be edited there.
"""

_ENDING = """\
## Notification channels

A channel's secrets belong into the environment, where they come before those of the file:
`IDENTREE_NOTIFY_CHANNEL_<NAME>_TOKEN`, `IDENTREE_NOTIFY_CHANNEL_<NAME>_COMMAND` and
`IDENTREE_NOTIFY_CHANNEL_<NAME>_SECRET`, where the name is in capitals and `-` and `.` become `_`.
[notifications.md](notifications.md) says what each kind of channel needs.

## Other names

The server warns of `IDENTREE_` variables that it does not know, and names the nearest that it does. These are settings
of hosts, for the `client.conf` there: {agent}.

These are found in old examples and mean nothing any more: {dead}, and all that begin with `IDENTREE_SAML_`.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _default(setting: Setting) -> str:
    if setting.default_text:
        return _cell(setting.default_text)
    text = written(setting, setting.default)
    return f"`{_cell(text)}`" if text else "none"


def _row(setting: Setting) -> str:
    kind = setting.kind.value + (": " + ", ".join(f"`{c}`" for c in setting.choices) if setting.choices else "")
    if setting.folded:
        kind += " (any case)"
    facts = [_cell(setting.help)]
    if setting.bounds:
        facts.append(f"Bounds: {_cell(setting.bounds)}.")
    if setting.from_environment_only:
        facts.append("Only in the environment.")
    if setting.kind not in (Kind.BOOL, Kind.TRISTATE) and not setting.secret:
        facts.append(f"Example: `{_cell(setting.example)}`")
    name = f"`{setting.variable}`" + (" **secret**" if setting.secret else "")
    live = "-" if setting.live is Live.NOT_EDITABLE else setting.live.value
    toml = f"`{setting.toml}`" if setting.toml else "-"
    return f"| {name} | {toml} | {kind} | {_default(setting)} | {live} | {' '.join(facts)} |"


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    group = ""
    for setting in SETTINGS:
        if setting.group != group:
            group = setting.group
            parts.append(
                f"\n## {group}\n\n| Variable | TOML | Type | Default | Change | Meaning |\n|---|---|---|---|---|---|\n"
            )
        parts.append(_row(setting) + "\n")
    agent = ", ".join(f"`{PREFIX}{name}`" for name in sorted(AGENT_NAMES))
    dead = ", ".join(f"`{PREFIX}{name}`" for name in DEAD_NAMES)
    parts.append("\n" + _ENDING.format(agent=agent, dead=dead))
    return "".join(parts)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m identree.settings.docs PATH", file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
