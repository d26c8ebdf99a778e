"""The first argument selects the command; none, or an unknown option, is the PAM helper (spec/host-agent section 1)."""

from __future__ import annotations

import os
import sys

from identree.agent.build import COMMIT, VERSION
from identree.agent.text import clean, note
from identree.agent.watch import Left

USAGE = """\
identree: the agent of a managed host

usage: identree                     PAM helper; started by pam_exec, not by people
       identree setup [options]     let sudo ask for approval (identree setup --help)
       identree rotate-breakglass   replace this host's break-glass password when it is due [--force] [--print]
       identree verify-breakglass   check a break-glass password that you have
       identree status [--json]     how this host stands with identree
       identree doctor [--json]     what is wrong here, and what to do
       identree heartbeat           tell the server that this host is alive
       identree renew-cert          renew this host's certificate when it is due [--force]
       identree verify-install      is the install script the one that was signed? (--help)
       identree sign-script         sign an install script (--help)
       identree --version
       identree --help

It reads /etc/identree/client.conf."""

# Loaded when they are asked for: module and function.
_COMMANDS = {
    "setup": ("setup", "run"),
    "rotate-breakglass": ("rotation", "run"),
    "verify-breakglass": ("breakglass", "run"),
    "renew-cert": ("renew", "run"),
    "heartbeat": ("heartbeat", "run"),
    "status": ("status", "run"),
    "doctor": ("doctor", "run"),
    "verify-install": ("signing", "verify_install"),
    "sign-script": ("signing", "sign_script"),
}
_SERVER = "serve add-host change-host remove-host list-hosts rotate-host-secret enrol check-config audit demo".split()


def main() -> None:
    """Run the command in ``sys.argv`` and end the process; the exit code is 0 or 1, always."""
    code = 1
    try:
        keep_standard_streams()
        code = dispatch(sys.argv[1:])
    except (KeyboardInterrupt, Left):
        pass
    except BaseException:  # a bug: the terminal gets one line, the log the rest
        note("identree: internal error; the details are in the system log")
        from identree.agent import journal

        journal.bug()
    leave(code)


def dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command in ("--version", "-v", "version"):
        note(f"{VERSION} ({COMMIT})" if COMMIT else VERSION)
        return 0
    if command in ("--help", "-h", "help"):
        note(USAGE)
        return 0
    if command in _COMMANDS:
        name, function = _COMMANDS[command]
        module = __import__(f"identree.agent.{name}", fromlist=[function])
        code: int = getattr(module, function)(arguments[1:])
        return code
    if command in _SERVER:
        complain(f"identree: {command} is a command of the identree server; this is the agent of a managed host")
        return 1
    if command and not command.startswith("-"):
        complain(f"identree: unknown command {clean(command, 60)!r}; identree --help lists the commands")
        return 1
    from identree.agent import pam

    return pam.run()


def keep_standard_streams() -> None:
    """
    Open on ``/dev/null`` what of descriptors 0 to 2 was closed by who started us: a connection or a terminal must not
    take the number that messages are written to.
    """
    while (descriptor := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def complain(line: str) -> None:
    try:
        os.write(2, (line + "\n").encode("utf-8", "replace"))
    except OSError:
        pass


def leave(code: int) -> None:
    """End at once: no exit handler and no stuck thread may keep ``sudo`` waiting."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    os._exit(0 if code == 0 else 1)
