"""
``identree directory``: look at the directory as the hosts do, and understand what it says.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from identree.directory.explain import Explanation
from identree.settings.load import SettingsError, load
from identree.settings.values import Settings

PASSWORD_BYTES = 4096


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status: 0 all well, 1 something is not, 2 the command's words are off."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    if options.command == "check":
        return _check(options)
    return _show(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="identree directory")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="ask a running server what sssd asks; print what came and how long it took"
    )
    check.add_argument("--url", help="ldap://host:port or ldaps://host:port; the default is this machine's server")
    check.add_argument("--base", help="base DN; the default is IDENTREE_LDAP_BASE_DN")
    check.add_argument("--bind-dn", help="who asks; the default is IDENTREE_LDAP_BIND_DN")
    check.add_argument(
        "--password-file", help="file with that DN's password; the default is IDENTREE_LDAP_BIND_PASSWORD"
    )
    check.add_argument("--starttls", action="store_true", help="encrypt an ldap:// connection")
    check.add_argument("--ca", default="", help="CA certificate (PEM) that the server's certificate is checked against")
    check.add_argument("--cert", default="", help="client certificate (PEM), for mTLS")
    check.add_argument("--key", default="", help="its private key (PEM)")
    check.add_argument("--user", default="", help="whom to look up; the default is the first one listed")
    check.add_argument("--group", default="", help="the same for a group")
    check.add_argument("--host", default="", help="whose sudo rules to ask for; the default is this machine's name")
    show = commands.add_parser("show", help="explain a person or a group: ids, groups, keys, every sudo rule and why")
    show.add_argument("name", help="user name or group name")
    return parser


def _settings() -> Settings | None:
    """The server's settings; None, with the reasons said, when they cannot be read."""
    try:
        return load(os.environ)
    except SettingsError as mistakes:
        print(f"identree: the settings cannot be used:\n{mistakes}", file=sys.stderr)
        return None


def _check(options: argparse.Namespace) -> int:
    from identree.ldap.selfcheck import Subject, Target, check

    url, base, bind_dn, password = options.url, options.base, options.bind_dn, ""
    if options.password_file:
        try:
            with Path(options.password_file).open("rb") as file:
                password = file.read(PASSWORD_BYTES).decode("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as problem:
            print(f"identree: {options.password_file} cannot be read: {problem}", file=sys.stderr)
            return 2
    if not (url and base and bind_dn is not None and options.password_file):
        settings = _settings()
        if settings is None:
            return 2
        url = url or _own_url(settings)
        base = base or settings.ldap_base_dn
        if bind_dn is None:
            bind_dn = settings.ldap_bind_dn
        if not options.password_file and bind_dn == settings.ldap_bind_dn:
            password = settings.ldap_bind_password
    if not url:
        print("identree: the plain LDAP listener is off; name another with --url ldaps://host:port", file=sys.stderr)
        return 2
    target = Target(
        url=url,
        base_dn=base,
        bind_dn=bind_dn,
        password=password,
        start_tls=options.starttls,
        ca_file=options.ca,
        cert_file=options.cert,
        key_file=options.key,
    )
    subject = Subject(user=options.user, group=options.group, host=options.host)
    return check(target, subject, sys.stdout, time.monotonic)


def _own_url(settings: Settings) -> str:
    """Where this machine's server listens; empty when the plain listener is closed."""
    host, _, port = settings.ldap_listen_addr.rpartition(":")
    if not port:
        return ""
    # what stands for every address is reached by this one
    return f"ldap://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


def _show(options: argparse.Namespace) -> int:
    from identree.app.statefiles import BadStateFile
    from identree.core.errors import SchemaTooNew, StorageUnavailable
    from identree.directory.archive import BadArchive
    from identree.directory.explain import text

    settings = _settings()
    if settings is None:
        return 2
    try:
        explanation = _explained(settings, options.name)
    except (StorageUnavailable, SchemaTooNew, BadArchive, BadStateFile, ValueError, OSError) as problem:
        print(f"identree: the directory cannot be read: {problem}", file=sys.stderr)
        return 2
    if explanation is None:
        print("identree: nothing was ever read from PocketID; see identree's log", file=sys.stderr)
        return 1
    if not explanation.found:
        print(f"nothing in the directory is called {options.name!r}")
        return 1
    print(text(explanation).rstrip("\n"))
    return 0


def _explained(settings: Settings, name: str) -> Explanation | None:
    """What the database, or in bridge mode the rules file, says of a name; None: nothing was ever published."""
    from identree.app.statefiles import read_state_file
    from identree.directory.build import build, build_bridge
    from identree.directory.explain import explain
    from identree.directory.ids import Numbers
    from identree.directory.rulesfile import FILE_LIMIT, parse
    from identree.directory.snapshot import run
    from identree.directory.source import Source
    from identree.directoryparts import beside_the_server, layout_of, published

    layout = layout_of(settings)
    if not settings.full_mode:
        raw, _ = read_state_file(settings.sudo_rules_file, FILE_LIMIT)
        nobody = Numbers(uids={}, gids={})
        return explain(name, Source(), nobody, layout, run(build_bridge(parse(raw), layout)))
    found = beside_the_server(settings, published)
    if found is None:
        return None
    source, numbers = found
    return explain(name, source, numbers, layout, run(build(source, numbers, layout)))


def certificates(arguments: Sequence[str]) -> int:
    """``identree certificates reset HOST``; returns the exit status."""
    from identree.core.errors import Invalid, SchemaTooNew, StorageUnavailable
    from identree.core.names import hostname
    from identree.directoryparts import beside_the_server
    from identree.storage.store import SqlStore

    if len(arguments) != 2 or arguments[0] != "reset":
        print("usage: identree certificates reset HOST", file=sys.stderr)
        return 2
    settings = _settings()
    if settings is None:
        return 2

    async def forget(store: SqlStore, reactor: object) -> bool:
        return await store.forget_certificate(name)

    try:
        name = hostname(arguments[1])
        known = beside_the_server(settings, forget)
    except Invalid as problem:
        print(f"identree: {problem.detail}", file=sys.stderr)
        return 2
    except (StorageUnavailable, SchemaTooNew, ValueError, OSError) as problem:
        print(f"identree: the database cannot be used: {problem}", file=sys.stderr)
        return 2
    if not known:
        print(f"identree: no certificate is on record for {name}", file=sys.stderr)
        return 1
    print(f"{name} may be given a new certificate with the shared secret; the one that it has stays valid")
    return 0
