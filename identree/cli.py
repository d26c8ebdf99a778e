"""
The command line of the server: ``identree serve``, ``check-config``, ``audit verify``, ``demo``, and the commands of a
host, which the agent has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from identree import __version__

USAGE = """\
usage: identree COMMAND

  serve                  run the server (the same as: twistd -n identree)
  check-config           show every setting with its source, and all mistakes at once
  audit verify FILE...   check hash chains and checkpoints of audit logs and exports; names the first bad record
  audit export           print the records of a span of time (--from, --to)
  audit parked           list the records that a sink would not take
  escrow rekey           encrypt the break-glass passwords of the local back end anew (--new-key-file FILE)
  escrow show HOST       show a password of the local back end, also while no server runs (--reason TEXT)
  directory check        ask the running directory what sssd asks; show what came and how long it took
  directory show NAME    explain a person or a group: ids, groups, keys, every sudo rule and why
  policy ...             approval policies: check, test, replay, export, import, history; identree policy --help
  add-host HOST          register a host; prints its secret (--users alice,bob, --group LABEL)
  change-host HOST       change who may ask on a host, or its group
  remove-host HOST       refuse a host from now on
  list-hosts             list the registered hosts
  rotate-host-secret HOST
                         give a host a new secret
  enrol HOST             make a token with which a host fetches its own secret, once (--ttl 1h)
  certificates reset HOST
                         strict provisioning: let the shared secret fetch one more certificate for a host
  healthcheck [URL]      ask a running server whether it is well (for container health checks)
  demo                   run a server with a built-in identity provider, on loopback, to look around
  setup, ...             commands of a managed host; identree setup --help
  --version              print the version

Settings are read from the environment, /etc/identree/identree.conf and /etc/identree/identree.toml;
docs/configuration.md lists them.
"""

# The agent knows these; on a host they are run from identree.pyz.
HOST_COMMANDS = (
    "setup",
    "rotate-breakglass",
    "verify-breakglass",
    "renew-cert",
    "heartbeat",
    "status",
    "doctor",
    "verify-install",
    "sign-script",
)


# The host registry's; identree.registrycli has the rest.
REGISTRY_COMMANDS = ("add-host", "change-host", "remove-host", "list-hosts", "rotate-host-secret", "enrol")

HEALTHCHECK_SECONDS = 4.0
HEALTHCHECK_BYTES = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    commands: dict[str, Callable[[list[str]], int]] = {
        "serve": _serve,
        "check-config": _check_config,
        "audit": _audit,
        "escrow": _escrow,
        "healthcheck": _healthcheck,
        "demo": _demo,
        "directory": _directory,
        "certificates": _certificates,
        "policy": _policy,
        **{name: partial(_registry, name) for name in REGISTRY_COMMANDS},
    }
    if command in ("--version", "-v", "version"):
        print(__version__)
        return 0
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if command in HOST_COMMANDS:
        from identree.agent.main import dispatch

        return dispatch(words)
    if command not in commands:
        print(f"identree: unknown command {command!r}. Try: identree --help", file=sys.stderr)
        return 1
    return commands[command](rest)


def _serve(arguments: list[str]) -> int:
    from identree.serverlog import keep_standard_streams

    keep_standard_streams()
    # only now: it may open descriptors of its own
    from twisted.scripts.twistd import run

    # twistd reads the process's own argument list
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "identree", *arguments]
    run()
    return 0


def _check_config(arguments: list[str]) -> int:
    from identree.settings.load import SettingsError, load
    from identree.settings.show import show

    if arguments:
        print("usage: identree check-config", file=sys.stderr)
        return 2
    try:
        settings = load(os.environ)
    except SettingsError as mistakes:
        print(show(mistakes.settings, mistakes.wrong), flush=True)
        print(f"\n{mistakes}", file=sys.stderr)
        return 1
    print(show(settings))
    return 0


def _audit(arguments: list[str]) -> int:
    from identree.auditcli import main as audit

    return audit(arguments)


def _escrow(arguments: list[str]) -> int:
    from identree.escrowcli import main as escrow

    return escrow(arguments)


def _directory(arguments: list[str]) -> int:
    from identree.directorycli import main as directory

    return directory(arguments)


def _certificates(arguments: list[str]) -> int:
    from identree.directorycli import certificates

    return certificates(arguments)


def _policy(arguments: list[str]) -> int:
    from identree.policycli import main as policy

    return policy(arguments)


def _registry(command: str, arguments: list[str]) -> int:
    from identree.registrycli import main as registry

    return registry(command, arguments)


def _healthcheck(arguments: list[str]) -> int:
    import ssl
    from http.client import HTTPConnection, HTTPException, HTTPSConnection
    from urllib.parse import urlsplit

    try:
        url = urlsplit(arguments[0] if arguments else _own_address())
        host, port = url.hostname or "127.0.0.1", url.port
    except ValueError as mistake:
        print(f"identree: not a URL: {mistake}", file=sys.stderr)
        return 2
    connection: HTTPConnection
    if url.scheme == "https":
        # it asks how this server is, not who it is: the certificate has its public name, not this address
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port or 443, timeout=HEALTHCHECK_SECONDS, context=trusting)
    else:
        connection = HTTPConnection(host, port or 80, timeout=HEALTHCHECK_SECONDS)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        print(response.read(HEALTHCHECK_BYTES).decode("utf-8", "replace"))
        return 0 if response.status == 200 else 1
    except (OSError, HTTPException) as problem:
        print(f"identree: {url.netloc} does not answer: {problem}", file=sys.stderr)
        return 1
    finally:
        connection.close()


def _own_address() -> str:
    """Where the server of this machine listens, by its settings; the default where they cannot be read."""
    from identree.settings.load import SettingsError, load

    try:
        settings = load(os.environ)
        address, scheme = settings.listen_addr, "https" if settings.tls_cert_file else "http"
    except SettingsError:
        address, scheme = ":8090", "http"
    host, _, port = address.rpartition(":")
    # what stands for every address is reached by this one
    return f"{scheme}://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


def _demo(arguments: list[str]) -> int:
    from identree.demo.run import parse_arguments
    from identree.service import run_demo

    try:
        options = parse_arguments(arguments)
    except ValueError as mistake:
        print(f"identree demo: {mistake}", file=sys.stderr)
        return 2
    return run_demo(options)


if __name__ == "__main__":
    sys.exit(main())
