"""
``identree setup``: let sudo ask for approval, let sssd ask identree's directory, and take all that back
(spec/host-agent sections 10, 13 and 14).

A mistake here locks everybody out of sudo. So the helper is tried before and after the edit, PAM is changed last,
everything is rolled back when a step fails, and nothing is changed that is not ours.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import stat

from identree.agent import config as configuration
from identree.agent import setup_remove, setup_sssd, units
from identree.agent.main import complain
from identree.agent.setup_files import (
    BACKUP,
    Commands,
    Journal,
    Lock,
    SetupError,
    Work,
    below,
    demand,
    read,
    reason,
    resolve,
    systemd_runs,
)
from identree.agent.setup_pam import (
    CONTROLS,
    FILES,
    SOLE,
    difference,
    has_agent,
    includes_sudo,
    insert,
    original,
    strip,
)
from identree.agent.text import clean, note
from identree.agent.units import AGENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from identree.agent.config import Config

USAGE = """\
usage: identree setup [options]

Put the approval helper into the PAM configuration of sudo. Run it as root.

  --pam-mode=sole        approval is the authentication; no password is asked (default)
  --pam-mode=additional  approval first, then what the system asked before
  --sssd                 people, groups and sudo rules from identree, through sssd
  --auditd               record who touches identree's files
  --timers               heartbeat, password rotation and certificate renewal (systemd, or cron)
  --dry-run              say what would be done; change nothing, call nobody
  --remove               take everything out again, with the helper and its files
  --keep-files           with --remove: leave the helper, its configuration and the break-glass password
  --force                go on although a check fails, and replace an sssd.conf that is not ours
  --hostname NAME        the name this host tells the server (kept in client.conf)
  --agent-path PATH      where the helper is installed (default /usr/local/bin/identree)
  --root DIR             work on the system below DIR; its services are not touched"""

HEALTH_SECONDS = 10.0
SELF_TEST_SECONDS = 15.0

_FLAGS = ("dry-run", "remove", "keep-files", "force", "sssd", "auditd", "timers", "help")

# Where distributions keep PAM modules.
_MODULE_PLACES = (
    "/lib/security",
    "/lib64/security",
    "/lib/*/security",
    "/usr/lib/security",
    "/usr/lib64/security",
    "/usr/lib/*/security",
)
# What augenrules makes of the rules.
_AUGENRULES_FILES = ("/etc/audit/audit.rules", "/etc/audit/audit.rules.prev")


class Options:
    """The parsed command line. :raise SetupError: an option that is unknown or lacks its value."""

    def __init__(self, arguments: list[str]) -> None:
        self.mode, self.root, self.agent, self.hostname = SOLE, "/", AGENT, ""
        self.dry_run = self.remove = self.keep_files = self.force = self.help = False
        self.sssd = self.auditd = self.timers = False
        rest = list(arguments)
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if name in ("--pam-mode", "--root", "--agent-path", "--hostname"):
                if not equals:
                    if not rest:
                        raise SetupError(f"{name} needs a value; see identree setup --help")
                    value = rest.pop(0)
                self._take(name, value)
            elif name == "-h" or (name.startswith("--") and name[2:] in _FLAGS and not equals):
                setattr(self, "help" if name == "-h" else name[2:].replace("-", "_"), True)
            else:
                raise SetupError(f"unknown option {clean(name, 40)}; see identree setup --help")
        if self.keep_files and not self.remove:
            raise SetupError("--keep-files goes with --remove; see identree setup --help")
        if self.remove and (self.sssd or self.auditd or self.timers or self.hostname):
            raise SetupError("--remove takes everything back; it does not go with other steps")

    def _take(self, name: str, value: str) -> None:
        if name == "--pam-mode":
            if value not in CONTROLS:
                raise SetupError("--pam-mode is sole or additional")
            self.mode = value
        elif name == "--root":
            if not os.path.isdir(value):
                raise SetupError(f"--root {clean(value, 200)} is not a directory")
            self.root = os.path.realpath(value)
        elif name == "--agent-path":
            # PAM splits at blanks and reads brackets, systemd expands percent signs and dollars
            if not value.startswith("/") or not value.isascii() or any(c in value for c in " \t\n[]\\#%$\"'"):
                raise SetupError("--agent-path is an absolute path without blanks")
            self.agent = os.path.normpath(value)
        else:
            name = value.lower().rstrip(".")
            if not 0 < len(name) <= 253 or name.strip("abcdefghijklmnopqrstuvwxyz0123456789._-"):
                raise SetupError("--hostname takes letters, digits, '.', '_' and '-'")
            self.hostname = name


def run(arguments: list[str]) -> int:
    try:
        options = Options(arguments)
    except SetupError as e:
        complain(f"identree setup: {e}")
        return 1
    try:
        if options.help:
            note(USAGE)
            return 0
        if os.geteuid() != 0 and options.root == "/" and not options.dry_run:
            raise SetupError("this needs root")
        # a preview changes nothing, and is for people who could not take the lock
        with _Signals(), contextlib.nullcontext() if options.dry_run else Lock(options.root):
            Setup(options, Commands(options.root)).run()
        return 0
    except (SetupError, configuration.ConfigError) as e:
        complain(f"identree setup: {e}")
    except OSError as e:
        complain(f"identree setup: {e.filename or 'file'}: {e.strerror}")
    except KeyboardInterrupt:
        done = "run it again to complete it" if options.remove else "every change was rolled back"
        complain(f"identree setup: interrupted; {done}")
    return 1


class _Signals:
    """A hang-up or a request to end takes everything back first, as Ctrl-C does."""

    def __enter__(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        self._before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class _Uninterrupted:
    """Who presses Ctrl-C twice gets the system back all the same."""

    def __enter__(self) -> None:
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)

    def __exit__(self, *exc: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class Edit:
    """What is to become of a PAM file."""

    def __init__(self, path: str, old: bytes, new: bytes) -> None:
        self.path, self.old, self.new = path, old, new


class Setup:
    """:param commands: the programs of the system below ``options.root``."""

    def __init__(self, options: Options, commands: Commands) -> None:
        self._options, self._commands = options, commands

    def run(self) -> None:
        """:raise SetupError: :raise ConfigError: :raise OSError: it was not done, and nothing is left of it."""
        if self._options.remove:
            self._remove()
        elif self._options.dry_run:
            self._preview()
        else:
            self._install()

    def _remove(self) -> None:
        options = self._options
        journal = Journal(options.root)
        removal = setup_remove.Removal(
            options.root, options.agent, journal, self._commands, note, complain, keep_files=options.keep_files
        )
        if options.dry_run:
            for line in removal.preview():
                note(line)
            note("[dry-run] nothing was changed")
            return
        removal.run()
        note("sudo no longer asks for approval")

    # What to do

    def _edits(self) -> list[Edit]:
        """:raise SetupError: there is no sudo."""
        options, edits, present = self._options, [], False
        for name in FILES:
            path = resolve(options.root, name)
            old = read(path)
            if old is None:
                continue
            if name.endswith("-i") and includes_sudo(old):
                new = strip(old, options.agent)  # a second helper would ask for a second approval
                said = "includes sudo"
            else:
                present = True
                new = insert(old, options.mode, options.agent)
                said = "already configured"
            if new == old:
                note(f"{path}: {said}")
            else:
                edits.append(Edit(name, old, new))
        if not present:
            raise SetupError(f"{FILES[0]} does not exist; install sudo first")
        return edits

    def _named(self) -> tuple[bytes, bytes] | None:
        """``client.conf`` before and with the host's name, when that differs."""
        if not self._options.hostname:
            return None
        path = resolve(self._options.root, configuration.DEFAULT_PATH)
        text = read(path)
        if text is None:
            raise SetupError(f"{path} does not exist; write IDENTREE_SERVER_URL and the secret to it first")
        named = name_host(text, self._options.hostname)
        return (text, named) if named != text else None

    def _configuration(self, *, overrides: bool = False) -> Config:
        path = resolve(self._options.root, configuration.DEFAULT_PATH)
        return configuration.load(path, dict(os.environ) if overrides else None)

    def _preview(self) -> None:
        options, edits, named = self._options, self._edits(), self._named()
        for path, change in [(configuration.DEFAULT_PATH, named)] if named else []:
            assert change is not None
            self._show(path, *change)
        if options.sssd:
            config = self._configuration(overrides=True)
            note(
                f"[dry-run] would ask {config.server_url}/api/client/provision as {options.hostname or config.hostname}"
            )
            for path in (setup_sssd.SSSD_CONF, setup_sssd.LDAP_CA, setup_sssd.CLIENT_CERT, setup_sssd.CLIENT_KEY):
                note(f"[dry-run] would write {below(options.root, path)}, if the server gives what belongs there")
            old = read(resolve(options.root, setup_sssd.NSSWITCH))
            if old is not None:
                self._show(setup_sssd.NSSWITCH, old, setup_sssd.with_sss(old)[0])
        wanted = [(units.RULES_FILE, self._audit_rules(dry=True))] if options.auditd else []
        if options.timers:
            wanted += self._timer_files()
        for path, text in wanted:
            if read(resolve(options.root, path)) != text.encode():
                note(f"[dry-run] would write {below(options.root, path)}")
        for edit in edits:
            self._show(edit.path, edit.old, edit.new)
        note("[dry-run] nothing was changed")

    def _show(self, path: str, old: bytes, new: bytes) -> None:
        if old == new:
            return
        note(f"[dry-run] would write {resolve(self._options.root, path)}:")
        for line in difference(old, new):
            note("  " + line)

    # Deeds

    def _install(self) -> None:
        options = self._options
        edits, named = self._edits(), self._named()
        if options.sssd:
            self._configuration(overrides=True)  # without server there is nothing to begin with
        if edits or named or options.sssd or options.auditd or options.timers:
            self._check()
        grant = None
        if options.sssd:
            config = self._configuration(overrides=True)
            grant = setup_sssd.provision(config, options.hostname or config.hostname)
        work = Work(options.root, Journal(options.root), self._commands, note)
        try:
            work.begin()
            if named is not None:
                self._write_name(work, *named)
            if grant is not None:
                steps = setup_sssd.Sssd(work, note, complain, force=options.force)
                steps.run(grant, self._configuration(overrides=True))
            if options.auditd:
                self._audit(work)
            if options.timers:
                self._timers(work)
            for edit in edits:  # the last, after everything that can fail
                self._edit(work, edit)
            self._verify(edits)
        except BaseException as e:
            with _Uninterrupted():
                stuck = work.roll_back()
            if stuck:
                raise SetupError(
                    f"{reason(e)}. These could not be put back: {'; '.join(stuck)}. The originals end in {BACKUP}; "
                    "identree setup --remove --keep-files tries again"
                ) from None
            if isinstance(e, (SetupError, configuration.ConfigError, OSError)):
                raise SetupError(f"{reason(e)}. Every change was rolled back") from None
            raise
        note("sudo asks for approval on this host")

    def _write_name(self, work: Work, old: bytes, new: bytes) -> None:
        added = [line.decode() for line in new.splitlines() if line not in old.splitlines()]
        work.put(configuration.DEFAULT_PATH, new, mode=0o600, kind="lines", lines=added)

    def _edit(self, work: Work, edit: Edit) -> None:
        agent, before, mixed = self._options.agent, None, False
        entry = work.journal.files.get(work.journal.name(resolve(work.root, edit.path)))
        if entry is None and has_agent(edit.old, agent):  # configured by an earlier version, or another installer
            before = original(edit.old, read(resolve(work.root, edit.path) + BACKUP), agent)
            mixed = before is None
        work.put(edit.path, edit.new, kind="pam", original=before, mixed=mixed)

    def _audit_rules(self, *, dry: bool = False) -> str:
        """The rules for the paths that this host uses, without those that would keep the others from being loaded."""
        options = self._options
        path = resolve(options.root, configuration.DEFAULT_PATH)
        config = configuration.load(path, server=False)
        rules = units.audit_rules(
            agent=options.agent,
            hash_file=config.breakglass_file,
            key_file=config.client_key or setup_sssd.CLIENT_KEY,
        )
        kept = []
        for rule in rules:
            directory = rule[0] if rule[0].endswith("/") else os.path.dirname(rule[0])
            if os.path.isdir(resolve(options.root, directory)):
                kept.append(rule)
            elif not dry:
                note(f"auditd: {rule[0]} is not watched, because {directory} does not exist")
        try:
            return units.audit_text(kept)
        except ValueError as e:
            raise SetupError(
                f"the audit rules cannot be written: {e}; give the break-glass file another path"
            ) from None

    def _audit(self, work: Work) -> None:
        """:raise SetupError: the rules were not loaded."""
        here = self._commands.usable
        if here and not self._commands.find("augenrules"):
            note(
                "there is no auditd here (augenrules is missing), so nothing is recorded; install it and run this again"
            )
            return
        text = self._audit_rules()
        work.directory("/etc/audit/rules.d", 0o750)
        if here:
            work.undo(lambda: self._forget_rules(work))
        changed = work.put(units.RULES_FILE, text.encode(), mode=0o640, own=True)
        if not here or not (changed or self._not_loaded(text)):
            return
        work.fact("audit", True)
        code, said = self._commands.run("auditctl", "-s")
        if code == 0 and "enabled 2" in said:
            note("auditd: the kernel's rules are locked until the next start; identree's come with it")
            return
        work.command("augenrules", _AUGENRULES_FILES, "augenrules", "--load")
        if missing := self._not_loaded(text):
            raise SetupError(f"the kernel did not take the rule {missing}; auditctl -R {units.RULES_FILE} says why")

    def _not_loaded(self, text: str) -> str:
        """The first rule of the file that the kernel does not have."""
        listing = demand(self._commands, "auditctl", "-l")
        rules = (line for line in text.splitlines() if line.startswith("-w"))
        return next((line for line in rules if not _loaded(line, listing)), "")

    def _forget_rules(self, work: Work) -> None:
        """The file is as before again; so is the kernel to be. By key, so that nobody else's rules are touched."""
        for key in units.AUDIT_KEYS:
            self._commands.run("auditctl", "-D", "-k", key)
        if work.get(units.RULES_FILE) is not None:
            self._commands.run("augenrules", "--load")

    def _timer_files(self) -> list[tuple[str, str]]:
        options = self._options
        config = configuration.load(resolve(options.root, configuration.DEFAULT_PATH), server=False)
        renew = bool(config.client_cert)
        there = not self._commands.usable and os.path.exists(below(options.root, "/usr/lib/systemd/systemd"))
        if there or systemd_runs(options.root, self._commands):
            return [
                (
                    f"{units.UNIT_DIRECTORY}/{name}",
                    units.unit(name, agent=options.agent, hash_file=config.breakglass_file),
                )
                for name in units.NAMES
                if renew or name not in units.RENEW_NAMES
            ]
        if os.path.isdir(resolve(options.root, os.path.dirname(units.CRON_FILE))):
            return [(units.CRON_FILE, units.cron(agent=options.agent, renew=renew))]
        return []

    def _timers(self, work: Work) -> None:
        """:raise SetupError: systemd does not take them."""
        files = self._timer_files()
        if not files:
            complain("identree setup: neither systemd nor cron is here; run heartbeat and rotate-breakglass regularly")
            return
        systemd = systemd_runs(self._options.root, self._commands)
        timers = [path for path, _ in files if path.endswith(".timer")]
        old = [path for path in timers if os.path.lexists(below(self._options.root, path))]
        if systemd:
            work.undo(self._reload_units)
        changed = [work.put(path, text.encode(), own=True) for path, text in files]
        names = [os.path.basename(path) for path in timers]
        if not systemd:
            if names:
                note(f"enable the timers when that system runs: systemctl enable --now {' '.join(names)}")
            return
        if any(changed):
            if self._commands.find("systemd-analyze"):
                self._verify_units([path for path, _ in files])
            self._reload_units()
        if not old:
            work.undo(lambda: self._disable(names))
        demand(self._commands, "systemctl", "enable", "--now", *names)
        other = resolve(self._options.root, units.CRON_FILE)
        if read(other) is not None:
            complain(f"identree setup: {other} does the same as the timers; remove it")

    def _reload_units(self) -> None:
        demand(self._commands, "systemctl", "daemon-reload")

    def _disable(self, names: list[str]) -> None:
        self._commands.run("systemctl", "disable", "--now", *names)

    def _verify_units(self, paths: list[str]) -> None:
        """An old systemd does not know every line, and leaves out what it does not know; that is said, not more."""
        code, said = self._commands.run("systemd-analyze", "verify", *paths)
        ours = [line for line in said.splitlines() if "identree-" in line]
        if ours:
            complain(f"identree setup: systemd-analyze says: {clean(ours[0], 300)}")
        elif code not in (0, 127):
            complain(f"identree setup: systemd-analyze verify ended with {code}")

    # Checks

    def _check(self) -> None:
        """:raise SetupError: something would lock people out; ``--force`` makes it a warning."""
        try:
            self._self_test()
            self._ask_server()
        except (SetupError, configuration.ConfigError) as e:
            if not self._options.force:
                raise SetupError(
                    f"{e}. Nothing was changed; --force goes on nevertheless (before any change)"
                ) from None
            complain(f"identree setup: warning: {e}")

    def _verify(self, edits: list[Edit]) -> None:
        """Once more, with everything as it will be."""
        for edit in edits:
            path = resolve(self._options.root, edit.path)
            if read(path) != edit.new:
                raise SetupError(f"{path} does not hold what was written")
        try:
            if edits:
                self._self_test()
            if self._options.sssd:
                self._ask_server()  # with the certificate, and the authority that was written to client.conf
        except (SetupError, configuration.ConfigError) as e:
            if not self._options.force:
                raise
            complain(f"identree setup: warning: {e}")

    def _self_test(self) -> None:
        """The module is there, the helper starts as PAM starts it, and its configuration loads."""
        options = self._options
        if not any(glob.glob(below(glob.escape(options.root), place) + "/pam_exec.so") for place in _MODULE_PLACES):
            raise SetupError("pam_exec.so is not among the system's PAM modules")
        path = resolve(options.root, options.agent)
        check_owner(path)
        version = self._start([path, "--version"], {})
        if not version.strip():
            raise SetupError(f"{path} --version says nothing")
        # For another type than auth the helper ends well before it asks anybody.
        self._start([path], {"PAM_USER": "root", "PAM_TYPE": "account", "PAM_SERVICE": "sudo"})
        self._configuration()

    def _start(self, command: list[str], environ: dict[str, str]) -> bytes:
        import subprocess

        try:
            done = subprocess.run(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SELF_TEST_SECONDS,
                start_new_session=True,
            )
        except OSError as e:
            raise SetupError(f"{command[0]} does not start: {e.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SetupError(f"{command[0]} does not end") from None
        if done.returncode != 0:
            said = clean(done.stdout[:400].decode("utf-8", "replace"), 200)
            raise SetupError(f"{' '.join(command)} failed: {said or done.returncode}")
        return done.stdout

    def _ask_server(self) -> None:
        from identree.agent.watch import Watch
        from identree.agent.wire import Client, Unreachable, WireError

        config = self._configuration(overrides=True)
        try:
            answer = Client(config, Watch(parent=False)).request("GET", "/healthz", timeout=HEALTH_SECONDS)
        except (Unreachable, WireError) as e:
            raise SetupError(f"{config.server_url} does not answer: {clean(str(e), 200)}") from None
        if answer.status != 200:
            raise SetupError(f"{config.server_url}/healthz answers with HTTP {answer.status}")


def _loaded(rule: str, listing: str) -> bool:
    """Whether auditctl lists a rule; it leaves out the slash at a directory's end, and sorts the permissions."""
    words = rule.split()
    wanted = (words[1].rstrip("/"), frozenset(words[3]), words[5])
    for line in listing.splitlines():
        words = line.split()
        if len(words) == 6 and words[0] == "-w":
            if (words[1].rstrip("/"), frozenset(words[3]), words[5]) == wanted:
                return True
    return False


def name_host(data: bytes, hostname: str) -> bytes:
    """``client.conf`` with ``IDENTREE_HOSTNAME`` set once."""
    wanted = b"IDENTREE_HOSTNAME=" + hostname.encode() + b"\n"
    out, seen = [], False
    for line in data.splitlines(keepends=True):
        if list(configuration.parse(line.decode("utf-8", "replace").rstrip("\n") + "x")) == ["IDENTREE_HOSTNAME"]:
            if seen:
                continue
            line, seen = wanted, True
        out.append(line)
    if not seen:
        if out and not out[-1].endswith(b"\n"):
            out.append(b"\n")
        out.append(wanted)
    return b"".join(out)


def check_owner(path: str) -> None:
    """
    :raise SetupError: somebody else could replace the program at ``path``, which sudo will run as root.
    """
    at, what = path, "it"
    while True:
        try:
            about = os.stat(at)
        except OSError as e:
            raise SetupError(f"{path} does not start: {e.strerror}") from None
        if about.st_uid not in (0, os.geteuid()):
            raise SetupError(
                f"{path} would run as root, but {what} belongs to uid {about.st_uid}; run: chown root {at}"
            )
        # a group may be trusted with a directory, as Debian's staff is with /usr/local; in a sticky one nobody can
        # rename what is another's
        open_to = 0o022 if at == path else 0 if about.st_mode & stat.S_ISVTX else 0o002
        if about.st_mode & open_to:
            raise SetupError(f"{path} would run as root, but others can write to {what}; run: chmod go-w {at}")
        above = os.path.dirname(at)
        if above == at:
            return
        at, what = above, f"its directory {above}"
