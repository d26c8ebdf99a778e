"""
``identree setup``: let sudo ask for approval, and take that back (spec/host-agent section 10.1, 10.2).

A mistake here locks everybody out of sudo. So the helper is tried before and after the edit, the edit is rolled back
when it does not work, the original stays beside the file, and nothing is changed that is not ours.
"""

from __future__ import annotations

import errno
import glob
import os
import stat

from identree.agent import config as configuration
from identree.agent.main import complain
from identree.agent.text import clean, note

USAGE = """\
usage: identree setup [options]

Put the approval helper into the PAM configuration of sudo. Run it as root.

  --pam-mode=sole        approval is the authentication; no password is asked (default)
  --pam-mode=additional  approval first, then what the system asked before
  --dry-run              say what would be done; change nothing, call nobody
  --remove               take the helper out again
  --force                go on although a check fails
  --hostname NAME        the name this host tells the server (kept in client.conf)
  --agent-path PATH      where the helper is installed (default /usr/local/bin/identree)
  --root DIR             work on the system below DIR"""

AGENT = "/usr/local/bin/identree"
FILES = ("/etc/pam.d/sudo", "/etc/pam.d/sudo-i")
BACKUP = ".identree.bak"
SOLE, ADDITIONAL = "sole", "additional"
_CONTROLS = {SOLE: "[success=done default=die]", ADDITIONAL: "required"}
_OPTIONS = {SOLE: "quiet stdout", ADDITIONAL: "stdout"}
_LATER = ("--sssd", "--auditd")

MAX_PAM_BYTES = 262144
MAX_LINKS = 16
HEALTH_SECONDS = 10.0
SELF_TEST_SECONDS = 15.0

# Where distributions keep PAM modules.
_MODULE_PLACES = (
    "/lib/security",
    "/lib64/security",
    "/lib/*/security",
    "/usr/lib/security",
    "/usr/lib64/security",
    "/usr/lib/*/security",
)


class SetupError(Exception):
    """The text says what is wrong and what to do."""


class Options:
    """The parsed command line. :raise SetupError: an option that is unknown or lacks its value."""

    def __init__(self, arguments: list[str]) -> None:
        self.mode, self.root, self.agent, self.hostname = SOLE, "/", AGENT, ""
        self.dry_run = self.remove = self.force = self.help = False
        rest = list(arguments)
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if name in _LATER:
                raise SetupError(f"{name} comes in a later version; nothing was changed")
            if name in ("--pam-mode", "--root", "--agent-path", "--hostname"):
                if not equals:
                    if not rest:
                        raise SetupError(f"{name} needs a value; see identree setup --help")
                    value = rest.pop(0)
                self._take(name, value)
            elif equals:
                raise SetupError(f"unknown option {clean(name, 40)}; see identree setup --help")
            elif name == "--dry-run":
                self.dry_run = True
            elif name == "--remove":
                self.remove = True
            elif name == "--force":
                self.force = True
            elif name in ("--help", "-h"):
                self.help = True
            else:
                raise SetupError(f"unknown option {clean(name, 40)}; see identree setup --help")

    def _take(self, name: str, value: str) -> None:
        if name == "--pam-mode":
            if value not in _CONTROLS:
                raise SetupError("--pam-mode is sole or additional")
            self.mode = value
        elif name == "--root":
            if not os.path.isdir(value):
                raise SetupError(f"--root {clean(value, 200)} is not a directory")
            self.root = os.path.realpath(value)
        elif name == "--agent-path":
            # PAM splits at blanks and reads brackets; a path with them could not be written
            if not value.startswith("/") or not value.isascii() or any(c in value for c in " \t\n[]\\#"):
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
        if options.help:
            note(USAGE)
            return 0
        if os.geteuid() != 0 and options.root == "/" and not options.dry_run:
            raise SetupError("this needs root")
        Setup(options).run()
        return 0
    except (SetupError, configuration.ConfigError) as e:
        complain(f"identree setup: {e}")
    except OSError as e:
        complain(f"identree setup: {e.filename or 'file'}: {e.strerror}")
    return 1


class Change:
    """A file's new content. ``backup``: keep the original beside it; ``drop_backup``: the original is back in place."""

    def __init__(self, path: str, old: bytes, new: bytes, *, backup: bool = False, drop_backup: bool = False) -> None:
        self.path, self.old, self.new, self.backup, self.drop_backup = path, old, new, backup, drop_backup


class Setup:
    def __init__(self, options: Options) -> None:
        self._options = options

    def run(self) -> None:
        changes = self._removal() if self._options.remove else self._installation()
        if self._options.dry_run:
            for change in changes:
                note(f"[dry-run] would write {change.path}:")
                for line in difference(change.old, change.new):
                    note("  " + line)
            note("[dry-run] nothing was changed")
            return
        if changes and not self._options.remove:
            self._check("before any change")
        self._apply(changes)
        note("sudo no longer asks for approval" if self._options.remove else "sudo asks for approval on this host")

    # What to do

    def _installation(self) -> list[Change]:
        options, changes = self._options, []
        present = False
        for name in FILES:
            path = resolve(options.root, name)
            old = read(path)
            if old is None:
                continue
            if name.endswith("-i") and includes_sudo(old):
                new = strip(old, options.agent)  # a second helper would ask for a second approval
                reason = "includes sudo"
            else:
                present = True
                new = insert(old, options.mode, options.agent)
                reason = "already configured"
            if new == old:
                note(f"{path}: {reason}")
            else:
                changes.append(Change(path, old, new, backup=True))
        if not present:
            raise SetupError(f"{FILES[0]} does not exist; install sudo first")
        if options.hostname:
            path = resolve(options.root, configuration.DEFAULT_PATH)
            text = read(path)
            if text is None:
                raise SetupError(f"{path} does not exist; write IDENTREE_SERVER_URL and the secret to it first")
            named = name_host(text, options.hostname)
            if named != text:
                changes.insert(0, Change(path, text, named))
        return changes

    def _removal(self) -> list[Change]:
        changes = []
        for name in FILES:
            path = resolve(self._options.root, name)
            old = read(path)
            if old is None:
                continue
            new = strip(old, self._options.agent)
            saved = read(path + BACKUP)
            whole = saved is not None and strip(saved, self._options.agent).rstrip(b"\n") == new.rstrip(b"\n")
            if saved is not None and whole and not has_agent(saved, self._options.agent):
                new = saved
            if new == old:
                note(f"{path}: not configured")
            else:
                changes.append(Change(path, old, new, drop_backup=whole))
        return changes

    # Checks

    def _check(self, when: str) -> None:
        """:raise SetupError: something would lock people out; ``--force`` makes it a warning."""
        try:
            self._self_test()
            self._ask_server()
        except (SetupError, configuration.ConfigError) as e:
            if not self._options.force:
                raise SetupError(f"{e}. Nothing was changed; --force goes on nevertheless ({when})") from None
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
        configuration.load(resolve(options.root, configuration.DEFAULT_PATH))

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

        config = configuration.load(resolve(self._options.root, configuration.DEFAULT_PATH), dict(os.environ))
        try:
            answer = Client(config, Watch(parent=False)).request("GET", "/healthz", timeout=HEALTH_SECONDS)
        except (Unreachable, WireError) as e:
            raise SetupError(f"{config.server_url} does not answer: {clean(str(e), 200)}") from None
        if answer.status != 200:
            raise SetupError(f"{config.server_url}/healthz answers with HTTP {answer.status}")

    # Deeds

    def _apply(self, changes: list[Change]) -> None:
        done: list[Change] = []
        made: list[str] = []
        try:
            for change in changes:
                saved = change.path + BACKUP
                if change.backup and not os.path.lexists(saved):
                    write(saved, change.old, like=change.path)
                    made.append(saved)
                write(change.path, change.new, like=change.path)
                done.append(change)
                note(f"{change.path}: written")
            if changes and not self._options.remove:
                self._verify(changes)
        except BaseException as e:
            stuck = _roll_back(done)
            if stuck:
                raise SetupError(f"{_said(e)}. These could not be put back: {', '.join(stuck)}; see {BACKUP}") from None
            for saved in made:
                os.unlink(saved)
            if isinstance(e, (SetupError, configuration.ConfigError)):
                raise SetupError(f"{e}. Every change was rolled back") from None
            raise
        for change in changes:
            if change.drop_backup:
                os.unlink(change.path + BACKUP)

    def _verify(self, changes: list[Change]) -> None:
        for change in changes:
            if read(change.path) != change.new:
                raise SetupError(f"{change.path} does not hold what was written")
        try:
            self._self_test()
        except (SetupError, configuration.ConfigError) as e:
            if not self._options.force:
                raise
            complain(f"identree setup: warning: {e}")


def _roll_back(done: list[Change]) -> list[str]:
    """Put the old contents back, the last change first, all that can be; returns the paths where that failed."""
    stuck = []
    for change in reversed(done):
        try:
            write(change.path, change.old, like=change.path)
        except OSError as e:
            stuck.append(f"{change.path} ({e.strerror})")
    return stuck


def _said(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


# The text of PAM files, as libpam reads it: lines end with LF alone (a CR begins no new one, also not in a comment), a
# rule goes on after a backslash at the end of a line, comments and blank lines may stand between its parts, and after a
# comment it does not go on. Bytes that are not ours are kept.


def rules(data: bytes) -> list[bytes]:
    """The lines with their ends, continued lines joined to one entry."""
    out: list[bytes] = []
    going_on = False
    lines = data.split(b"\n")
    for line in [*(each + b"\n" for each in lines[:-1]), *filter(None, lines[-1:])]:
        if going_on:
            out[-1] += line
        else:
            out.append(line)
        text, comment, _ = line.partition(b"#")
        text = text.rstrip(b" \t\n")
        if text or not going_on:
            going_on = text.endswith(b"\\") and not comment
    return out


def fields(rule: bytes) -> list[str]:
    """A rule's fields, with brackets kept together; empty for comments and blank lines."""
    text = ""
    for line in rule.split(b"\n"):
        part = line.partition(b"#")[0].rstrip(b" \t\r")
        text += " " + part[: -1 if part.endswith(b"\\") else None].decode("utf-8", "replace")
    out: list[str] = []
    for word in text.split():
        if out and out[-1].startswith("[") and not out[-1].endswith("]"):
            out[-1] += " " + word
        else:
            out.append(word)
    return out


def is_agent(rule: bytes, agent: str) -> bool:
    """Whether the rule runs the helper, wherever it was installed, through pam_exec."""
    words = fields(rule)
    module = next((i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "pam_exec.so"), 0)
    return module > 0 and any(word in (agent, AGENT) for word in words[module + 1 :])


def has_agent(data: bytes, agent: str) -> bool:
    return any(is_agent(rule, agent) for rule in rules(data))


def rule_for(mode: str, agent: str) -> bytes:
    """The line of section 2 or of section 10.2, byte for byte with the default path."""
    return f"auth    {_CONTROLS[mode]}    pam_exec.so    {_OPTIONS[mode]} {agent}\n".encode()


def insert(data: bytes, mode: str, agent: str) -> bytes:
    """``data`` with exactly one rule for the helper, in ``mode``: converted in place, else before the first auth."""
    out: list[bytes] = []
    seen = False
    for rule in rules(data):
        if not is_agent(rule, agent):
            out.append(rule)
        elif not seen:
            seen = True
            words = fields(rule)
            same = (
                words[0] == "auth"
                and words[1] == _CONTROLS[mode]
                and words[-1] == agent
                and "expose_authtok" not in words
            )
            out.append(rule if same and "stdout" in words else rule_for(mode, agent))
    if seen:
        return b"".join(out)
    for index, rule in enumerate(out):
        words = fields(rule)
        if words and words[0].lower().lstrip("-") in ("auth", "@include"):
            return b"".join([*out[:index], rule_for(mode, agent), *out[index:]])
    if out and not out[-1].endswith(b"\n"):
        out.append(b"\n")
    return b"".join([*out, rule_for(mode, agent)])


def strip(data: bytes, agent: str) -> bytes:
    """``data`` without any rule for the helper."""
    return b"".join(rule for rule in rules(data) if not is_agent(rule, agent))


def includes_sudo(data: bytes) -> bool:
    """Whether the auth rules of another service come from sudo's file."""
    for rule in rules(data):
        words = fields(rule)
        if words[1:2] == ["sudo"] and words[0].lower() == "@include":
            return True
        if (
            len(words) > 2
            and words[0].lower().lstrip("-") == "auth"
            and words[1].lower() in ("include", "substack")
            and words[2] == "sudo"
        ):
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


def difference(old: bytes, new: bytes) -> list[str]:
    """The lines that go (``-``) and come (``+``)."""
    before, after = rules(old), rules(new)
    gone = [f"- {clean(line.decode('utf-8', 'replace'))}" for line in before if line not in after]
    return gone + [f"+ {clean(line.decode('utf-8', 'replace'))}" for line in after if line not in before]


# Files below a root


def below(root: str, path: str) -> str:
    return path if root == "/" else root + path


def resolve(root: str, path: str) -> str:
    """
    The real file that ``path`` names below ``root``, whose links are followed as if ``root`` were ``/``.

    :raise SetupError: a circle of links.
    """
    parts, at, links = path.split("/"), "", 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        try:
            target = os.readlink(below(root, f"{at}/{part}"))
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise
            at = f"{at}/{part}"
            continue
        links += 1
        if links > MAX_LINKS:
            raise SetupError(f"{path} is a circle of symbolic links")
        if target.startswith("/"):
            at = ""
        parts = target.split("/") + parts
    return below(root, at)


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


def read(path: str) -> bytes | None:
    """The content of a regular file; None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SetupError(f"{path} is not a regular file")
        data = file.read(MAX_PAM_BYTES + 1)
    if len(data) > MAX_PAM_BYTES:
        raise SetupError(f"{path} is larger than {MAX_PAM_BYTES} bytes")
    return data


def write(path: str, data: bytes, *, like: str) -> None:
    """Replace ``path`` in one step by ``data``, with owner, mode and security label of ``like``."""
    model = os.stat(like, follow_symlinks=False)
    temporary = f"{path}.identree-setup-{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = data
            while view:
                view = view[os.write(fd, view) :]
            if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, model.st_uid, model.st_gid)
            os.fchmod(fd, stat.S_IMODE(model.st_mode))
            _copy_label(like, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy_label(source: str, fd: int) -> None:
    try:
        os.setxattr(fd, "security.selinux", os.getxattr(source, "security.selinux"))
    except OSError:
        pass  # no label, or no SELinux
